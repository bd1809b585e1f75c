"""A perceptual image distance that is hard to fool: LPIPS and robust metrics in one PyTorch module."""

import lazy_loader

from ._version import __version__ as __version__

# What the package exports stands in __init__.pyi, and is imported on first use (PEP 562): `import rlpips`
# costs nothing, and `rlpips --help` needs no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
