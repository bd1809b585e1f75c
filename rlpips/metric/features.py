"""From images to features: the part of the metric that scales images and runs the backbone, and filters."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rlpips.backbones.architectures import Backbone
from rlpips.backbones.pixels import PixelFeatures
from rlpips.metric.fast_path import features_in_one_run
from rlpips.metric.formula import at_least_float32
from rlpips.metric.heads import ScalingLayer, has_hooks
from rlpips.metric.reference import Reference, Source, weights_state


class FeatureNetwork(nn.Module):
    """The scaling of images and a backbone. Users may replace both by other modules, or add hooks.

    Attributes:
        scaling_layer: scales images to the statistics of ImageNet.
        net: the backbone.
        version: '0.0' if images are not scaled, else '0.1'.
        L: the number of layers whose features are compared: those of the backbone, then those of the pixels.
        pixels: features of the image itself, or None, as in LPIPS.
        floors: the floor of each layer, `(L,)`, or None, as in LPIPS; see `rlpips.metric.formula`.
    """

    scaling_layer: ScalingLayer
    net: Backbone
    version: str
    L: int
    pixels: PixelFeatures | None
    floors: nn.Parameter | None

    _source: Source | None = None

    def _features(
        self, in0: Tensor | Reference, in1: Tensor | Reference, normalize: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the features of both batches for each layer."""
        run = functools.partial(self._run, normalize=normalize)
        if self._has_own_backbone():
            pairs = features_in_one_run(run, in0, in1)
        else:
            each = (x.features if isinstance(x, Reference) else tuple(run(x)) for x in (in0, in1))
            pairs = zip(*each, strict=False)
        return itertools.islice(pairs, self.L)

    def _run(self, images: Tensor, normalize: bool) -> Iterator[Tensor]:
        """Yield the features of each layer of images `(N, 3, H, W)`. A layer runs when it is asked for."""
        x = 2 * images - 1 if normalize else images
        if self._has_own_backbone():
            for f in self.net.features(self._scale(x)):  # torch.compile cannot trace `yield from`
                yield f
        else:
            features = self.net(self._scale(x))
            for k in range(self.L if self.pixels is None else self.L - self.pixels.scales):
                yield features[k]
        if self.pixels is not None:
            for f in self.pixels(x):
                yield f

    def _scale(self, x: Tensor) -> Tensor:
        """Scale images `(N, 3, H, W)` in [-1, 1] for the backbone."""
        # The paper's first version did not scale images, and its heads were trained so.
        return self.scaling_layer(x) if self.version == "0.1" else x.to(self.like.dtype)

    @property
    def layer_floors(self) -> tuple[Tensor | None, ...]:
        """The floor of each layer, a scalar in float32 or float64; None for each layer without floors."""
        if self.floors is None:
            return (None,) * self.L
        return at_least_float32(self.floors)[: self.L].unbind()

    def _has_own_backbone(self) -> bool:
        """Return whether the backbone's slices may run one by one: `net` is a `Backbone` without hooks."""
        return type(self.net) is Backbone and not has_hooks(self.net)

    def _dtype(self, images: Tensor | Reference) -> torch.dtype:
        """Return the dtype of distances to images."""
        if isinstance(images, Reference):
            return images.dtype
        return torch.promote_types(images.dtype, self.like.dtype)

    @property
    def like(self) -> Tensor:
        """A tensor with the dtype and device of the metric."""
        shift = getattr(self.scaling_layer, "shift", None)
        if isinstance(shift, Tensor):
            return shift
        return next(itertools.chain(self.parameters(), self.buffers()), torch.empty(0))

    def _state(self) -> tuple[object, ...]:
        """Return values that change whenever the features of images may have changed."""
        floors = () if self.floors is None else (id(self.floors), self.floors._version)
        return (self.version, self.like.dtype, self.like.device, *floors, *weights_state(self.net))

    def _made_by(self) -> Source | None:
        """Return the source of references that are made now."""
        if torch.compiler.is_compiling():
            return None
        state = self._state()
        if self._source is None or self._source.state != state:
            self._source = Source(repr(self), state)
        return self._source

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self._source is not None and self._source.state != self._state():
            state["_source"] = None  # a copy could not detect that its references are stale
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._source is not None:
            self._source.state = self._state()  # a copy has other parameters
