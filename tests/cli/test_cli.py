import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from children import interruptible
from PIL import Image

import rlpips
from rlpips.cli import main
from rlpips.hub import store

ROOT = Path(rlpips.__file__).parents[1]
CAT, BLURRED = ROOT / "examples" / "cat.png", ROOT / "examples" / "cat-blurred.png"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def folders(tmp_path):
    """Two folders with three pairs, of which one differs in size, and files without a partner."""
    for k, name in enumerate(("one", "two")):
        folder = tmp_path / name
        folder.mkdir()
        for i, side in enumerate((64, 64, 64 + 8 * k)):
            data = np.random.default_rng(10 * k + i).integers(0, 256, (64, side, 3), dtype=np.uint8)
            Image.fromarray(data).save(folder / f"{i}.png")
        (folder / ".hidden").write_text("not measured")
    (tmp_path / "one" / "notes.txt").write_text("not an image")
    (tmp_path / "two" / "extra.png").write_bytes(b"")
    return tmp_path / "one", tmp_path / "two"


def run(*arguments, capsys):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def expected(a, b, weights, **options):
    return rlpips.distance(a, b, weights=weights, **options)


def test_distance_prints_one_number(weights, capsys):
    status, out, err = run("distance", CAT, BLURRED, "--weights", weights, capsys=capsys)
    assert (status, err) == (0, "")
    assert out == f"{expected(CAT, BLURRED, weights):.4f}\n"


def test_tiles_give_the_same_table(folders, weights, capsys):
    for command in (("distance", CAT, BLURRED), ("compare", *folders), ("pairs", folders[0], "--all")):
        whole = run(*command, "--weights", weights, capsys=capsys)
        assert run(*command, "--weights", weights, "--tile", 64, capsys=capsys) == whole
    with pytest.raises(SystemExit):
        main(["distance", str(CAT), str(BLURRED), "--tile", "0"])
    assert "0 is not a positive number" in capsys.readouterr().err


def test_the_first_command_of_the_readme_prints_what_it_says(capsys):
    readme = (ROOT / "README.md").read_text()
    command, number = re.search(
        r"rlpips (distance examples/\S+ examples/\S+)\n```\n\nprints `([\d.]+)`", readme
    ).groups()
    name, *images = command.split()
    assert run(name, *(ROOT / image for image in images), capsys=capsys) == (0, f"{number}\n", "")


def test_the_documented_number(real_weights, shared, capsys):
    folder = shared / "images" / "lpips-examples"
    ref, p0, p1 = (folder / f"ex_{name}.png" for name in ("ref", "p0", "p1"))
    assert run("distance", ref, p0, "--weights", "standard", capsys=capsys) == (0, "0.7219\n", "")
    assert run("distance", ref, p1, "--net", "vgg", "--weights", "standard", capsys=capsys)[1] == "0.4217\n"


def test_the_version_of_the_metric_is_an_option(real_weights, capsys):
    new = run("distance", CAT, BLURRED, "--weights", "standard", capsys=capsys)[1]
    old = run("distance", CAT, BLURRED, "--weights", "standard", "--version", "0.0", capsys=capsys)[1]
    assert float(new) > 0
    assert float(old) > 0
    assert new != old


def test_compare_measures_partners_and_names_what_it_could_not(folders, weights, capsys):
    one, two = folders
    status, out, err = run("compare", one, two, "--weights", weights, capsys=capsys)
    distances = [expected(one / f"{i}.png", two / f"{i}.png", weights) for i in range(2)]
    lines = out.splitlines()
    assert lines[:2] == [f"{i}.png  {distance:.4f}" for i, distance in enumerate(distances)]
    error = abs(distances[0] - distances[1]) / 2
    mean = np.mean(distances)  # of two, which is the median
    assert lines[2] == f"2 pairs, mean {mean:.4f}, standard error {error:.4f}, median {mean:.4f}"
    assert len(lines) == 3
    assert status == 1
    assert f"rlpips: skipped 1 file that is not an image: {one / 'notes.txt'}" in err
    assert f"rlpips: {two / 'extra.png'} has no partner in {one}" in err
    assert "2.png" in err
    assert "64 x 64 and 64 x 72 pixels (height x width); --resize" in err
    assert "hidden" not in out + err


