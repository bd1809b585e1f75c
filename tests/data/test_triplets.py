import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from children import interruptible
from PIL import Image

import rlpips
from rlpips import DatasetError, TwoAFC, make_triplets
from rlpips.cli import main
from rlpips.data import panel, triplets
from rlpips.images import load_image

ROOT = Path(rlpips.__file__).parents[1]
FAST = ["ssim", "gmsd", "haarpsi", "psnr", "mdsi"]  # metrics that need no weights


@pytest.fixture(scope="module")
def photos(shared, tmp_path_factory):
    """Eight real photos, two of them in a folder of their own."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for k, file in enumerate(sorted((shared / "images" / "photos").glob("*.jpg"))[::140]):
        shutil.copy(file, folder / "more" if k < 2 else folder)
    (folder / ".hidden").write_text("not a photo")
    return folder


def content(out):
    """Everything under a folder, by path."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def mse(a, b):
    return (a - b).square().mean().item()


def test_labels_by_order_are_right(photos, tmp_path):
    made = make_triplets(photos, tmp_path / "out", count=40, size=48)
    assert (made.folder, made.new, made.candidates) == (tmp_path / "out" / "2afc" / "val" / "triplets", 40, 0)
    assert (made.small, made.unreadable) == ((), {})
    data = TwoAFC(tmp_path / "out")
    assert (len(data), data.subsets) == (40, ("val/triplets",))
    assert data.name_of(7) == "val/triplets/000007"
    judgements, right = [], []
    for item in data:
        assert item["ref"].shape == (3, 48, 48)
        judge = item["judge"].item()
        judgements.append(judge)
        p1_is_closer = mse(item["ref"], item["p1"]) < mse(item["ref"], item["p0"])
        right.append(p1_is_closer == (judge == 1))
    assert set(judgements) == {0.0, 1.0}
    assert 10 <= sum(judgements) <= 30
    assert np.mean(right) >= 0.95  # strength orders squared errors too, but for rare chance


@pytest.mark.parametrize("name", ["gaussian-noise", "brightness"])
def test_order_compares_two_strengths_of_the_same_draw(photos, tmp_path, name):
    make_triplets(photos, tmp_path, count=6, distortions=[name])
    for item in TwoAFC(tmp_path):
        change0, change1 = item["p0"] - item["ref"], item["p1"] - item["ref"]
        free = ((item["p0"].abs() < 1) & (item["p1"].abs() < 1)).flatten()
        ratio = (change1.flatten()[free].norm() / change0.flatten()[free].norm()).item()
        assert (ratio < 1) == (item["judge"].item() == 1)
        a, b = change0.flatten()[free], change1.flatten()[free]
        assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.97


def test_patches_are_of_the_photos(photos, tmp_path):
    make_triplets(photos, tmp_path, count=30, size=32)
    means = np.array([item["ref"].mean(dim=(1, 2)).numpy() for item in TwoAFC(tmp_path)])
    assert len(np.unique(means.round(3), axis=0)) == 30
    single = tmp_path / "single"
    single.mkdir()
    photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(photo).save(single / "a.png")
    make_triplets(single, tmp_path / "exact", count=2, size=32)
    for i in range(2):  # of a photo as large as a patch there is one patch
        file = tmp_path / "exact" / "2afc" / "val" / "triplets" / "ref" / f"00000{i}.png"
        assert np.array_equal(load_image(file), photo)


