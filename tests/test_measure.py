import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import images
from PIL import Image

import rlpips
from rlpips.measure import measure_all, measure_pairs

EXAMPLES = Path(__file__).parents[1] / "examples"


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


def test_the_model_is_built_once(weights, monkeypatch):
    x, y = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    first = rlpips.distance(x, y, weights=weights)
    content = weights.read_bytes()
    weights.unlink()
    try:
        assert rlpips.distance(x, y, weights=weights) == first
    finally:
        weights.write_bytes(content)


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
    with pytest.raises(rlpips.ImageError, match=r"80 x 64 and 64 x 50 pixels; resize=\(height, width\)"):
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
    with pytest.raises(ValueError, match="in0 must be at least 31 x 31"):
        rlpips.distance(x[:, :, :20], x[:, :, :20], weights=weights)


def test_the_documented_number(real_weights, shared):
    folder = shared / "images" / "lpips-examples"
    ref, p0, p1 = (folder / f"ex_{name}.png" for name in ("ref", "p0", "p1"))
    assert rlpips.distance(ref, p0, weights="standard") == pytest.approx(0.72188, abs=1e-5)
    assert rlpips.distance(ref, p1, weights="standard", net="vgg") == pytest.approx(0.42166, abs=1e-5)


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
