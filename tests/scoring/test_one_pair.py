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
from rlpips.scoring import load_pair, measure_pairs

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


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
