"""The package's own exceptions: one for each cause that a caller would treat differently."""


class CheckpointError(ValueError):
    """A file is not the checkpoint it should be: unreadable, unsafe, damaged, or made for something else."""


class WeightsUnavailableError(RuntimeError):
    """Weights are not on this machine and could not be fetched."""


class ImageError(ValueError):
    """A file or an array is not an image that can be measured."""


class DatasetError(ValueError):
    """A data set's folder, file or archive is not what its layout demands."""


class MissingExtraError(ImportError):
    """A function needs a package that an optional extra installs."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}'; install it with: pip install 'rlpips[{extra}]'")
