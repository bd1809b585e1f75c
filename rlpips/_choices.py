"""The values of `net` and `version`, for modules that must not import torch."""

NETS = ("alex", "vgg", "squeeze")
VERSIONS = ("0.1", "0.0")
