import gc
import itertools
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import images
from PIL import Image

import rlpips
from benchmarks import scale
from rlpips.cli import main
from rlpips.scoring import cached_metric, load_pair, measure_all, measure_pairs

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
UNREADABLE = Path("/proc/self/mem")  # Linux gives an I/O error for its first bytes


@pytest.fixture
def weights(tmp_path_factory):
    """A checkpoint with a random backbone, so that nothing here needs the real weights."""
    path = tmp_path_factory.getbasetemp() / "random.pth"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(rlpips.LPIPS(pnet_rand=True).state_dict(), path)
    return path


def test_one_call_measures_files_arrays_and_tensors(weights):
    a, b = EXAMPLES / "cat.png", EXAMPLES / "cat-blurred.png"
    expected = rlpips.LPIPS(weights=weights)(
        *(rlpips.im2tensor(rlpips.load_image(path)) for path in (a, b))
    ).item()
    array = rlpips.load_image(a)
    for first in (a, str(a), Image.open(a), array, array / 255, rlpips.im2tensor(array)[0]):
        found = rlpips.distance(first, b, weights=weights)
        assert isinstance(found, float)
        assert found == pytest.approx(expected, abs=1e-6)
    assert rlpips.distance(a, a, weights=str(weights)) == 0


def test_batches_give_arrays(weights):
    x, y = images(3, 3, 64, 64), images(3, 3, 64, 64, seed=1)
    each = rlpips.distance(x, y, weights=weights)
    assert isinstance(each, np.ndarray)
    assert each.shape == (3,)
    assert each[1] == pytest.approx(rlpips.distance(x[1], y[1], weights=weights), abs=1e-6)
    one_to_many = rlpips.distance(x[0], y, weights=weights)
    assert one_to_many.shape == (3,)
    assert one_to_many[0] == pytest.approx(each[0], abs=1e-6)
    assert rlpips.distance(x[:1], y[:1], weights=weights).shape == (1,)


def random_metric(path, seed):
    torch.manual_seed(seed)
    metric = rlpips.LPIPS(pnet_rand=True)
    torch.save(metric.state_dict(), path)
    return metric


def test_the_model_is_built_once_and_anew_when_its_file_is_written_again(tmp_path, monkeypatch):
    x, y = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    file, cpu = tmp_path / "metric.safetensors", torch.device("cpu")
    for seed in range(2):
        metric = random_metric(file, seed)
        assert rlpips.distance(x, y, weights=file) == pytest.approx(metric(x, y).item(), rel=1e-6)
        built = cached_metric("alex", file, "0.1", cpu)
        monkeypatch.chdir(tmp_path)
        for same in (str(file), "metric.safetensors", Path("metric.safetensors")):
            assert cached_metric("alex", same, "0.1", cpu) is built
    file.unlink()
    with pytest.raises(FileNotFoundError, match="metric.safetensors"):
        rlpips.distance(x, y, weights=file)


