"""Train metrics: naturally, adversarially or contrastively, the heads or the whole network."""

import lazy_loader

# The names are listed in __init__.pyi and imported on first use, so that the command line reads the fields of
# a recipe without importing torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
