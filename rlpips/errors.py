"""The package's own exceptions: one for each cause that a caller would treat differently."""

import errno
from typing import TypeGuard


class CheckpointError(ValueError):
    """A file is not the checkpoint it should be: unreadable, unsafe, damaged, or made for something else."""


class WeightsUnavailableError(RuntimeError):
    """Weights are not on this machine and could not be fetched, or this user may not read them."""


class ImageError(ValueError):
    """A file or an array is not an image that can be measured."""


class DatasetError(ValueError):
    """A data set's folder, file or archive is not what its layout demands."""


class UndefinedDistanceError(ValueError):
    """A metric gives NaN for an image, which is no distance.

    Attributes:
        image_id: the image's position, in its batch or in the data set; -1 where it is not known.
    """

    def __init__(self, message: str, image_id: int = -1) -> None:
        super().__init__(message, image_id)
        self.image_id = image_id

    def __str__(self) -> str:
        return str(self.args[0])


class MissingExtraError(ImportError):
    """A function needs a package that an optional extra installs."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}'; install it with: pip install 'rlpips[{extra}]'")


def is_system_error(error: Exception) -> TypeGuard[OSError]:
    """Tell whether the system could not read a file, which may pass, or a decoder met damaged bytes.

    The system's errors have a number. Decoders' have none, or that of a seek to a damaged place.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def printable(text: str, limit: int = 200) -> str:
    r"""Return foreign text as a message may show it: what is not printable escaped, and cut.

    Args:
        text: of a file, a file's name or a server; its control characters would steer a terminal.
        limit: the most characters returned.

    >>> printable("Not\x1b[2J Found")
    'Not\\x1b[2J Found'
    """
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
