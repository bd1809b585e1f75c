"""The networks whose features are compared: AlexNet, VGG16 and SqueezeNet, cut into slices."""

from rlpips.backbones.architectures import ARCHITECTURES, Architecture, Backbone, architecture

__all__ = ["ARCHITECTURES", "Architecture", "Backbone", "architecture"]