def test_compare_resizes(folders, weights, capsys):
    one, two = folders
    (one / "notes.txt").unlink()
    (two / "extra.png").unlink()
    status, out, err = run("compare", one, two, "--weights", weights, "--resize", "40x48", capsys=capsys)
    assert (status, err) == (0, "")
    value = expected(one / "2.png", two / "2.png", weights, resize=(40, 48))
    assert f"2.png  {value:.4f}" in out
    assert run("compare", one, two, "--weights", weights, "--resize", "48", capsys=capsys)[0] == 0


@pytest.mark.parametrize("batch_size", [1, 3])
def test_pairs(folders, weights, capsys, batch_size):
    one, _ = folders
    (one / "notes.txt").unlink()
    options = ["--weights", weights, "--batch-size", batch_size]
    _, out, _ = run("pairs", one, *options, capsys=capsys)
    assert [line.split()[:2] for line in out.splitlines()[:-1]] == [["0.png", "1.png"], ["1.png", "2.png"]]
    status, out, _ = run("pairs", one, "--all", *options, capsys=capsys)
    pairs = [("0", "1"), ("0", "2"), ("1", "2")]
    assert out.splitlines()[:3] == [
        f"{a}.png  {b}.png  {expected(one / f'{a}.png', one / f'{b}.png', weights):.4f}" for a, b in pairs
    ]
    assert status == 0


