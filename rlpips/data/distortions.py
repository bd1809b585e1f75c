"""Image distortions, each with a strength from 0 (almost invisible) to 1 (plainly visible).

A distortion is a function `(image, strength, rng)`. It takes an array `(H, W, 3)`, uint8, or a tensor
`(3, H, W)`, floating point in [-1, 1], and returns the same kind of thing. How many numbers it draws from
`rng` depends only on the size of the image. So two calls with equal generators differ only in their strength.

| name | at strength 1 |
| --- | --- |
| gaussian-noise, uniform-noise | standard deviation 0.2 of the range of values |
| salt-and-pepper | 12% of the pixels black or white |
| gaussian-blur | standard deviation 4 pixels |
| motion-blur | along a line of 16 pixels, in any direction |
| jpeg, webp | quality 3; 1 |
| nearest, bilinear, bicubic | down to an eighth of height and width, and up again |
| hue | chroma rotated by 75 degrees, in either direction |
| saturation | no colour, or three times as much |
| colour-cast | 0.25 of the range added to one colour and subtracted from the opposite one |
| contrast | divided or multiplied by 3 |
| brightness | 0.35 of the range lighter or darker |
| gamma | exponent 3 or 1/3 |
| warp | smooth random displacements, 4 pixels root mean square |
| shift | by 6 pixels, in any direction |
| quantisation | 3 levels for each channel |
| A+B | A, then B, both at the given strength |
"""
# mypy: disable-error-code="no-any-return"
# (With NumPy's annotations the result of most arithmetic is Any.)

import functools
import io
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from rlpips.errors import ImageError

ImageT = TypeVar("ImageT", npt.NDArray[np.uint8], Tensor)
Values = npt.NDArray[np.float64]  # (H, W, 3) in [0, 1]


class Distortion(Protocol):
    """A function that distorts an image, an array `(H, W, 3)` or a tensor `(3, H, W)`."""

    def __call__(self, image: ImageT, strength: float, rng: np.random.Generator) -> ImageT:
        """Return a distorted copy. `strength` is in [0, 1]; `rng` makes all random draws."""


DISTORTIONS: dict[str, Distortion] = {}
"""All distortions by name."""


def _distortion(name: str) -> Callable[[Callable[[Values, float, np.random.Generator], Values]], Distortion]:
    """Turn a function of values in [0, 1] into a distortion of images, and add it to `DISTORTIONS`."""

    def register(distort: Callable[[Values, float, np.random.Generator], Values]) -> Distortion:
        @functools.wraps(distort)
        def distort_image(image: Any, strength: float, rng: np.random.Generator) -> Any:
            if not 0 <= strength <= 1:
                raise ValueError(f"strength must be in [0, 1], got {strength}")
            values = np.clip(distort(_to_values(image), float(strength), rng), 0, 1)
            if isinstance(image, Tensor):
                return torch.from_numpy(values).movedim(2, 0).mul(2).sub(1).to(image)
            return _to_bytes(values)

        DISTORTIONS[name] = distort_image
        return distort_image

    return register


def _to_values(image: npt.NDArray[np.uint8] | Tensor) -> Values:
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ImageError(
                f"a tensor must be (3, H, W), floating point, got {tuple(image.shape)} {image.dtype}"
            )
        return (image.detach().cpu().double().movedim(0, 2).numpy() + 1) / 2
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image must be a NumPy array or a tensor, got {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(f"an array must be (H, W, 3), uint8, got {image.shape} {image.dtype}")
    return image / 255.0


def _to_bytes(values: Values) -> npt.NDArray[np.uint8]:
    return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)


