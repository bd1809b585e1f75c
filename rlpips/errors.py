"""The exceptions of the package, one for each cause that a caller handles differently."""

import errno
from typing import TypeGuard

__all__ = [
    "CheckpointError",
    "DatasetError",
    "DownloadError",
    "ImageError",
    "MissingExtraError",
    "UndefinedDistanceError",
    "WeightsUnavailableError",
]


class CheckpointError(ValueError):
    """A file is not the expected checkpoint: it is unreadable, unsafe, damaged, or of something else."""


class WeightsUnavailableError(RuntimeError):
    """Weights are not on this machine and could not be downloaded, or this user may not read them."""


class DownloadError(OSError):
    """A file could not be downloaded from any of its addresses. The message gives the reason for each."""


class ImageError(ValueError):
    """A file or an array is not an image, or not one that can be measured."""


class DatasetError(ValueError):
    """A folder, file or archive of a data set does not have the expected layout or content."""


class UndefinedDistanceError(ValueError):
    """A metric gives NaN for an image.

    Attributes:
        image_id: the image's position, in its batch or in the data set; -1 if it is not known.
    """

    def __init__(self, message: str, image_id: int = -1) -> None:
        super().__init__(message, image_id)
        self.image_id = image_id

    def __str__(self) -> str:
        return str(self.args[0])


class MissingExtraError(ImportError):
    """A package is missing that an optional extra installs."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}'; install it with: pip install 'rlpips[{extra}]'")


def is_system_error(error: Exception) -> TypeGuard[OSError]:
    """Whether the system could not read a file, which may pass; otherwise a decoder found damaged bytes.

    Errors of the system have a number. A decoder's error has none, or that of a seek to a wrong place.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def printable(text: str, limit: int = 200) -> str:
    r"""Make foreign text safe to show in a message: escape what is not printable, and cut long text.

    Args:
        text: from a file, a file's name or a server. Its control characters could control a terminal.
        limit: the most characters to return.

    >>> printable("Not\x1b[2J Found")
    'Not\\x1b[2J Found'
    """
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