def test_weights_may_be_a_runs_folder_or_lie_at_home(tmp_path, monkeypatch, capsys):
    x, y = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = tmp_path / "run"
    run.mkdir()
    for command in (rlpips.LPIPS, lambda weights: rlpips.distance(x, y, weights=weights)):
        with pytest.raises(
            FileNotFoundError, match="run holds no metric.safetensors: it is not the folder of a run"
        ):
            command(weights=str(run))
    (run / "run.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="run holds no metric.safetensors: the run has not finished"):
        rlpips.LPIPS(weights=run)
    expected = random_metric(run / "metric.safetensors", 1)(x, y).item()
    for weights in (run, str(run), "~/run", "~/run/metric.safetensors", Path("~/run")):
        assert rlpips.LPIPS(weights=weights)(x, y).item() == pytest.approx(expected, rel=1e-6)
        assert rlpips.distance(x, y, weights=weights) == pytest.approx(expected, rel=1e-6)
    files = [str(EXAMPLES / name) for name in ("cat.png", "cat-blurred.png")]
    assert main(["distance", *files, "--weights", str(run)]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(rlpips.distance(*files, weights=run), abs=1e-4)


def test_float_tensors_in_the_unit_range_are_warned_of_and_normalized(weights):
    x, y = (images(1, 3, 64, 64, seed=s)[0] for s in (0, 1))
    x[0, 0, 0] = y[0, 0, 0] = -1
    unit_x, unit_y = (x + 1) / 2, (y + 1) / 2
    expected = rlpips.distance(x, y, weights=weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrays = [np.moveaxis(each.numpy(), 0, -1) for each in (unit_x, unit_y)]
        for a, b in ((unit_x, unit_y), (unit_x, arrays[1]), arrays):
            found = rlpips.distance(a, b, weights=weights, normalize=True)
            assert found == pytest.approx(expected, rel=1e-5)
        rlpips.distance(unit_x, y, weights=weights)  # one negative value tells the range of both
        rlpips.distance((255 * unit_x).byte(), EXAMPLES / "cat.png", weights=weights, resize=64)
    told = (
        r"a is a float tensor and all its values lie in \[0, 1\]; tensors are read as \[-1, 1\]. If it is in"
    )
    with pytest.warns(UserWarning, match=told) as caught:
        assert rlpips.distance(unit_x, arrays[1], weights=weights) != pytest.approx(expected, rel=1e-2)
    assert [each.filename for each in caught] == [__file__]
    with pytest.warns(UserWarning, match="a and b are float tensors .* pass normalize=True") as caught:
        rlpips.distance(unit_x, unit_y, weights=weights)
    assert len(caught) == 1
    with pytest.raises(
        rlpips.ImageError, match=r"b: a float tensor with normalize=True must lie in \[0, 1\]"
    ):
        rlpips.distance(unit_x, y, weights=weights, normalize=True)


def test_grey_and_unbatched_images_are_measured_as_in_lpips(real_peers):
    _, theirs = real_peers("alex")
    x, y = images(2, 1, 64, 64), images(2, 1, 64, 64, seed=1)
    rgb = [each.expand(-1, 3, -1, -1) for each in (x, y)]
    expected = theirs(*rgb).flatten().tolist()
    assert rlpips.distance(x, y, weights="standard") == pytest.approx(expected, rel=1e-4)
    for a, b in ((x[0], y[0]), (x[0, 0], y[0, 0]), (rgb[0][0], rgb[1][0]), (x[0, 0], rgb[1][0])):
        with torch.no_grad():
            peer = theirs(a, b)
        found = rlpips.distance(a, b, weights="standard")
        assert isinstance(found, float)
        assert found == pytest.approx(peer.item(), rel=1e-4)
    x, y = ((each.numpy() + 1) / 2 for each in (x, y))
    for a, b in ((x[0, 0], y[0, 0]), (x[0, 0, ..., None], y[0, 0, ..., None])):
        assert rlpips.distance(a, b, weights="standard") == pytest.approx(expected[0], rel=1e-4)
    batches = [np.moveaxis(each, 1, -1) for each in (x, y)]
    assert rlpips.distance(*batches, weights="standard") == pytest.approx(expected, rel=1e-4)


def test_transparent_images_are_laid_over_a_background(weights, tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    alpha = rgba[..., 3:] / 255
    with pytest.raises(rlpips.ImageError, match=r"clear.png: it has transparent .* background='white'"):
        rlpips.distance(tmp_path / "clear.png", EXAMPLES / "cat.png", weights=weights)
    colours = {"white": 255, "#ff8000": (255, 128, 0), (1, 2, 3): (1, 2, 3), 7: 7, np.uint8(9): 9}
    for background, values in colours.items():
        flat = np.round(rgba[..., :3] * alpha + np.array(values) * (1 - alpha)).astype(np.uint8)
        for image in (tmp_path / "clear.png", Image.fromarray(rgba)):
            found, expected, _ = load_pair(image, flat, background=background)
            assert (found - expected).abs().max() < 1.1 / 127.5
    expected = rlpips.distance(flat, EXAMPLES / "cat.png", weights=weights, resize=64)
    found = rlpips.distance(image, EXAMPLES / "cat.png", weights=weights, resize=64, background=9)
    assert found == pytest.approx(expected, rel=1e-2)
    for wrong in ("whitish", "#ffffff80", (1, 2), (1, 2, 256), 0.5, (0.5, 0.5, 0.5)):
        with pytest.raises(ValueError, match="is not an opaque colour; write a name such as 'white'"):
            rlpips.distance(flat, flat, weights=weights, background=wrong)


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file that gives errors when it is read")
def test_files_that_cannot_be_read_are_told_and_the_others_measured(folder, weights):
    (folder / "failing.png").symlink_to(UNREADABLE)
    pairs = [(folder / a, folder / b) for a, b in (("0.png", "failing.png"), ("0.png", "1.png"))]
    failed, measured = measure_pairs(pairs, rlpips.LPIPS(weights=weights))
    assert list(failed.unreadable.values()) == [
        f"{folder / 'failing.png'}: cannot be read: Input/output error"
    ]
    assert measured.distance > 0


def test_huge_images_are_measured_in_tiles(weights, tmp_path):
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    for path, seed in ((a, 0), (b, 1)):
        data = np.random.default_rng(seed).integers(0, 256, (40, 300, 3), dtype=np.uint8)
        Image.fromarray(data).save(path)
    expected = rlpips.distance(a, b, weights=weights)
    assert rlpips.distance(a, b, weights=weights, tile=64) == pytest.approx(expected, rel=1e-5)
    metric = rlpips.LPIPS(weights=weights)
    measured = measure_pairs([(a, b), (b, a), (a, a)], metric, tile=64)
    assert [m.distance for m in measured] == pytest.approx([expected, expected, 0], rel=1e-5)
    with pytest.raises(ValueError, match="tile must be a positive"):
        rlpips.distance(a, b, weights=weights, tile=0)


def test_sizes_that_differ_need_resize(weights):
    x, y = images(1, 3, 64, 80), images(1, 3, 50, 64)
    with pytest.raises(rlpips.ImageError, match=r"64 x 80 and 50 x 64 pixels \(height x width\); resize="):
        rlpips.distance(x, y, weights=weights)
    square = rlpips.distance(x, y, weights=weights, resize=64)
    assert square == rlpips.distance(x, y, weights=weights, resize=(64, 64))
    assert square > 0


def test_wrong_arguments_are_named(weights):
    x = images(1, 3, 64, 64)
    with pytest.raises(TypeError, match="b must be a path"):
        rlpips.distance(x, 3, weights=weights)
    with pytest.raises(rlpips.ImageError, match="a: a float tensor must lie in"):
        rlpips.distance(3 * x, x, weights=weights)
    with pytest.raises(FileNotFoundError, match="nothing.png"):
        rlpips.distance("nothing.png", x, weights=weights)
    with pytest.raises(rlpips.ImageError, match="a and b: 20 x 64 pixels are too few, .* needs 31 x 31"):
        rlpips.distance(x[:, :, :20], x[:, :, :20], weights=weights)


def test_files_too_small_are_named(folder, weights):
    tiny = np.zeros((20, 20, 3), np.uint8)
    for a, b in ((folder / "4.png", tiny), (tiny, str(folder / "4.png"))):
        with pytest.raises(rlpips.ImageError, match=f"{folder / '4.png'}: 20 x 20 pixels are too few"):
            rlpips.distance(a, b, weights=weights)


def test_the_documented_number(real_weights, shared):
    folder = shared / "images" / "lpips-examples"
    ref, p0, p1 = (folder / f"ex_{name}.png" for name in ("ref", "p0", "p1"))
    assert rlpips.distance(ref, p0, weights="standard") == pytest.approx(0.72188, abs=1e-5)
    assert rlpips.distance(ref, p1, weights="standard", net="vgg") == pytest.approx(0.42166, abs=1e-5)


def test_the_documented_scale_is_that_of_the_metric(shared):
    results = json.loads((ROOT / "benchmarks" / "results" / "scale.json").read_text())
    rows = {row["change"]: row for row in results["rows"]}
    written = re.search(
        r"about (\S+) from itself as a JPEG of quality 70,\s+at (\S+) for quality 40, (\S+) for 20 and (\S+) for 10, "
        r"and at (\S+) from another photo",
        rlpips.distance.__doc__,
    )
    names = *(f"JPEG, quality {quality}" for quality in (70, 40, 20, 10)), "another photo"
    for name, number in zip(names, written.groups(), strict=True):
        assert f"{rows[name]['median']:.{len(number) - 2}f}" == number
    files = sorted((shared / "images" / "photos").glob("bsds-*.jpg"))[:12]
    photos = [rlpips.load_image(path)[3:227, 3:227] for path in files]
    for quality in (70, 20):
        median = np.median([rlpips.distance(photo, scale.jpeg(photo, quality)) for photo in photos])
        row = rows[f"JPEG, quality {quality}"]
        assert row["10 %"] < median < row["90 %"]
    assert rlpips.distance(photos[0], photos[-1]) == pytest.approx(rows["another photo"]["median"], rel=0.3)


def test_the_default_needs_nothing_but_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("RLPIPS_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("RLPIPS_OFFLINE", "1")
    x, y = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    expected = rlpips.LPIPS(weights="robust")(x, y).item()
    assert rlpips.distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert expected > 0
    assert not (tmp_path / "empty").exists()
    with pytest.raises(
        ValueError, match=r"no robust weights for net='squeeze'; .* LPIPS' own are weights='standard'"
    ):
        rlpips.distance(x, y, net="squeeze")


@pytest.fixture
def folder(tmp_path):
    for i, size in enumerate([(64, 64), (64, 64), (80, 64), (64, 64), (20, 20)]):
        data = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(data).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_text("not an image")
    return tmp_path


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_pairs_are_measured_in_order_and_failures_told(folder, weights, batch_size):
    metric = rlpips.LPIPS(weights=weights)
    paths = [folder / f"{i}.png" for i in range(6)]
    pairs = [(a, b) for a in paths for b in paths]
    measured = list(measure_pairs(pairs, metric, batch_size=batch_size))
    assert [(m.a, m.b) for m in measured] == pairs
    for m in measured:
        if paths[5] in (m.a, m.b):
            assert list(m.unreadable) == [paths[5]]
            assert "not an image" in m.unreadable[paths[5]]
        elif (paths[2] == m.a) != (paths[2] == m.b) or (paths[4] == m.a) != (paths[4] == m.b):
            assert "differ in size" in m.problem
        elif paths[4] == m.a:
            assert "20 x 20 pixels are too few" in m.problem
        else:
            assert (m.problem, m.unreadable) == ("", {})
            assert m.distance == pytest.approx(rlpips.distance(m.a, m.b, weights=weights), abs=1e-6)
    resized = list(measure_pairs(pairs, metric, batch_size=batch_size, resize=(40, 48)))
    assert sum(not m.unreadable for m in resized) == 25


@pytest.mark.parametrize(("batch_size", "size"), [(1, None), (64, None), (2, (40, 48))])
def test_all_pairs_measure_as_pair_by_pair(folder, weights, batch_size, size):
    metric = rlpips.LPIPS(weights=weights)
    paths = [folder / f"{i}.png" for i in (0, 2, 5, 1, 4, 3, 0)]
    done = []
    found = list(measure_all(paths, metric, batch_size=batch_size, resize=size, progress=done.append))
    expected = list(measure_pairs(itertools.combinations(paths, 2), metric, resize=size))
    assert [(m.a, m.b, m.problem, m.unreadable) for m in found] == [
        (m.a, m.b, m.problem, m.unreadable) for m in expected
    ]
    distances = [m.distance for m in expected]
    assert [m.distance for m in found] == pytest.approx(distances, abs=1e-7, nan_ok=True)
    assert sum(done) == sum(distance == distance for distance in distances)


def storages_of_images(height, width):
    """Return where in memory the tensors of this size lie that are alive."""
    tensors = (each for each in gc.get_objects() if type(each) is torch.Tensor)
    return {each.untyped_storage().data_ptr() for each in tensors if each.shape[-2:] == (height, width)}


def test_few_images_are_kept_however_many_pairs_are_measured(weights, tmp_path):
    for k in range(24):
        data = np.random.default_rng(k).integers(0, 256, (33, 47, 3), dtype=np.uint8)
        Image.fromarray(data).save(tmp_path / f"{k}.png")
    pairs = itertools.pairwise(sorted(tmp_path.iterdir()))
    measured = measure_pairs(pairs, rlpips.LPIPS(weights=weights), batch_size=2)
    kept = [len(storages_of_images(33, 47)) for _ in measured]
    assert len(kept) == 23
    assert 0 < max(kept) <= 2 * 2 * 2  # a batch of two pairs, and as many images remembered
