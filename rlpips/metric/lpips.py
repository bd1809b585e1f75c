"""LPIPS, the learned perceptual image patch similarity of Zhang et al. 2018 (arXiv 1801.03924)."""

import functools
import itertools
import logging
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from rlpips._choices import NETS, VERSIONS
from rlpips._version import __version__
from rlpips.backbones.architectures import Backbone, architecture
from rlpips.backbones.pixels import CHANNELS, PixelFeatures
from rlpips.hub import checkpoints, loading
from rlpips.metric.fast_path import can_run_fast, fast_layer_maps
from rlpips.metric.features import FeatureNetwork
from rlpips.metric.formula import average_and_sum, layer_maps
from rlpips.metric.fused import channel_lengths
from rlpips.metric.heads import (
    NetLinLayer,
    ScalingLayer,
    apply_head,
    fixed_weights,
    store_heads_apart,
)
from rlpips.metric.inputs import RangeCheck, as_batch, check_image, check_pair
from rlpips.metric.reference import (
    Reference,
    check_source,
    dtype_and_device,
    ordinary_tensors,
)
from rlpips.metric.tiling import in_tiles

logger = logging.getLogger("rlpips")


class LPIPS(FeatureNetwork):
    """A perceptual distance between images: the class of `lpips`, with robust weights and more.

    `metric(in0, in1)` is the distance of two batches of images; `forward` gives the formula. Smaller means
    more alike. The distance of an image to itself is 0.

    The metric is frozen: its parameters require no gradient, and it stays in eval mode even if you call
    `.train()` on a parent module. Gradients flow to the images. `eval_mode=False` and `pretrained=False` make
    the heads trainable, `pnet_tune=True` makes the backbone trainable.

    Args:
        pretrained: load learned heads. False gives random heads, which are trainable.
        net: the backbone: 'alex', 'vgg' (or 'vgg16') or 'squeeze'.
        version: '0.1', or '0.0' for the heads of the paper's first version, which did not scale its input.
        lpips: False leaves out the heads: all channels have weight 1.
        spatial: return a map of distances instead of their average.
        pnet_rand: give the backbone random weights instead of those trained on ImageNet. None are downloaded.
        pnet_tune: make the backbone trainable.
        use_dropout: apply dropout before the heads while they are trained.
        model_path: a checkpoint file, the same as a path for `weights`.
        eval_mode: False makes the heads trainable and puts the module into training mode.
        verbose: log what is loaded, at level INFO, to the logger 'rlpips'.
        weights: one of

            - 'standard': the weights of LPIPS;
            - 'robust': the default of the adversarially trained weights for `net`;
            - a name from `rlpips.list_weights()`;
            - the path of a checkpoint of this package, of a heads file, of a state dict of `lpips` or
              R-LPIPS, or of a torchvision model (for the backbone);
            - the folder of a run of `rlpips train`.

            Standard weights replace what a file does not contain.
        check_range: warn once if values are outside [-1, 1] (or [0, 1] with `normalize=True`).

    Raises:
        TypeError: `pretrained` is the name of a backbone or of weights.
        ValueError: an argument is unknown or does not fit the others.
        CheckpointError: a file is not a checkpoint for this metric.
        WeightsUnavailableError: weights are not on this machine and could not be downloaded.

    >>> metric = LPIPS(net="alex", pnet_rand=True)
    >>> x = torch.full((1, 3, 64, 64), -0.5)
    >>> metric(x, x).item()
    0.0
    """

    def __init__(
        self,
        pretrained: bool = True,
        net: str = "alex",
        version: str | float = "0.1",
        lpips: bool = True,
        spatial: bool = False,
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        use_dropout: bool = True,
        model_path: str | PathLike[str] | None = None,
        eval_mode: bool = True,
        verbose: bool = True,
        *,
        weights: str | PathLike[str] = "standard",
        check_range: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str):
            keyword = "net" if pretrained in (*NETS, "vgg16") else "weights"
            raise TypeError(
                f"the first argument, pretrained, must be True or False, got {pretrained!r}; "
                f"pass {keyword}={pretrained!r}"
            )
        arch = architecture(net)
        if isinstance(version, float):
            version = str(version)
        if version not in VERSIONS:
            raise ValueError(f"version={version!r} is unknown; choose '0.1' or '0.0'")
        if model_path is not None:
            if weights != "standard":
                raise ValueError("model_path and weights both name a checkpoint; pass only one of them")
            weights = Path(model_path)
        checkpoint = loading.load(
            weights, arch, version, lpips=lpips, pretrained=pretrained, pnet_rand=pnet_rand
        )
        heads, backbone = checkpoint.heads, checkpoint.backbone
        scales = len(heads) - len(arch.channels) if lpips and heads is not None else 0
        if verbose:
            logger.info(
                "LPIPS: net=%s version=%s lpips=%s spatial=%s weights=%s",
                *(arch.name, version, lpips, spatial, weights),
            )

        self.pnet_type = net
        self.pnet_tune = pnet_tune
        self.pnet_rand = pnet_rand
        self.spatial = spatial
        self.lpips = lpips
        self.version = version
        self.pretrained = pretrained
        self.check_range = check_range
        self._weights = "random" if heads is None and backbone is None else str(weights)
        self._told_frozen = False
        self._range_check = RangeCheck()
        self.min_size = arch.min_size

        self.scaling_layer = ScalingLayer()
        self.chns = list(arch.channels) + scales * [CHANNELS]
        self.L = len(self.chns)
        self.net = Backbone(arch)
        if backbone is None:
            self.net.init_random()
        else:
            self.net.load_features(backbone)
        self.net.requires_grad_(pnet_tune)
        self.pixels = PixelFeatures(scales) if scales else None
        floors = None if checkpoint.floors is None else checkpoint.floors[: self.L].float().clone()
        self.floors = None if floors is None else nn.Parameter(floors, requires_grad=False)
        if lpips:
            with torch.device("meta"):  # draws no random numbers for heads that are loaded
                lins = [NetLinLayer(channels, use_dropout=use_dropout) for channels in self.chns]
            for k, lin in enumerate(lins):
                self.add_module(f"lin{k}", lin)
            self.lins = nn.ModuleList(lins).to_empty(device=torch.empty(0).device)
            for k, lin in enumerate(lins):
                if heads is None:
                    lin.reset_parameters()
                else:
                    lin.channel_weights.data.copy_(heads[k])
            self.lins.requires_grad_(heads is None or not eval_mode)
            self.register_state_dict_post_hook(store_heads_apart)  # type: ignore[no-untyped-call]
        self.train(not eval_mode)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the weights to a safetensors file, which `LPIPS(net=..., version=..., weights=path)` reads.

        The file holds the tensors of the state dict, under the same names, and says which `net` and `version`
        they are for. A file of a metric without heads (`lpips=False`) is a backbone for any metric.

        Args:
            path: of the file; '.safetensors' is the usual suffix. It is written whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        heads = {"version": self.version} if self.lpips else {}  # a backbone is for all versions
        about = {"net": self.pnet_type, **heads, "rlpips": __version__}
        checkpoints.save(Path(path), self.state_dict(), about)

    def train(self, mode: bool | None = None) -> "LPIPS":
        """Set the training mode of what is trainable. A frozen metric stays in eval mode.

        `train()` without an argument, on the metric itself, logs one warning if the metric is frozen. A
        parent module always passes the mode, and there is no warning.
        """
        trainable = any(p.requires_grad for p in self.parameters())
        if mode is None and not trainable and not self._told_frozen:
            self._told_frozen = True
            logger.warning(
                "train() changes nothing, because this metric is frozen: none of its parameters requires a "
                "gradient, and an optimizer over them trains nothing. To train the metric, create it with "
                "eval_mode=False (trains the heads), pnet_tune=True (trains the backbone), or both."
            )
        mode = mode is None or mode
        super().train(mode and trainable)
        if self.lpips:
            for lin in self.lins:
                lin.train(mode and any(p.requires_grad for p in lin.parameters()))
        return self

    def __repr__(self) -> str:
        built = {"net": self.pnet_type, "weights": self._weights, "version": self.version}
        usual = {"pretrained": True, "lpips": True, "spatial": False, "pnet_rand": False}
        built |= {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        modules = {"backbone": self.net, "heads": getattr(self, "lins", None)}
        trainable = [
            name
            for name, module in modules.items()
            if module is not None and any(p.requires_grad for p in module.parameters())
        ]
        state = f"trainable={'+'.join(trainable)}" if trainable else "frozen"
        arguments = ", ".join(f"{name}={value}" for name, value in built.items())
        return f"{type(self).__name__}({arguments}, {state}, {dtype_and_device(self.like)})"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._weights = "a state dict"

    @overload
    def forward(
        self,
        in0: Tensor | Reference,
        in1: Tensor | Reference,
        retPerLayer: Literal[False] = False,
        normalize: bool = False,
        tile: int | None = None,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        in0: Tensor | Reference,
        in1: Tensor | Reference,
        retPerLayer: Literal[True],
        normalize: bool = False,
        tile: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]: ...
    def forward(
        self,
        in0: Tensor | Reference,
        in1: Tensor | Reference,
        retPerLayer: bool = False,
        normalize: bool = False,
        tile: int | None = None,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Measure the distances between two batches of images.

            d(x, y) = sum_l mean_hw sum_c w_lc (u_lchw(x) - u_lchw(y))²
            u_l(x) = f_l(x) / (|f_l(x)| + 1e-10)

        The backbone computes the features f_l of each layer l. They are scaled to unit length over channels,
        their squared differences are weighted by the head w_l, averaged over space and summed over layers.

        Robust weights may add two things, see `rlpips.metric.formula` and `rlpips.backbones.pixels`: a floor
        for the lengths |f_l|, and layers after the backbone's whose features are filters of the pixels.

        With `tile`, the images run through the backbone one tile at a time, so you can measure images of any
        size. The distances and all gradients are the same up to rounding. Memory is that of one tile of each
        image of the batch. Time grows because tiles overlap: a crop is up to 200 pixels wider than its tile
        (AlexNet 161, VGG16 186, SqueezeNet 199), and the backward pass runs each tile forward once more.
        `create_graph=True` raises an error.

        Args:
            in0: `(N, 3, H, W)`, RGB in [-1, 1], floating point, on the device of the metric; or a reference
                that `reference` made of such a batch. Grey images, `(N, 1, H, W)`, count as RGB. A single
                image may be `(3, H, W)`, `(1, H, W)` or `(H, W)`.
            in1: likewise. If one batch has one image, it is compared with each image of the other.
            retPerLayer: also return the share of each layer.
            normalize: the images are in [0, 1].
            tile: the side of a tile in pixels, rounded up to a multiple of 16. 512 suits most machines.

        Returns:
            `(N, 1, 1, 1)`, or `(N, 1, H, W)` with `spatial=True`. With `retPerLayer` a pair: the distances,
            and the list of the layers' shares, which have the same shape and add up to the distances. The
            formula is computed in float32 or float64; the result has the wider dtype of images and metric.

        Raises:
            TypeError: an input is not a tensor or has no usable dtype; a reference is passed with `tile`.
            ValueError: shapes do not fit, images are too small for the backbone or on another device; a
                reference belongs to another metric, or this metric has changed since; `tile` is not a
                positive int, or dropout runs with it.
        """
        in0, in1 = self._check({"in0": in0, "in1": in1}, normalize)
        if tile is None:
            maps = self._layer_maps(in0, in1, normalize)
        else:
            maps = in_tiles(lambda x, y: self._layer_maps(x, y, normalize), self, in0, in1, tile)
        total, shares = average_and_sum(maps, in0.shape[2:] if self.spatial else None)
        dtype = torch.promote_types(self._dtype(in0), self._dtype(in1))
        if retPerLayer:
            return total.to(dtype), [share.to(dtype) for share in shares]
        return total.to(dtype)

    def _layer_maps(self, in0: Tensor | Reference, in1: Tensor | Reference, normalize: bool) -> list[Tensor]:
        """Return the map of distances of each layer, `(N, 1, h, w)`: the formula up to the average."""
        features = self._features(in0, in1, normalize)
        weights = fixed_weights(self.heads)
        fixed = self.floors is None or not self.floors.requires_grad
        if weights is not None and fixed and can_run_fast(in0.shape, in1.shape):
            lengths = [x.lengths[: self.L] if isinstance(x, Reference) else None for x in (in0, in1)]
            return fast_layer_maps(features, weights, self.layer_floors, lengths)
        heads = [functools.partial(apply_head, head) for head in self.heads]
        return layer_maps(features, heads, self.layer_floors)

    @property
    def heads(self) -> list[nn.Module | None]:
        """The head of each layer that is compared; None for each layer with `lpips=False`."""
        if not self.lpips:
            return [None] * self.L
        return [*self.lins][: self.L]

    if TYPE_CHECKING:  # pyright takes nn.Module's declaration of __call__ for an assignment to it

        @overload
        def __call__(
            self,
            in0: Tensor | Reference,
            in1: Tensor | Reference,
            retPerLayer: Literal[False] = False,
            normalize: bool = False,
            tile: int | None = None,
        ) -> Tensor: ...
        @overload
        def __call__(
            self,
            in0: Tensor | Reference,
            in1: Tensor | Reference,
            retPerLayer: Literal[True],
            normalize: bool = False,
            tile: int | None = None,
        ) -> tuple[Tensor, list[Tensor]]: ...
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Measure distances: see `forward`."""

    def reference(self, images: Tensor, normalize: bool = False) -> Reference:
        """Compute the features of images once, to compare the images many times.

        `metric(x, metric.reference(y))` equals `metric(x, y)`. If `y` stays the same, it takes half the time.

        Args:
            images: `(N, 3, H, W)`, RGB in [-1, 1], floating point, on the metric's device; grey images and
                a single image as `forward` takes them. Gradients flow to them, except under `torch.no_grad`.
                A loss may use a reference that was made under `torch.inference_mode`.
            normalize: the images are in [0, 1].

        Raises:
            TypeError: the images are not a tensor or have no usable dtype.
            ValueError: the images have a wrong shape, are too small for the backbone or on another device.
        """
        (batch,) = self._check({"images": images}, normalize)
        assert isinstance(batch, Tensor)
        with ordinary_tensors():
            features = tuple(itertools.islice(self._run(batch, normalize), self.L))
            floors = self.layer_floors
            lengths = tuple(channel_lengths(f, floor) for f, floor in zip(features, floors, strict=True))
            shape, dtype = tuple(batch.shape), self._dtype(batch)
            return Reference(features, lengths, floors, shape, dtype, self._made_by())

    def _check(self, inputs: dict[str, Tensor | Reference], normalize: bool) -> list[Tensor | Reference]:
        """Check inputs, by their names, and return them with images as batches `(N, 3, H, W)`."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return list(inputs.values())
        if isinstance(self.scaling_layer, ScalingLayer):  # it makes three channels of any image
            inputs = {
                name: each if isinstance(each, Reference) else as_batch(each) for name, each in inputs.items()
            }
        for name, each in inputs.items():
            if isinstance(each, Reference) and not torch.compiler.is_compiling():
                check_source(name, each, self, self._source, self._state())
        images = {name: each for name, each in inputs.items() if not isinstance(each, Reference)}
        for name, image in images.items():
            known = type(self.net) is Backbone
            check_image(
                name,
                image,
                like=self.like,
                min_size=self.min_size if known else 1,
                channels=self.net.in_channels if known else None,
            )
        if len(inputs) == 2:
            check_pair(*(each.shape for each in inputs.values()))
        if self.check_range and not torch.compiler.is_compiling():
            self._range_check(images, normalize)
        return list(inputs.values())