@_distortion("gaussian-noise")
def gaussian_noise(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Add independent Gaussian noise to each value."""
    return values + 0.2 * strength * rng.standard_normal(values.shape)


@_distortion("uniform-noise")
def uniform_noise(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Add independent uniform noise to each value."""
    return values + 0.2 * strength * rng.uniform(-np.sqrt(3), np.sqrt(3), values.shape)


@_distortion("salt-and-pepper")
def salt_and_pepper(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Make some pixels black or white. A higher strength also changes the pixels of a lower one."""
    hit = rng.random((*values.shape[:2], 1)) < 0.12 * strength
    return np.where(hit, rng.integers(0, 2, hit.shape).astype(float), values)


@_distortion("gaussian-blur")
def gaussian_blur(values: Values, strength: float, rng: np.random.Generator) -> Values:  # noqa: ARG001
    """Blur with a Gaussian. The image is mirrored at its borders."""
    sigma = 4 * strength
    radius = int(np.ceil(3 * sigma))
    if radius == 0:
        return values
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        length = values.shape[axis]
        padding = [(radius, radius) if k == axis else (0, 0) for k in range(3)]
        padded = np.pad(values, padding, mode="symmetric")
        shifted = [padded.take(range(k, k + length), axis) for k in range(weights.size)]
        values = np.tensordot(weights, np.stack(shifted), 1)
    return values


@_distortion("motion-blur")
def motion_blur(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Blur along a line, like a moving camera."""
    angle = rng.uniform(0, np.pi)
    length = 16 * strength
    places = np.linspace(-length / 2, length / 2, 1 + 2 * int(np.ceil(length)))
    shifted = [_shift_pixels(values, np.sin(angle) * place, np.cos(angle) * place) for place in places]
    return np.mean(shifted, axis=0)


@_distortion("jpeg")
def jpeg(values: Values, strength: float, rng: np.random.Generator) -> Values:  # noqa: ARG001
    """Compress with JPEG, with all channels at full resolution."""
    return _compress(values, "JPEG", quality=round(97 - 94 * strength**0.5), subsampling=0)


@_distortion("webp")
def webp(values: Values, strength: float, rng: np.random.Generator) -> Values:  # noqa: ARG001
    """Compress with lossy WebP."""
    return _compress(values, "WEBP", quality=round(100 - 99 * strength**0.5))


@_distortion("nearest")
def nearest(values: Values, strength: float, rng: np.random.Generator) -> Values:  # noqa: ARG001
    """Reduce the image and enlarge it again; take nearest pixels."""
    return _reduce_and_enlarge(values, strength, Image.Resampling.NEAREST)


@_distortion("bilinear")
def bilinear(values: Values, strength: float, rng: np.random.Generator) -> Values:  # noqa: ARG001
    """Reduce the image and enlarge it again; interpolate linearly."""
    return _reduce_and_enlarge(values, strength, Image.Resampling.BILINEAR)


@_distortion("bicubic")
def bicubic(values: Values, strength: float, rng: np.random.Generator) -> Values:  # noqa: ARG001
    """Reduce the image and enlarge it again; interpolate with cubic splines."""
    return _reduce_and_enlarge(values, strength, Image.Resampling.BICUBIC)


def _random_sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


# From RGB to luma and two colour differences, as in YUV, and back.
_TO_YUV = np.array([[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.100]])
_FROM_YUV = np.linalg.inv(_TO_YUV)


@_distortion("hue")
def hue(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Rotate all colours around the grey axis."""
    angle = _random_sign(rng) * np.deg2rad(75) * strength
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return values @ (_FROM_YUV @ turn @ _TO_YUV).T


@_distortion("saturation")
def saturation(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Make colours weaker or stronger."""
    factor = 1 + 2 * strength if rng.random() < 0.5 else 1 - strength
    return values @ (_FROM_YUV @ np.diag([1, factor, factor]) @ _TO_YUV).T


@_distortion("colour-cast")
def colour_cast(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Tint the image. Except for clipping, its mean value stays."""
    angle = rng.uniform(0, 2 * np.pi) + 2 * np.pi / 3 * np.arange(3)
    return values + 0.25 * strength * np.cos(angle)


@_distortion("contrast")
def contrast(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Move all values closer to their mean, or away from it."""
    mean = values.mean()
    return mean + (values - mean) * 3.0 ** (_random_sign(rng) * strength)


@_distortion("brightness")
def brightness(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Make all pixels lighter or darker by the same amount."""
    return values + _random_sign(rng) * 0.35 * strength


@_distortion("gamma")
def gamma(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Raise values to a power. Black and white stay."""
    return np.clip(values, 0, 1) ** (3.0 ** (_random_sign(rng) * strength))


@_distortion("warp")
def warp(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Move pixels by a smooth random field, with a control point every 16 pixels."""
    height, width = values.shape[:2]
    coarse = rng.standard_normal((2, height // 16 + 2, width // 16 + 2)).astype(np.float32)
    smooth = [Image.fromarray(field).resize((width, height), Image.Resampling.BICUBIC) for field in coarse]
    fields = np.stack([np.asarray(field, dtype=float) for field in smooth])
    fields *= 4 * strength / np.sqrt(np.mean(np.sum(fields**2, axis=0)))
    return _shift_pixels(values, fields[0], fields[1])


@_distortion("shift")
def shift(values: Values, strength: float, rng: np.random.Generator) -> Values:
    """Move the whole image, mirrored at its borders."""
    angle = rng.uniform(0, 2 * np.pi)
    return _shift_pixels(values, 6 * strength * np.sin(angle), 6 * strength * np.cos(angle))


@_distortion("quantisation")
def quantisation(values: Values, strength: float, rng: np.random.Generator) -> Values:  # noqa: ARG001
    """Round each channel to a few levels."""
    steps = round(255 * (2 / 255) ** strength)
    return np.rint(values * steps) / steps


def combine(first: str, second: str) -> Distortion:
    """Add the distortion 'FIRST+SECOND' to `DISTORTIONS`: one after the other, both at the same strength.

    Raises:
        KeyError: there is no distortion of such a name.
    """
    one, other = DISTORTIONS[first], DISTORTIONS[second]

    def both(values: Values, strength: float, rng: np.random.Generator) -> Values:
        image = torch.from_numpy(2 * values - 1).movedim(2, 0)
        return _to_values(other(one(image, strength, rng), strength, rng))

    both.__doc__ = f"Apply {first}, then {second}."
    return _distortion(f"{first}+{second}")(both)


for _first, _second in (
    ("gaussian-blur", "gaussian-noise"),
    ("bicubic", "jpeg"),
    ("motion-blur", "webp"),
    ("warp", "uniform-noise"),
    ("colour-cast", "jpeg"),
    ("gamma", "quantisation"),
    ("saturation", "bilinear"),
    ("shift", "contrast"),
):
    combine(_first, _second)


def _shift_pixels(values: Values, dy: Any, dx: Any) -> Values:
    """Return for each pixel the value `dy` pixels below it and `dx` to its right, interpolated linearly."""
    height, width = values.shape[:2]
    y = _mirror(np.arange(height)[:, None] + dy + np.zeros((1, width)), height)
    x = _mirror(np.arange(width)[None, :] + dx + np.zeros((height, 1)), width)
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    y1, x1 = np.minimum(y0 + 1, height - 1), np.minimum(x0 + 1, width - 1)
    wy, wx = (y - y0)[..., None], (x - x0)[..., None]
    above = values[y0, x0] * (1 - wx) + values[y0, x1] * wx
    below = values[y1, x0] * (1 - wx) + values[y1, x1] * wx
    return above * (1 - wy) + below * wy


def _mirror(places: Values, length: int) -> Values:
    """Reflect coordinates back into [0, length - 1]."""
    last = length - 1
    if last == 0:
        return np.zeros_like(places)
    return last - np.abs(places % (2 * last) - last)


def _compress(values: Values, kind: str, **options: int) -> Values:
    file = io.BytesIO()
    Image.fromarray(_to_bytes(values)).save(file, kind, **options)
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")) / 255.0


def _reduce_and_enlarge(values: Values, strength: float, filter: Image.Resampling) -> Values:
    height, width = values.shape[:2]
    factor = 8.0**-strength
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    if small == (width, height):
        return values
    image = Image.fromarray(_to_bytes(values))
    return np.asarray(image.resize(small, filter).resize((width, height), filter)) / 255.0