def test_the_seed_decides(photos, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_triplets(photos, tmp_path / name, count=3, seed=seed)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    a, c = content(tmp_path / "a"), content(tmp_path / "c")
    assert all(a[path] != c[path] for path in a if path.endswith(".png"))


def test_splits_and_subsets_lie_side_by_side(photos, tmp_path):
    make_triplets(photos, tmp_path, count=2, split="train", subset="one")
    make_triplets(photos, tmp_path, count=3, split="train", subset="two", seed=1)
    assert len(TwoAFC(tmp_path, ["train/one", "train/two"])) == 5


@pytest.mark.parametrize("labels", ["order", "panel"])
def test_an_interrupted_run_is_continued_byte_for_byte(photos, tmp_path, labels):
    options = {"size": 48, "labels": labels} | ({"panel": FAST, "agree": 4} if labels == "panel" else {})
    whole, out = tmp_path / "whole", tmp_path / "out"
    make_triplets(photos, whole, count=20, **options)
    wanted = content(whole)
    # Half of the triplets lose one file each, a few are touched, to see that they are kept.
    shutil.copytree(whole, out)
    for i in range(0, 20, 2):
        part = ("ref", "p0", "p1", "judge")[i // 2 % 4]
        next((out / "2afc" / "val" / "triplets" / part).glob(f"{i:06d}.*")).unlink()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png") if int(path.stem) % 2}
    assert make_triplets(photos, out, count=20, **options).new == 10
    assert content(out) == wanted
    assert all(path.stat().st_mtime_ns == when for path, when in times.items())
    assert make_triplets(photos, out, count=20, **options).new == 0
    # A data set grows to what it would have been.
    made = make_triplets(photos, tmp_path / "grown", count=7, **options)
    assert made.new == 7
    assert make_triplets(photos, tmp_path / "grown", count=20, **options).new == 13
    assert content(tmp_path / "grown") == wanted
    # Fewer than are there: nothing is done, nothing is lost.
    assert make_triplets(photos, out, count=5, **options).new == 0
    assert content(out) == wanted


@pytest.mark.parametrize("labels", ["order", "panel"])
def test_workers_change_nothing(photos, tmp_path, labels):
    options = {"count": 40, "labels": labels} | ({"panel": FAST} if labels == "panel" else {})
    make_triplets(photos, tmp_path / "0", **options)
    made = make_triplets(photos, tmp_path / "2", workers=2, **options)
    assert made.new == 40
    assert content(tmp_path / "0") == content(tmp_path / "2")


def test_a_killed_run_leaves_whole_files_and_is_continued(photos, tmp_path):
    command = [sys.executable, "-m", "rlpips", "triplets", str(photos), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "--count", "100000"], env=environment, stderr=subprocess.PIPE, preexec_fn=interruptible
    )
    judge = tmp_path / "out" / "2afc" / "val" / "triplets" / "judge"
    for _ in range(1200):
        if len(list(judge.glob("*.npy"))) > 10:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    count = len(list(judge.glob("*.npy")))
    assert count > 10
    make_triplets(photos, tmp_path / "out", count=count)
    make_triplets(photos, tmp_path / "whole", count=count)
    ours, wanted = content(tmp_path / "out"), content(tmp_path / "whole")
    assert {path: ours[path] for path in wanted} == wanted


@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a group of processes")
def test_ctrl_c_while_workers_start_ends_quietly(photos, tmp_path):
    (tmp_path / "seen").mkdir()
    (tmp_path / "sitecustomize.py").write_text(  # each worker leaves a file when it begins to import torch
        "import os, sys\n"
        "def seen(event, details):\n"
        "    if event == 'import' and details[0] == 'torch':\n"
        f"        open(f'{tmp_path}/seen/{{os.getpid()}}', 'w').close()\n"
        "if '--multiprocessing-fork' in sys.argv:\n"
        "    sys.addaudithook(seen)\n"
    )
    command = [sys.executable, "-m", "rlpips", "triplets", str(photos), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    process = subprocess.Popen(
        [*command, "--workers", "2"],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=interruptible,
    )
    while len(list((tmp_path / "seen").iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_started_them(photos, tmp_path, sent):
    command = [sys.executable, "-m", "rlpips", "triplets", str(photos), str(tmp_path), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "--count", "100000"], env=environment, stderr=subprocess.PIPE, start_new_session=True
    )
    judge = tmp_path / "2afc" / "val" / "triplets" / "judge"
    try:
        while not list(judge.glob("*.npy")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(sent)
        # The workers share this pipe: it ends when the last of them does.
        _, err = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if sent == signal.SIGTERM:
        assert (process.returncode, err) == (143, b"")
        assert not list(tmp_path.rglob(".*"))  # no half of a file


def test_photos_that_are_too_small_are_the_error_however_large_the_size(photos, tmp_path):
    with pytest.raises(DatasetError, match="are smaller than 100000 pixels"):
        make_triplets(photos, tmp_path, size=100_000)


def test_labels_by_a_panel_are_the_votes_of_its_metrics(photos, tmp_path):
    import piq

    made = make_triplets(photos, tmp_path, count=12, labels="panel", panel=["ssim", "gmsd", "psnr"])
    record = json.loads((tmp_path / "2afc" / "val" / "triplets.json").read_text())
    assert record["settings"]["agree"] == 2
    assert made.candidates == record["judged"] >= 12
    for item in TwoAFC(tmp_path):
        ref, p0, p1 = ((item[part][None] + 1) / 2 for part in ("ref", "p0", "p1"))
        votes = sum(
            [
                bool(piq.ssim(ref, p1) > piq.ssim(ref, p0)),
                bool(piq.gmsd(ref, p1) < piq.gmsd(ref, p0)),
                bool(piq.psnr(ref, p1) > piq.psnr(ref, p0)),
            ]
        )
        assert item["judge"].item() == pytest.approx(votes / 3)
    make_triplets(photos, tmp_path, count=6, subset="all", labels="panel", panel=["ssim", "gmsd"], agree=2)
    assert {item["judge"].item() for item in TwoAFC(tmp_path, "val/all")} <= {0.0, 1.0}


@pytest.mark.parametrize("name", [name for name in panel.METRICS if not name.startswith("lpips")])
def test_every_metric_is_a_distance_at_64_pixels(photos, name):
    metric = panel.METRICS[name]()
    files = sorted(photos.glob("*.jpg"))[:4]
    crops = np.stack([load_image(file)[60:124, 60:124] for file in files])
    ref = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    noise = torch.randn(ref.shape, generator=torch.Generator().manual_seed(0))
    distances = [metric(ref, (ref + sigma * noise).clamp(0, 1)) for sigma in (0, 0.03, 0.1, 0.3)]
    assert distances[0].shape == (4,)
    for nearer, further in itertools.pairwise(distances):
        assert (nearer < further).all()


def test_a_panel_knows_the_reference_from_the_distorted_image(photos, tmp_path):
    import piq

    make_triplets(photos, tmp_path, count=8, labels="panel", panel=["vif"])
    assert json.loads((tmp_path / "2afc" / "val" / "triplets.json").read_text())["settings"]["recipe"] == 3
    for item in TwoAFC(tmp_path):
        ref, p0, p1 = ((item[part][None] + 1) / 2 for part in ("ref", "p0", "p1"))
        assert item["judge"].item() == float(piq.vif_p(p1, ref) > piq.vif_p(p0, ref))


def test_the_default_panel_with_real_weights(real_weights, photos, tmp_path):
    made = make_triplets(photos, tmp_path, count=4, labels="panel")
    record = json.loads((tmp_path / "2afc" / "val" / "triplets.json").read_text())
    assert (record["settings"]["panel"], record["settings"]["agree"]) == (list(panel.PANEL), 6)
    metric = rlpips.LPIPS(net="alex")
    for item in TwoAFC(tmp_path):
        votes = round(7 * item["judge"].item())
        assert votes in (0, 1, 6, 7)
        if votes in (0, 7):
            nearer = metric(item["ref"][None], item["p1"][None]) < metric(item["ref"][None], item["p0"][None])
            assert nearer.item() == (votes == 7)
    assert made.new == 4


def test_a_damaged_record_of_a_panel_s_choices_is_refused(photos, tmp_path):
    make_triplets(photos, tmp_path, count=4, labels="panel", panel=["psnr"])
    record = tmp_path / "2afc" / "val" / "triplets.json"
    whole = json.loads(record.read_text())
    for name, value in (
        ("kept", [[candidate + 1, votes] for candidate, votes in whole["kept"]]),
        ("kept", whole["kept"][:3]),
        ("judged", 2),
        ("digest", None),
    ):
        record.write_text(json.dumps({**whole, name: value}))
        with pytest.raises(DatasetError, match=r"triplets.json is damaged .*; delete it and"):
            make_triplets(photos, tmp_path, count=5, labels="panel", panel=["psnr"])
    record.write_text(json.dumps(whole))
    made = make_triplets(photos, tmp_path, count=5, labels="panel", panel=["psnr"])
    assert made.new == 1


def test_other_settings_are_an_error_that_says_which(photos, tmp_path):
    make_triplets(photos, tmp_path, count=2, size=32)
    before = content(tmp_path)
    for change, message in (
        ({"size": 48}, r"size was 32 and is now 48\. Use"),
        (
            {"size": 32, "seed": 5, "distortions": ["jpeg"]},
            r"seed was 0 and is now 5; distortions was .*is now jpeg\.",
        ),
        (
            {"size": 32, "labels": "panel", "panel": ["ssim"]},
            r"labels was order .* panel was not set and is now ssim",
        ),
    ):
        with pytest.raises(DatasetError, match=f"triplets was made with other settings: .*{message}"):
            make_triplets(photos, tmp_path, count=2, **change)
    fewer = tmp_path / "fewer"
    shutil.copytree(photos, fewer)
    next(fewer.glob("*.jpg")).unlink()
    with pytest.raises(DatasetError, match=r"photos was 8 files, .* is now 7 files"):
        make_triplets(fewer, tmp_path, count=2, size=32)
    assert all(content(tmp_path)[path] == before[path] for path in before)
    record = tmp_path / "2afc" / "val" / "triplets.json"
    for damage in ("{", "[" * 100_000, '{"settings": 3}'):
        record.write_text(damage)
        with pytest.raises(DatasetError, match=r"triplets.json is damaged .*; delete it and"):
            make_triplets(photos, tmp_path, count=2, size=32)
    record.write_text(json.dumps({"settings": {"size\x1b[2J" + "x" * 5000: "\x9b" * 5000}}))
    with pytest.raises(DatasetError, match="triplets was made with other settings") as caught:
        make_triplets(photos, tmp_path, count=2, size=32)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
    record.unlink()
    with pytest.raises(DatasetError, match=r"was not made here, as there is no triplets.json beside it"):
        make_triplets(photos, tmp_path, count=2, size=32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"size": 4}, "size must be at least 8, got 4"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"split": "test"}, "split='test' is unknown"),
        ({"subset": "../x"}, "cannot be the name of a folder"),
        ({"subset": ""}, "cannot be the name of a folder"),
        ({"labels": "people"}, "labels='people' is unknown"),
        ({"agree": 2}, "panel and agree go with labels='panel' only"),
        ({"panel": ["ssim"]}, "panel and agree go with labels='panel' only"),
        ({"labels": "panel", "panel": ["ssimm"]}, "no metric named 'ssimm'; the names are lpips-alex, "),
        ({"labels": "panel", "panel": []}, "at least one metric, and each once"),
        ({"labels": "panel", "panel": ["ssim", "ssim"]}, "each once"),
        ({"labels": "panel", "panel": FAST, "agree": 2}, r"agree must be in \[3, 5\] for 5 metrics, got 2"),
        ({"labels": "panel", "panel": FAST, "agree": 6}, r"agree must be in \[3, 5\]"),
        ({"distortions": ["jpg"]}, "no distortion named 'jpg'; the names are gaussian-noise"),
        ({"distortions": []}, "need at least 1 distortions, got 0"),
        ({"labels": "panel", "panel": FAST, "distortions": ["jpeg", "jpeg"]}, "need at least 2 distortions, got 1"),
        ({"labels": "panel", "panel": ["vif"], "size": 32}, "the metric 'vif' cannot measure 32 x 32 pixels: "),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named_before_anything_is_made(tmp_path, options, message):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "a.png")
    with pytest.raises(ValueError, match=message):
        make_triplets(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_serve_are_named(tmp_path, photos):
    with pytest.raises(NotADirectoryError, match="nowhere: there is no such folder"):
        make_triplets(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty: there are no photos"):
        make_triplets(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match="would read triplets as photos"):
        make_triplets(photos, photos / "out")
    (tmp_path / "empty" / "a.jpg").write_text("")
    Image.new("RGB", (100, 20)).save(tmp_path / "empty" / "b.png")
    with pytest.raises(
        DatasetError, match="none of 2 photos can be used: 1 are smaller than 64 pixels and 1 cannot be"
    ):
        make_triplets(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "black").mkdir()
    Image.new("RGB", (80, 80)).save(tmp_path / "black" / "b.png")
    with pytest.raises(
        DatasetError, match="none of 1 photos can be used: these distortions change nothing in them"
    ):
        make_triplets(tmp_path / "black", tmp_path / "out", distortions=["gamma"], subset="b")


def test_a_panel_that_never_agrees_is_given_up(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(triplets, "_BARREN", 30)
    monkeypatch.setitem(panel.METRICS, "first", lambda: lambda a, b: (a - b).square().mean((1, 2, 3)))
    monkeypatch.setitem(panel.METRICS, "second", lambda: lambda a, b: -(a - b).square().mean((1, 2, 3)))
    with pytest.raises(DatasetError, match="agreed on none of the last 30 candidates; ask for fewer"):
        make_triplets(photos, tmp_path, labels="panel", panel=["first", "second"])


def test_a_metric_without_an_answer_keeps_nothing(photos, tmp_path, monkeypatch):
    def sometimes(a, b):
        distances = (a - b).square().mean((1, 2, 3))
        return torch.where(distances > 0.004, float("nan"), distances)

    monkeypatch.setitem(panel.METRICS, "sometimes", lambda: sometimes)
    made = make_triplets(photos, tmp_path, count=5, labels="panel", panel=["sometimes"])
    assert made.candidates > 5
    for item in TwoAFC(tmp_path):
        assert max(mse(item["ref"], item[part]) for part in ("p0", "p1")) <= 4 * 0.0041


def test_a_missing_extra_is_named(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "piq", None)
    with pytest.raises(
        rlpips.MissingExtraError, match=r"the metric 'vif' needs .* pip install 'rlpips\[classical\]'"
    ):
        make_triplets(photos, tmp_path, labels="panel", panel=["vif"])
    with pytest.raises(rlpips.WeightsUnavailableError, match="squeezenet1_1"):
        make_triplets(photos, tmp_path, labels="panel", panel=["lpips-squeeze"])
    assert not list(tmp_path.iterdir())


# The command


def run(*arguments, capsys):
    status = main(["triplets", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command(photos, tmp_path, capsys):
    folder = tmp_path / "2afc" / "train" / "x"
    arguments = [
        photos,
        tmp_path,
        "--count",
        3,
        "--size",
        32,
        "--seed",
        4,
        "--split",
        "train",
        "--subset",
        "x",
    ]
    arguments += ["--distortions", "jpeg", "warp"]
    assert run(*arguments, capsys=capsys) == (0, f"{folder}: 3 triplets, 3 of them new\n", "")
    assert run(*arguments, capsys=capsys) == (0, f"{folder}: 3 triplets, 0 of them new\n", "")
    options = {"size": 32, "seed": 4, "split": "train", "subset": "x", "distortions": ["warp", "jpeg"]}
    make_triplets(photos, tmp_path / "same", count=3, **options)
    assert content(tmp_path / "same" / "2afc") == content(tmp_path / "2afc")
    arguments = ["--count", 2, "--labels", "panel", "--panel", *FAST, "--agree", 3]
    status, out, err = run(photos, tmp_path, *arguments, capsys=capsys)
    assert (status, err) == (0, "")
    assert "triplets: 2 triplets, 2 of them new, chosen from " in out
    assert run(photos, tmp_path, "--seed", 1, capsys=capsys)[2].startswith("rlpips: error: ")


def test_the_command_names_what_it_could_not_use(photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "notes.txt").write_text("not a photo")
    (folder / "cut.jpg").write_bytes(next(photos.glob("*.jpg")).read_bytes()[:2000])
    Image.new("RGB", (100, 63)).save(folder / "small.png")
    status, out, err = run(folder, tmp_path / "out", "--count", 60, capsys=capsys)
    assert status == 1
    assert "60 triplets, 60 of them new" in out
    lines = err.splitlines()
    assert lines[0] == "rlpips: 1 photo is smaller than 64 pixels and not used"
    assert lines[1].startswith(f"rlpips: {folder / 'cut.jpg'}: the file is damaged")
    assert lines[2] == f"rlpips: {folder / 'notes.txt'}: not an image in a format that rlpips reads"
    assert len(lines) == 3
    assert len(TwoAFC(tmp_path / "out")) == 60


@pytest.mark.skipif(
    not Path("/proc/self/mem").exists(), reason="needs a file that gives errors when it is read"
)
def test_no_other_photo_takes_the_place_of_one_that_cannot_be_read_now(photos, tmp_path):
    files = sorted(photos.rglob("*.jpg"))[:2]
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in files:
        shutil.copy(file, folder)
    whole = [triplets.PhotoTriplets(folder, 8)[i]["ref"] for i in range(8)]
    data, failing = triplets.PhotoTriplets(folder, 8), folder / files[0].name
    failing.unlink()
    failing.symlink_to("/proc/self/mem")  # whose first bytes give an I/O error
    found = {}
    for i in range(8):
        with contextlib.suppress(OSError):
            found[i] = data[i]["ref"]
    assert 0 < len(found) < 8
    with pytest.raises(OSError, match=f"{failing}: cannot be read: Input/output error"):
        make_triplets(folder, tmp_path / "out", count=8)
    failing.unlink()
    shutil.copy(files[0], folder)
    found |= {i: data[i]["ref"] for i in range(8) if i not in found}
    assert all(torch.equal(found[i], whole[i]) for i in range(8))