def test_an_unreadable_file_is_named_once(folders, weights, capsys):
    one, _ = folders
    whole = (one / "0.png").read_bytes()
    (one / "3.png").write_bytes(whole[: len(whole) // 2])
    status, out, err = run("pairs", one, "--all", "--weights", weights, capsys=capsys)
    assert status == 1
    assert len(out.splitlines()) == 4
    assert err.count("3.png") == 1
    assert "damaged" in err


def test_files_that_are_no_images_are_counted_and_left_out(weights, capsys, tmp_path):
    for name in ("cat.png", "cat-blurred.png"):
        (tmp_path / name).write_bytes((ROOT / "examples" / name).read_bytes())
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text("Prose, and no picture")
    status, out, err = run("pairs", tmp_path, "--weights", weights, capsys=capsys)
    assert (status, len(out.splitlines())) == (0, 2)
    named = ", ".join(str(tmp_path / f"{name}.txt") for name in "abc")
    assert err == f"rlpips: skipped 4 files that are not images: {named}, ...\n"
    assert run("pairs", tmp_path, "--json", "--weights", weights, capsys=capsys)[1].count(".txt") == 4
    other = tmp_path.parent / f"{tmp_path.name}-other"
    other.mkdir()
    for name in ("cat.png", "a.txt"):
        (other / name).write_bytes((tmp_path / name).read_bytes())
    (other / "cat-blurred.png").write_text("no picture, where its partner is one")
    status, _, err = run("compare", tmp_path, other, "--weights", weights, capsys=capsys)
    assert status == 1
    assert f"{other / 'cat-blurred.png'}: not an image" in err
    assert "skipped 5 files that are not images" in err


def test_pairs_of_the_examples_are_measured(weights, capsys):
    status, out, err = run("pairs", ROOT / "examples", "--weights", weights, capsys=capsys)
    assert status == 0
    assert "files that are not images: " in err
    assert len(out.splitlines()) == len(list((ROOT / "examples").glob("*.png")))


def test_compare_names_folders_and_other_suffixes(folders, weights, capsys):
    one, two = folders
    (two / "extra.png").unlink()
    for name in ("0", "1"):
        (two / f"{name}.png").rename(two / f"{name}.jpg")
    (one / "more").mkdir()
    (one / "more" / "x.png").write_bytes((one / "0.png").read_bytes())
    status, _, err = run("compare", one, two, "--resize", "64", "--weights", weights, capsys=capsys)
    assert status == 1
    hint = "but a file there has the same name and another suffix"
    assert f"{one / '0.png'} has no partner in {two}, {hint} (and 1 more: {one / '1.png'})" in err
    assert f"{two / '0.jpg'} has no partner in {one}, {hint} (and 1 more: {two / '1.jpg'})" in err
    assert f"{one / 'more'} is a subfolder, and its files are not compared" in err


def test_failures_of_a_kind_are_told_on_one_line_and_all_in_the_json(weights, capsys, tmp_path):
    for k in range(7):
        Image.new("RGB", (64 + k, 64)).save(tmp_path / f"{k}.png")
    (tmp_path / "8.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    status, out, err = run("pairs", tmp_path, "--all", "--json", "--weights", weights, capsys=capsys)
    assert status == 1
    sizes, damaged = err.splitlines()
    assert "the images differ in size" in sizes
    second, third = (f"{tmp_path / '0.png'} and {tmp_path / f'{k}.png'}" for k in (2, 3))
    assert f"(and 20 more: {second}, {third}, ...)" in sizes
    assert str(tmp_path / "8.png") in damaged
    assert len(json.loads(out)["failed"]) == 22


def test_csv_and_json(folders, weights, capsys):
    one, two = folders
    value = expected(one / "0.png", two / "0.png", weights)
    status, out, _ = run("compare", one, two, "--weights", weights, "--csv", capsys=capsys)
    assert status == 1
    rows = list(csv.reader(out.splitlines()))
    assert rows[0] == ["a", "b", "distance"]
    assert rows[1][:2] == [str(one / "0.png"), str(two / "0.png")]
    assert float(rows[1][2]) == pytest.approx(value, rel=1e-6)
    assert len(rows) == 3
    _, out, _ = run("compare", one, two, "--weights", weights, "--json", capsys=capsys)
    report = json.loads(out)
    assert report["pairs"][0] == {
        "a": str(one / "0.png"),
        "b": str(two / "0.png"),
        "distance": pytest.approx(value),
    }
    assert report["mean"] == pytest.approx(np.mean([pair["distance"] for pair in report["pairs"]]))
    assert {Path(failure["file"]).name for failure in report["failed"]} == {"extra.png", "2.png"}
    assert report["left_out"] == [str(one / "notes.txt")]
    assert report["median"] == pytest.approx(np.median([pair["distance"] for pair in report["pairs"]]))
    assert report["device"] == "cpu"
    assert (report["net"], report["weights"], report["version"]) == ("alex", weights, "0.1")
    _, out, _ = run("distance", CAT, BLURRED, "--weights", weights, "--json", capsys=capsys)
    assert json.loads(out)["standard_error"] is None


def test_output_files_are_written_whole_or_not_at_all(folders, weights, capsys, tmp_path):
    one, two = folders
    for name in ("report.csv", "report.json", "report.txt"):
        target = tmp_path / name
        target.write_text("old")
        status, out, _ = run("compare", one, two, "--weights", weights, "-o", target, capsys=capsys)
        assert (status, out.splitlines()[0][:13]) == (1, "2 pairs, mean")
        assert len(out.splitlines()) == 1
        text = target.read_text()
        assert text.startswith({"report.csv": "a,b,", "report.json": "{", "report.txt": "0.png"}[name])
    assert not list(tmp_path.glob(".*"))


def test_an_output_file_that_cannot_be_written_is_told_before_the_work(weights, capsys, tmp_path):
    for target in (tmp_path / "nowhere" / "report.csv", tmp_path):
        with pytest.raises(SystemExit, match="2"):
            main(["distance", "a.png", "b.png", "--weights", weights, "-o", str(target)])
        assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["distance", "a.png"],
        ["distance", "a.png", "b.png", "--net", "resnet"],
        ["distance", "a.png", "b.png", "--resize", "big"],
        ["distance", "a.png", "b.png", "--resize", "0"],
        ["distance", "a.png", "b.png", "--batch-size", "-1"],
        ["distance", "a.png", "b.png", "--csv", "--json"],
        ["weights"],
        ["weights", "download"],
    ],
)
def test_wrong_usage_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: rlpips" in capsys.readouterr().err


def test_errors_are_one_line_and_end_with_1(weights, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (
            ["distance", "nothing.png", CAT, "--weights", weights],
            "rlpips: nothing.png: there is no such file",
        ),
        (
            ["distance", CAT, BLURRED, "--weights", "nothing.pth"],
            "rlpips: error: 'nothing.pth' is neither a file",
        ),
        (["distance", CAT, BLURRED, "--weights", weights, "--device", "nonsense"], "rlpips: error: "),
        (["compare", tmp_path / "a", tmp_path], "there is no such folder"),
        (["pairs", CAT], "not a folder"),
        (["pairs", tmp_path / "empty"], "there are no two images to compare"),
        (["weights", "path", "alexnett"], "did you mean 'alexnet'?"),
        (["weights", "path", "squeezenet1_1"], "rlpips weights download squeezenet1_1"),
    ):
        status, _, err = run(*arguments, capsys=capsys)
        assert status == 1
        assert message in err
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1


def test_weights_that_cannot_be_had_are_explained(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RLPIPS_HOME", str(tmp_path))
    status, _, err = run("distance", CAT, BLURRED, "--net", "squeeze", "--weights", "standard", capsys=capsys)
    assert status == 1
    assert "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth" in err
    assert "rlpips weights import squeezenet1_1 FILE" in err


def test_weights_are_listed(capsys):
    status, out, _ = run("weights", "list", capsys=capsys)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(rlpips.list_weights())
    assert "heads, adversarially, linf on x0+x1" in out
    _, out, _ = run("weights", "list", "--json", capsys=capsys)
    assert json.loads(out)[0]["digest"].startswith("sha256:7be5be79")


def test_weights_are_imported_found_and_verified(shared, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RLPIPS_HOME", str(tmp_path))
    source = shared / "weights" / "alexnet-imagenet-features.pth"
    status, out, _ = run("weights", "import", "alexnet", source, capsys=capsys)
    path = store.path_of(rlpips.list_weights()["alexnet"])
    assert (status, out) == (0, f"{path}\n")
    assert run("weights", "path", "alexnet", capsys=capsys) == (0, f"{path}\n", "")
    assert run("weights", "download", "alexnet", capsys=capsys) == (0, f"{path}\n", "")
    status, out, _ = run("weights", "verify", capsys=capsys)
    assert status == 0
    assert out.splitlines()[0] == "alexnet: OK"
    assert len(out.splitlines()) == 10
    path.write_bytes(path.read_bytes()[:-1000])
    status, out, err = run("weights", "verify", "alexnet", "lpips-vgg-v0.1", capsys=capsys)
    assert (status, out) == (1, "lpips-vgg-v0.1: OK\n")
    assert str(path) in err
    status, _, err = run("weights", "import", "vgg16", source, capsys=capsys)
    assert status == 1
    assert "not a checkpoint for net='vgg'; it looks like torchvision's weights for net='alex'" in err


def test_help_and_version_need_no_torch():
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['numpy'] = sys.modules['PIL'] = None\n"
        "from rlpips.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    for arguments, start in ((["--version"], f"rlpips {rlpips.__version__}"), (["--help"], "usage: rlpips")):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(start)


def test_ctrl_c_ends_quietly_with_130(weights, tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(data).save(tmp_path / "0.png")
    for i in range(1, 2000):
        (tmp_path / f"{i}.png").hardlink_to(tmp_path / "0.png")
    code = (  # it tells when images are read and PyTorch has been loaded
        "import sys\n"
        "from rlpips.cli import main\n"
        "def tell(event, details):\n"
        "    if event == 'open' and str(details[0]).endswith('/100.png') and 'torch.nn' in sys.modules:\n"
        "        print('ready', flush=True)\n"
        "sys.addaudithook(tell)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "pairs", "--all", str(tmp_path), "--weights", weights]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        preexec_fn=interruptible,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out.replace("ready\n", ""), err) == ("", "")


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m rlpips weights list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT)
    assert "Traceback" not in done.stderr
    assert done.stderr == ""
