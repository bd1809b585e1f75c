"""Image files, arrays and tensors, converted to what the metric takes. Only this module knows file formats.

The formats are PNG, JPEG, WebP, AVIF (where Pillow reads it), JPEG 2000, TIFF, BMP, GIF, PPM, PGM and PBM.
The content of a file decides, not its suffix. Pillow's other decoders are switched off: the one for EPS runs
Ghostscript, and rare ones are not well tested. How files are read:

| file | result |
| --- | --- |
| 8-bit RGB | unchanged |
| grey, palette, black and white | converted to RGB |
| alpha, all pixels opaque | alpha is dropped |
| alpha, some pixels transparent | drawn on a background; refused without one; `load_image` drops alpha |
| 16 bits per channel | the higher 8 bits, as in `lpips` |
| CMYK, YCbCr, HSV | converted to RGB, without colour profiles |
| EXIF orientation | applied |
| colour profile | ignored, as in `lpips` |
| several frames | refused; of MPO, a camera's JPEG with previews, the first frame is read |
| float, 32-bit integer, Lab, raw (DNG) | refused, because their range or rendering is not known |
| empty, truncated, not an image, another format, larger than Pillow's limit | refused |
"""

import importlib.util
import io
import operator
import re
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from rlpips.errors import ImageError, is_system_error
from rlpips.metric.inputs import as_batch

__all__ = ["load_image", "read_image", "resize", "to_png", "to_rgb", "to_tensor"]

Array = npt.NDArray[Any]
Colour = tuple[int, int, int]

# JPEG's decoder reads MPO, PPM's reads PGM and PBM. AVIF came with Pillow 11.3.
_FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"]
if importlib.util.find_spec("PIL.AvifImagePlugin") is not None:
    _FORMATS.append("AVIF")

# How files of common image formats begin, including formats that are not read here.
_START = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP|P[1-7Ff]\s|8BPS|qoif|\0\0[\1\2]\0"
    rb"|.{4}ftyp(?:avi|hei|hev|mif|msf)|\0{3}\x0c(?:jP|JXL) |\xffO\xffQ|\xff\x0a",
    re.DOTALL,
)


def load_image(path: str | PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read an image file as an array `(H, W, 3)`, uint8, RGB.

    8-bit files give what `lpips.load_image` gives. This drops alpha, with a warning if there are transparent
    pixels. The table in the module's docstring shows how other files are read.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is not an image that can be measured; the message names it and says why.
    """
    return read_image(path, drop_alpha=True)


def read_image(
    path: str | PathLike[str], background: Colour | None = None, *, drop_alpha: bool = False
) -> npt.NDArray[np.uint8]:
    """Read an image file as an array `(H, W, 3)`, uint8, RGB.

    Args:
        path: the file.
        background: the colour behind transparent pixels. Without it they are refused.
        drop_alpha: drop alpha instead, as `load_image` does.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is not an image that can be measured; the message names it and says why.
        MemoryError: there is not enough memory; the message names the file.
        OSError: the file cannot be read now, for example because of its permissions; the message names it.
    """
    path = Path(path)
    if path.suffix.lower() == ".dng":
        raise ImageError(f"{path}: raw photographs are not rendered here; convert it to PNG or TIFF first")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return to_rgb(image, background, drop_alpha=drop_alpha)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, not an image") from None
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        raise ImageError(
            f"{path}: {'the file is empty' if empty else 'not an image in a format that rlpips reads'}"
        ) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}; if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except MemoryError as error:
        raise MemoryError(f"{path}: there is not enough memory to read this image") from error
    except Exception as error:  # damaged bytes make decoders raise almost anything
        if is_system_error(error):
            raise type(error)(f"{path}: cannot be read: {error.strerror}") from error
        raise ImageError(f"{path}: the file is damaged ({error})") from error


def may_be_image(path: Path) -> bool:
    """Return False if a file begins like no common image format.

    Empty and unreadable files return True, because they may have been images. Only the first bytes are read:
    whether the image is complete shows when it is loaded.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return True
    return not start or _START.match(start) is not None


def to_rgb(
    image: Image.Image, background: Colour | None = None, *, drop_alpha: bool = False
) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image to an array `(H, W, 3)`, uint8, RGB, as the table of the module says.

    Args:
        image: the image.
        background: the colour behind transparent pixels. Without it they are refused.
        drop_alpha: drop alpha instead. Transparent pixels then have the colour that is stored for them, and
            there is a warning.

    Raises:
        ImageError: the image has several frames, transparent pixels but no background, or a mode whose range
            is not known.
        OSError: the file of the image is truncated.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ImageError(f"it has {frames} frames; extract the one to measure")
    image.load()
    upright = ImageOps.exif_transpose(image)
    mode = upright.mode
    if mode.startswith("I;16") or (
        mode == "I" and image.format in ("PNG", "PPM")
    ):  # older Pillow opens these as I
        grey = (np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if mode not in ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX", "RGBA", "RGBa", "LA", "La", "PA"):
        raise ImageError(f"mode {mode!r} has no known range; convert it to 8-bit RGB first")
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        transparent = upright.getchannel("A").getextrema()[0] != 255
        if transparent and drop_alpha:
            warnings.warn(  # without the file's name, so that Python shows it only once
                "load_image drops alpha, as in lpips: transparent pixels have the colour that is stored for "
                "them, which no viewer shows; flatten images on a background first",
                UserWarning,
                stacklevel=4,
            )
        elif transparent:
            if background is None:
                raise ImageError(
                    "it has transparent pixels, whose colour depends on what is behind them; flatten it on "
                    "a background first, or pass one to rlpips.distance, such as background='white'"
                )
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, background), upright)
    return np.array(upright.convert("RGB"))


