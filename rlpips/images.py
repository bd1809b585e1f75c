"""Image files, arrays and tensors, brought to what the metric takes. Only this module knows file formats.

What becomes of a file:

| file | outcome |
| --- | --- |
| 8-bit RGB | as it is |
| grey, palette, black and white | converted to RGB |
| alpha | dropped where every pixel is opaque, else refused but by `load_image`: the background is not known |
| 16 bits a channel | the higher 8 bits, as in `lpips` |
| CMYK, YCbCr, HSV | converted to RGB, without colour profiles |
| EXIF orientation | applied |
| colour profile | ignored, as in `lpips` |
| several frames | refused, but for MPO, a camera's JPEG with previews: its first |
| float, 32-bit integer, Lab, raw (DNG) | refused: their range or rendering is not known |
| empty, truncated, not an image, larger than Pillow's limit | refused |
"""

import io
import re
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rlpips.errors import ImageError

Array = npt.NDArray[Any]

# How the files of common formats begin, read here or not.
_START = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP|P[1-7Ff]\s|8BPS|qoif|\0\0[\1\2]\0"
    rb"|.{4}ftyp(?:avi|hei|hev|mif|msf)|\0{3}\x0c(?:jP|JXL) |\xffO\xffQ|\xff\x0a",
    re.DOTALL,
)


def load_image(path: str | PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read an image file as an array `(H, W, 3)`, uint8, RGB.

    8-bit files give what `lpips.load_image` gives, so the alpha of transparent pixels is dropped, of which a
    warning tells; the module's table tells what becomes of others.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is not an image that can be measured; the message names it and says why.
    """
    return read_image(path, drop_alpha=True)


def read_image(path: str | PathLike[str], *, drop_alpha: bool = False) -> npt.NDArray[np.uint8]:
    """Read an image file as `load_image` does, but refuse transparent pixels unless told to drop alpha.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is not an image that can be measured; the message names it and says why.
    """
    path = Path(path)
    if path.suffix.lower() == ".dng":
        raise ImageError(f"{path}: raw photographs are not rendered here; convert it to PNG or TIFF first")
    try:
        with Image.open(path) as image:
            return to_rgb(image, drop_alpha=drop_alpha)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, not an image") from None
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        raise ImageError(
            f"{path}: {'the file is empty' if empty else 'not an image that Pillow can read'}"
        ) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}; if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except Exception as error:  # damaged bytes make decoders raise almost anything
        raise ImageError(f"{path}: the file is damaged ({error})") from error


def may_be_image(path: Path) -> bool:
    """Tell whether a file begins as images do, or nothing can be told of it, as it is empty or not readable.

    It says which files of a folder are other things: whether an image is whole, `load_image` finds out.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return True
    return not start or _START.match(start) is not None


def to_rgb(image: Image.Image, *, drop_alpha: bool = False) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image to an array `(H, W, 3)`, uint8, RGB, by the module's table.

    With `drop_alpha` transparent pixels have the colour that is stored for them, and a warning says so.

    Raises:
        ImageError: it has several frames, transparent pixels, or a mode whose range is not known.
        OSError: its file is truncated.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ImageError(f"it has {frames} frames; extract the one to be measured")
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
        rgba = upright.convert("RGBA")
        transparent = rgba.getchannel("A").getextrema()[0] != 255
        if transparent and not drop_alpha:
            raise ImageError(
                "it has transparent pixels, whose colour depends on the background; flatten it first"
            )
        if transparent:
            warnings.warn(  # without the file's name, so that Python says it once
                "load_image drops alpha, as in lpips: transparent pixels have the colour that is stored for "
                "them, which no viewer shows; flatten images on a background first",
                UserWarning,
                stacklevel=4,
            )
        upright = rgba
    return np.array(upright.convert("RGB"))


def to_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode an array `(H, W, 3)`, uint8, RGB, as the content of a PNG file, without loss."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def to_tensor(image: Any, name: str = "image") -> tuple[Tensor, bool]:
    """Bring anything that holds images to a float32 tensor in [-1, 1].

    Args:
        image: a path; a Pillow image; an array `(H, W)`, `(H, W, 3)` or `(N, H, W, 3)`, uint8 or float in
            [0, 1]; or a tensor `(3, H, W)` or `(N, 3, H, W)`, uint8 or float in [-1, 1].
        name: what error messages call it.

    Returns:
        A tensor `(N, 3, H, W)`, on the device of a tensor that was given, and whether it was a batch.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: it is not an image that can be measured.
        TypeError: none of the above.
    """
    if isinstance(image, str | PathLike):
        image = read_image(image)
    elif isinstance(image, Image.Image):
        try:
            image = to_rgb(image)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None
    if isinstance(image, Tensor):
        tensor, least = image.detach(), -1.0
    elif isinstance(image, np.ndarray):
        array = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
        if array.ndim not in (3, 4) or array.shape[-1] != 3:
            raise ImageError(f"{name}: an array must have shape (H, W, 3) or (N, H, W, 3), got {image.shape}")
        if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
            raise ImageError(f"{name}: an array must be uint8, or float in [0, 1], got {array.dtype}")
        # The copy also straightens negative strides and foreign byte orders, which torch does not take.
        native = array.astype(np.uint8 if array.dtype == np.uint8 else np.float32, order="C")
        tensor, least = torch.from_numpy(native).movedim(-1, -3), 0.0
    else:
        raise TypeError(
            f"{name} must be a path, a Pillow image, a NumPy array or a tensor, got {type(image).__name__}"
        )
    if tensor.ndim not in (3, 4) or tensor.shape[-3] != 3:
        raise ImageError(
            f"{name}: a tensor must have shape (3, H, W) or (N, 3, H, W), got {tuple(tensor.shape)}"
        )
    batched = tensor.ndim == 4
    if tensor.dtype == torch.uint8:
        tensor = tensor.float().div_(127.5).sub_(1)
    elif tensor.is_floating_point():
        tensor = tensor.float()
        if tensor.numel() and not (tensor.min() >= least - 1e-3 and tensor.max() <= 1 + 1e-3):
            kind = "float array" if least == 0 else "float tensor"
            found = (
                "it holds NaN"
                if tensor.isnan().any()
                else f"its values are in [{tensor.min():.4g}, {tensor.max():.4g}]"
            )
            raise ImageError(f"{name}: a {kind} must lie in [{least:.0f}, 1], but {found}")
        tensor = tensor if least == -1 else 2 * tensor - 1
    else:
        raise ImageError(f"{name}: a tensor must be uint8, or float in [-1, 1], got {tensor.dtype}")
    return tensor if batched else tensor[None], batched


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `(N, 3, H, W)` to `size`, (height, width), bilinearly with antialiasing."""
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
