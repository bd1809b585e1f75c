"""Named weights: where they come from, their files on this machine, and what is in a checkpoint file."""

import lazy_loader

# The names are in __init__.pyi, and are imported on first use: `rlpips weights list` does not need torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
