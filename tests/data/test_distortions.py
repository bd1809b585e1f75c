import itertools

import numpy as np
import pytest
import torch

import rlpips
from rlpips.data import DISTORTIONS, combine, distortions

STRENGTHS = (0.0, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0)
RNG = np.random.default_rng


def smooth(seed=0, size=64):
    """A made-up image with edges, gradients and colours."""
    y, x = np.mgrid[:size, :size] / size
    waves = np.stack([np.sin((3 + k) * x + (5 - k) * y + seed + k) for k in range(3)], axis=2)
    image = 128 + 90 * waves
    image[size // 4 : size // 2, size // 4 : size // 2] = (200, 60, 30)
    return np.clip(image, 0, 255).astype(np.uint8)


def error(a, b):
    return float(np.mean((a.astype(float) - b) ** 2))


@pytest.fixture(scope="module")
def patches(shared):
    files = sorted((shared / "images" / "photos").glob("*.jpg"))[::90]
    return [rlpips.load_image(file)[40:104, 40:104] for file in files]


@pytest.mark.parametrize("name", DISTORTIONS)
def test_more_strength_is_more_difference_on_photos(patches, name):
    errors = [
        np.mean([error(DISTORTIONS[name](patch, s, RNG(i)), patch) for i, patch in enumerate(patches)])
        for s in STRENGTHS
    ]
    assert all(a < b for a, b in itertools.pairwise(errors)), errors
    assert errors[0] ** 0.5 < 4, "strength 0 is nearly nothing (WebP always halves the resolution of colour)"
    assert errors[-1] ** 0.5 > 12, "strength 1 is plain"


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_generator_decides_everything(name):
    image = smooth()
    before = image.copy()
    distort = DISTORTIONS[name]
    first, again = distort(image, 0.6, RNG(1)), distort(image, 0.6, RNG(1))
    assert np.array_equal(image, before)
    assert np.array_equal(first, again)
    assert (first.dtype, first.shape) == (np.uint8, image.shape)
    others = [distort(image, 0.6, RNG(seed)) for seed in range(2, 8)]
    is_random = any(not np.array_equal(first, other) for other in others)
    assert is_random == (RNG(1).bit_generator.state != state_after(distort, image, 0.6))


def state_after(distort, image, strength):
    rng = RNG(1)
    distort(image, strength, rng)
    return rng.bit_generator.state


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_strength_does_not_change_what_is_drawn(name):
    image = smooth()
    assert state_after(DISTORTIONS[name], image, 0.0) == state_after(DISTORTIONS[name], image, 0.9)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_tensors_and_arrays_are_distorted_alike(name):
    image = smooth()
    tensor = torch.from_numpy(image).permute(2, 0, 1).double() / 127.5 - 1
    of_tensor = DISTORTIONS[name](tensor, 0.5, RNG(3))
    assert (of_tensor.dtype, of_tensor.shape) == (torch.float64, tensor.shape)
    assert of_tensor.abs().max() <= 1
    of_array = torch.from_numpy(DISTORTIONS[name](image, 0.5, RNG(3))).permute(2, 0, 1).double() / 127.5 - 1
    assert (of_tensor - of_array).abs().max() <= 1.01 / 255
    assert DISTORTIONS[name](tensor.float(), 0.5, RNG(3)).dtype == torch.float32


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (17, 9)])
@pytest.mark.parametrize("strength", [0, 0.5, 1])
def test_images_of_any_size_are_taken(name, shape, strength):
    image = RNG(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert DISTORTIONS[name](image, strength, RNG(0)).shape == image.shape


def test_what_is_no_image_or_strength_is_refused():
    image = smooth()
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"strength must be in \[0, 1\], got"):
            distortions.jpeg(image, strength, RNG(0))
    for wrong in (image[..., 0], image[None], image[..., :2], image.astype(float)):
        with pytest.raises(rlpips.ImageError, match=r"an array must be \(H, W, 3\), uint8, got"):
            distortions.jpeg(wrong, 0.5, RNG(0))
    for wrong in (torch.zeros(1, 3, 8, 8), torch.zeros(8, 8, 3), torch.zeros(3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(rlpips.ImageError, match=r"a tensor must be \(3, H, W\), floating point, got"):
            distortions.jpeg(wrong, 0.5, RNG(0))
    with pytest.raises(TypeError, match="a NumPy array or a tensor, got list"):
        distortions.jpeg([1], 0.5, RNG(0))


def test_what_some_of_them_do():
    image = smooth()
    assert np.array_equal(distortions.gaussian_blur(image, 0, RNG(0)), image)
    assert len(np.unique(distortions.quantisation(image, 1, RNG(0)))) == 3
    flat = np.full((32, 32, 3), 100, dtype=np.uint8)
    for name in ("gaussian-blur", "motion-blur", "warp", "shift", "nearest", "contrast", "hue", "saturation"):
        assert np.abs(DISTORTIONS[name](flat, 1, RNG(0)).astype(int) - 100).max() <= 1, name
    dot = np.zeros((33, 33, 3), dtype=np.uint8)
    dot[16, 16] = 255
    moved = np.argwhere(distortions.shift(dot, 1, RNG(0))[..., 0] > 40).mean(axis=0)
    assert np.hypot(*(moved - 16)) == pytest.approx(6, abs=0.8)
    hit_less = distortions.salt_and_pepper(image, 0.3, RNG(0)) != image
    hit_more = distortions.salt_and_pepper(image, 0.8, RNG(0)) != image
    assert not (hit_less & ~hit_more).any()
    noise = distortions.gaussian_noise(np.full((200, 200, 3), 128, np.uint8), 0.5, RNG(0)) - 128.0
    assert noise.std() == pytest.approx(25.5, rel=0.02)
    noise = distortions.uniform_noise(np.full((200, 200, 3), 128, np.uint8), 0.5, RNG(0)) - 128.0
    assert noise.std() == pytest.approx(25.5, rel=0.02)
    pale = distortions.saturation(image, 1, RNG(next(s for s in range(9) if RNG(s).random() >= 0.5)))
    assert np.ptp(pale.astype(int), axis=2).max() <= 2


def test_combinations_are_one_after_the_other(monkeypatch):
    monkeypatch.setattr(distortions, "DISTORTIONS", dict(DISTORTIONS))
    both = combine("shift", "quantisation")
    assert distortions.DISTORTIONS["shift+quantisation"] is both
    assert both.__doc__ == "Apply shift, then quantisation."
    image = smooth()
    one = distortions.quantisation(distortions.shift(image, 0.4, RNG(5)), 0.4, RNG(0))
    assert error(both(image, 0.4, RNG(5)), one) < 3
    with pytest.raises(KeyError, match="nothing"):
        combine("shift", "nothing")


def test_the_table_of_the_module_names_them_all():
    singles = [name for name in DISTORTIONS if "+" not in name]
    assert all(name in distortions.__doc__ for name in singles)
    assert len(DISTORTIONS) - len(singles) >= 8
    for name in singles:
        assert getattr(distortions, name.replace("-", "_")) is DISTORTIONS[name]