def opaque(colour: str | int | Sequence[int]) -> Colour:
    """Return the (red, green, blue) of a colour, in [0, 255].

    Args:
        colour: a name or code of Pillow's `ImageColor`, a grey level, or (red, green, blue), in [0, 255].

    Raises:
        ValueError: it is not a colour, or not opaque.

    >>> opaque("#ff8000"), opaque(128)
    ((255, 128, 0), (128, 128, 128))
    """
    values: tuple[int, ...]
    try:
        if isinstance(colour, str):
            values = ImageColor.getrgb(colour)
        else:
            values = tuple(
                map(operator.index, [colour] * 3 if isinstance(colour, int | np.integer) else colour)
            )
    except (TypeError, ValueError):
        values = ()
    if len(values) != 3 or not all(0 <= value <= 255 for value in values):
        raise ValueError(
            f"{colour!r} is not an opaque colour; write a name such as 'white', a code such as '#ff8000', "
            "a grey level, or (red, green, blue), in [0, 255]"
        )
    return values[0], values[1], values[2]


def to_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode an array `(H, W, 3)`, uint8, RGB, as the content of a PNG file, which is lossless."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def to_tensor(
    image: Any, name: str = "image", *, normalize: bool = False, background: Colour | None = None
) -> tuple[Tensor, bool]:
    """Convert a file, a Pillow image, an array or a tensor to a float32 tensor in [-1, 1].

    Args:
        image: a path; a Pillow image; an array `(H, W)`, `(H, W, C)` or `(N, H, W, C)`, uint8 or float in
            [0, 1]; or a tensor `(H, W)`, `(C, H, W)` or `(N, C, H, W)`, uint8 or float in [-1, 1]. C is 3 for
            RGB, or 1 for grey.
        name: the name of the argument in error messages.
        normalize: float tensors are in [0, 1] instead of [-1, 1].
        background: the colour behind the transparent pixels of a file or a Pillow image. Without it they are
            refused.

    Returns:
        A tensor `(N, 3, H, W)`, on the device of the tensor that was given, or else the CPU; and whether a
        batch was given.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the image cannot be read or measured; the message says why.
        OSError: the file cannot be read now, for example because of its permissions.
        TypeError: `image` is none of the above.
    """
    if isinstance(image, str | PathLike):
        image = read_image(image, background)
    elif isinstance(image, Image.Image):
        try:
            image = to_rgb(image, background)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None
    if isinstance(image, Tensor):
        tensor = _from_tensor(image.detach(), name, normalize)
    elif isinstance(image, np.ndarray):
        tensor = _from_array(image, name)
    else:
        raise TypeError(
            f"{name} must be a path, a Pillow image, a NumPy array or a tensor, got {type(image).__name__}"
        )
    return as_batch(tensor), tensor.ndim == 4


def _from_array(array: Array, name: str) -> Tensor:
    """Convert an array to a float32 tensor `(C, H, W)` or `(N, C, H, W)` in [-1, 1]."""
    given = array.shape
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3):
        first = len(given) in (3, 4) and given[-3] in (1, 3)
        raise ImageError(
            f"{name}: an array must have shape (H, W), (H, W, C) or (N, H, W, C) with 3 channels, or 1, "
            f"got {given}" + ("; move the channels with np.moveaxis(x, -3, -1)" if first else "")
        )
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"{name}: an array must be uint8, or float in [0, 1], got {array.dtype}")
    # NumPy computes this, because PyTorch's threads would go on spinning while the next file is decoded.
    values = array.astype(np.float32, order="C")
    if array.dtype == np.uint8:
        values /= 127.5
    else:
        if values.size:
            _check_range(f"{name}: a float array", values.min(), values.max(), 0)
        values *= 2
    values -= 1
    return torch.from_numpy(values).movedim(-1, -3)


def _from_tensor(tensor: Tensor, name: str, normalize: bool) -> Tensor:
    """Convert a tensor to float32 in [-1, 1], of the same shape."""
    if tensor.ndim != 2 and (tensor.ndim not in (3, 4) or tensor.shape[-3] not in (1, 3)):
        last = tensor.ndim in (3, 4) and tensor.shape[-1] in (1, 3)
        raise ImageError(
            f"{name}: a tensor must have shape (H, W), (C, H, W) or (N, C, H, W) with 3 channels, or 1, "
            f"got {tuple(tensor.shape)}" + ("; move the channels with x.movedim(-1, -3)" if last else "")
        )
    if tensor.dtype == torch.uint8:
        return tensor.float().div_(127.5).sub_(1)
    if not tensor.is_floating_point():
        raise ImageError(f"{name}: a tensor must be uint8, or float in [-1, 1], got {tensor.dtype}")
    tensor = tensor.float()
    if tensor.numel():
        kind = "a float tensor with normalize=True" if normalize else "a float tensor"
        low, high = torch.stack(tensor.aminmax()).tolist()
        _check_range(f"{name}: {kind}", low, high, 0 if normalize else -1)
    return 2 * tensor - 1 if normalize else tensor


def _check_range(what: str, low: float, high: float, least: int) -> None:
    """Check that values lie in [least, 1], up to rounding.

    Raises:
        ImageError: they do not.
    """
    if low != low:
        raise ImageError(f"{what} must lie in [{least}, 1], but it holds NaN")
    if not (low >= least - 1e-3 and high <= 1 + 1e-3):
        raise ImageError(f"{what} must lie in [{least}, 1], but its values are in [{low:.4g}, {high:.4g}]")


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `(N, 3, H, W)` to (height, width), bilinearly with antialiasing."""
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
