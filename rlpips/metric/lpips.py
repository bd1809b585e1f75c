"""LPIPS, the learned perceptual image patch similarity of Zhang et al. 2018 (arXiv 1801.03924)."""

import itertools
import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from rlpips.backbones.architectures import Backbone, architecture
from rlpips.hub import cache, checkpoints, registry
from rlpips.metric import comparison, tiling
from rlpips.metric.comparison import normalize_tensor as normalize_tensor  # a name of lpips
from rlpips.metric.inputs import RangeCheck, as_batch, check_image, check_pair

logger = logging.getLogger("rlpips")


def spatial_average(in_tens: Tensor, keepdim: bool = True) -> Tensor:
    """Average `(N, C, H, W)` over height and width, to `(N, C, 1, 1)`, or `(N, C)` without `keepdim`."""
    return in_tens.mean(dim=(2, 3), keepdim=keepdim)


def upsample(in_tens: Tensor, out_HW: Sequence[int] | int = (64, 64)) -> Tensor:
    """Resize `(N, C, h, w)` bilinearly to `(N, C, *out_HW)`, or to a square, corners not aligned."""
    size = out_HW if isinstance(out_HW, int) else tuple(out_HW)
    return F.interpolate(in_tens, size=size, mode="bilinear", align_corners=False)


class ScalingLayer(nn.Module):
    """Brings images from [-1, 1] to the statistics of ImageNet: `(x - shift) / scale`, `(N, 3, H, W)`."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(checkpoints.SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(checkpoints.SCALE).view(1, 3, 1, 1))

    def forward(self, inp: Tensor) -> Tensor:
        """Scale images `(N, 3, H, W)`."""
        return (inp - self.shift).div_(self.scale)


def _hooked(module: nn.Module) -> bool:
    """Whether calling a module does more than its class says."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks or module._backward_hooks or module._backward_pre_hooks or "forward" in vars(module))


class NetLinLayer(nn.Module):
    """A head: dropout (where wanted) and a 1x1 convolution without bias, `(N, chn_in, H, W)` to `chn_out`."""

    def __init__(self, chn_in: int, chn_out: int = 1, use_dropout: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Dropout()] if use_dropout else []
        layers.append(nn.Conv2d(chn_in, chn_out, 1, bias=False))
        self.model = nn.Sequential(*layers)

    @property
    def channel_weights(self) -> Tensor:
        """The weights of the channels, `(chn_out, chn_in, 1, 1)`.

        It is not called `weight`, by which code written for `lpips` tells convolutions from other modules.
        """
        weight = self.model[-1].weight
        assert isinstance(weight, Tensor)
        return weight

    def reset_parameters(self) -> None:
        """Fill the weights from torch's global generator."""
        conv = self.model[-1]
        assert isinstance(conv, nn.Conv2d)
        conv.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels of `(N, chn_in, H, W)`."""
        out: Tensor = self.model(x)
        return out


def unchanged_weights(lin: nn.Module) -> Tensor | None:
    """Return the weights of a head, `(1, C, 1, 1)`, if there is nothing more to it than dropout and them.

    None means that it must run as it is: it has been replaced or has hooks, or a layer in it.
    """
    if type(lin) is not NetLinLayer or type(lin.model) is not nn.Sequential:
        return None
    *before, conv = lin.model
    if type(conv) is not nn.Conv2d or conv.bias is not None or conv.out_channels != 1:
        return None
    if any(type(layer) is not nn.Dropout for layer in before):
        return None
    return None if any(map(_hooked, (lin, lin.model, *before, conv))) else conv.weight


def _store_heads_apart(_module: nn.Module, state: dict[str, Any], prefix: str, _meta: dict[str, Any]) -> None:
    """Copy the second of the two names that each head has, as safetensors refuses shared memory."""
    for name in [name for name in state if name.startswith(f"{prefix}lins.")]:
        if not isinstance(state[name], nn.Parameter):  # as with keep_vars=True
            state[name] = state[name].clone()


def _ordinary_tensors() -> ExitStack:
    """Make tensors that a loss may keep for its backward pass, under `torch.inference_mode` too."""
    stack = ExitStack()
    if torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
    return stack


@dataclass(eq=False)
class _Source:
    """The metric that made references, and its state then. Copied together, both share the copy of it."""

    name: str
    state: tuple[object, ...]


@dataclass(frozen=True, repr=False)
class Reference:
    """A batch of images as `LPIPS` sees it, made by `LPIPS.reference`.

    It serves the metric that made it, while that metric's backbone keeps its weights, dtype and device; heads
    may change. Of a metric and its references that are copied or pickled as parts of one object, the copies
    belong together, too.

    Attributes:
        features: what each slice of the backbone made of them, `(N, C, h, w)`.
        lengths: of the features over channels, `(N, 1, h, w)`, as constants.
        shape: the images' shape, `(N, 3, H, W)`.
        dtype: the dtype of distances to it.
        source: what tells the metric that made it.
    """

    features: tuple[Tensor, ...]
    lengths: tuple[Tensor, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: _Source | None = None

    def __repr__(self) -> str:
        features = ", ".join(str(tuple(f.shape[1:])) for f in self.features)
        like = self.features[0]
        return f"Reference(images={self.shape}, features=[{features}], {_kind(like)})"

    @property
    def activations(self) -> tuple[Tensor, ...]:
        """The features scaled to unit length over channels."""
        return tuple(normalize_tensor(comparison.wide(f)) for f in self.features)

    def __getitem__(self, index: int | Tensor | slice | Sequence[int]) -> "Reference":
        """Select images, by a number (a batch of one), a slice, a mask, or a tensor or list of numbers.

        Raises:
            IndexError: there is no image of that number.
            TypeError: none of these.
        """
        if isinstance(index, Tensor) and index.dtype == torch.int64:
            if comparison.fusible(index) and torch.equal(
                index, torch.arange(len(self.features[0])).to(index)
            ):
                return self  # an attack asks for all images at every step, and need not copy them
            return self._select(lambda each: each.index_select(0, index))
        if isinstance(index, SupportsIndex) and not (isinstance(index, Tensor) and index.ndim):
            number = operator.index(index)
            return self._select(lambda each: each[number][None])
        if not isinstance(index, Tensor | slice | list):
            raise TypeError(
                "images of a reference are selected by a number, a slice, a mask, or a tensor or list of "
                f"numbers, got {type(index).__name__}"
            )
        return self._select(lambda each: each[index])

    def _select(self, select: Callable[[Tensor], Tensor]) -> "Reference":
        with _ordinary_tensors():
            features, lengths = (tuple(map(select, group)) for group in (self.features, self.lengths))
        return replace(self, features=features, lengths=lengths, shape=(len(features[0]), *self.shape[1:]))


def _kind(tensor: Tensor) -> str:
    """Describe a tensor's dtype and device, such as 'float32, cpu'."""
    return f"{str(tensor.dtype).removeprefix('torch.')}, {tensor.device}"


class LPIPS(nn.Module):
    """A distance between images that agrees with people, as an `nn.Module`; the class of `lpips`, and more.

    `metric(in0, in1)` runs both images through a backbone, scales the activations of five layers (seven with
    SqueezeNet) to unit length over channels, weighs their squared differences with a learned head per layer,
    averages over space and sums over layers. Smaller is more alike; an image is at distance 0 from itself.

    The metric is frozen: its parameters require no gradient and it stays in eval mode, whatever `.train()` is
    called on a module that holds it. Gradients to the images flow as usual. `eval_mode=False` and
    `pretrained=False` make the heads trainable, `pnet_tune=True` the backbone.

    Args:
        pretrained: take learned heads; otherwise they are random, and trainable.
        net: the backbone, 'alex', 'vgg' (or 'vgg16') or 'squeeze'.
        version: '0.1', or '0.0' for the heads of the paper's first version, which did not scale its input.
        lpips: False leaves the heads out: all channels weigh 1.
        spatial: return a map of distances instead of their average.
        pnet_rand: a random backbone instead of one trained on ImageNet; nothing is fetched for it.
        pnet_tune: make the backbone trainable.
        use_dropout: dropout before the heads while they are trained.
        model_path: a checkpoint file; the same as `weights=` with a path.
        eval_mode: False makes the heads trainable and puts the module into training mode.
        verbose: log what is loaded, at level INFO, to the logger 'rlpips'.
        weights: 'standard'; 'robust', the adversarially trained default for `net`; a name of
            `rlpips.list_weights()`; or the path of a heads file, of a state dict of `lpips` or R-LPIPS, of a
            torchvision model (for the backbone), or of a checkpoint of this package; or the folder of a run
            of `rlpips train`. What the file does not bring comes from the standard weights.
        check_range: warn once when values do not lie in [-1, 1] (or [0, 1] with `normalize=True`).

    Raises:
        TypeError: `pretrained` is the name of a backbone or of weights.
        ValueError: an argument is unknown or does not fit the others.
        CheckpointError: a file is not a checkpoint for this metric.
        WeightsUnavailableError: weights are not on this machine and could not be fetched.

    >>> metric = LPIPS(net="alex", pnet_rand=True)
    >>> x = torch.full((1, 3, 64, 64), -0.5)
    >>> metric(x, x).item()
    0.0
    """

    _source: _Source | None = None

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
            keyword = "net" if pretrained in ("alex", "vgg", "vgg16", "squeeze") else "weights"
            raise TypeError(
                f"the first argument, pretrained, must be True or False, got {pretrained!r}; "
                f"pass {keyword}={pretrained!r}"
            )
        arch = architecture(net)
        if isinstance(version, float):
            version = str(version)
        if version not in ("0.0", "0.1"):
            raise ValueError(f"version={version!r} is unknown; choose '0.1' or '0.0'")
        if model_path is not None:
            if weights != "standard":
                raise ValueError("model_path and weights both name a checkpoint; pass one of them")
            weights = Path(model_path)
        checkpoint = cache.find(weights, arch, version)
        heads, backbone = checkpoint.heads, checkpoint.backbone
        if not lpips and heads is not None and backbone is None:
            raise ValueError(f"{weights} holds heads alone, and lpips=False has none")
        if heads is None and lpips and pretrained:
            heads = cache.standard_heads(arch, version)
        if backbone is None and not pnet_rand:
            backbone = cache.backbone(registry.entry(arch.checkpoint))
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
        self.chns = list(arch.channels)
        self.L = len(self.chns)
        self.net = Backbone(arch)
        if backbone is None:
            self.net.init_random()
        else:
            self.net.load_features(backbone)
        self.net.requires_grad_(pnet_tune)
        if lpips:
            with torch.device("meta"):  # so that heads which are loaded draw no random numbers
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
            self.register_state_dict_post_hook(_store_heads_apart)  # type: ignore[no-untyped-call]
        self.train(not eval_mode)

    def train(self, mode: bool | None = None) -> "LPIPS":
        """Set training mode, which only what is trainable enters: a frozen metric stays in eval mode.

        Without an argument, as code calls it that means to train this very module, a frozen metric logs a
        warning, once. A module that holds the metric always passes the mode on.
        """
        trainable = any(p.requires_grad for p in self.parameters())
        if mode is None and not trainable and not self._told_frozen:
            self._told_frozen = True
            logger.warning(
                "train() changes nothing: this metric is frozen, none of its parameters requires a gradient, "
                "and an optimizer over them trains nothing. To train it, build it with eval_mode=False (the "
                "heads), with pnet_tune=True (the backbone), or with both."
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
        parts = {"backbone": self.net, "heads": getattr(self, "lins", None)}
        found = [
            name
            for name, part in parts.items()
            if part is not None and any(p.requires_grad for p in part.parameters())
        ]
        state = f"trainable={'+'.join(found)}" if found else "frozen"
        arguments = ", ".join(f"{name}={value}" for name, value in built.items())
        return f"{type(self).__name__}({arguments}, {state}, {_kind(self.like)})"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._weights = "a state dict"

    @overload
    def forward(
        self,
        in0: "Tensor | Reference",
        in1: "Tensor | Reference",
        retPerLayer: Literal[False] = False,
        normalize: bool = False,
        tile: int | None = None,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        in0: "Tensor | Reference",
        in1: "Tensor | Reference",
        retPerLayer: Literal[True],
        normalize: bool = False,
        tile: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]: ...
    def forward(
        self,
        in0: "Tensor | Reference",
        in1: "Tensor | Reference",
        retPerLayer: bool = False,
        normalize: bool = False,
        tile: int | None = None,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Measure the distances between two batches of images.

        With `tile` the images run through the backbone one tile at a time, so that images of any size can be
        measured: the distances are the same but for rounding, and so are gradients, to images and to weights.
        Memory is that of one tile of each image of a batch, and time grows by what tiles overlap: their crops
        are up to 200 pixels wider than they are (AlexNet 161, VGG16 186, SqueezeNet 199). With gradients, the
        backward pass runs each tile forward once more; `create_graph=True` is refused there.

        Args:
            in0: `(N, 3, H, W)`, RGB in [-1, 1], floating point, on the module's device; or what `reference`
                made of such a batch. Grey images, `(N, 1, H, W)`, count as RGB, and a single image may be
                `(3, H, W)`, `(1, H, W)` or `(H, W)`.
            in1: likewise; either batch may be of one image, which is then compared with each of the other.
            retPerLayer: also return each layer's share.
            normalize: the images are in [0, 1].
            tile: the side of a tile in pixels, rounded up to a multiple of 16. 512 suits most machines.

        Returns:
            `(N, 1, 1, 1)`, or `(N, 1, H, W)` with `spatial=True`; with `retPerLayer` a pair of that and the
            list of each layer's share, of the same shape, whose sum it is. Normalisation and sums are done in
            float32 at least; the result is of the wider dtype of images and module.

        Raises:
            TypeError: not tensors, or not of a usable dtype; a reference with `tile`.
            ValueError: shapes that do not fit, images too small for the backbone, wrong device; a reference
                of another metric, or of this one before it changed; `tile` is not a positive int, or dropout
                runs with it.
        """
        in0, in1 = self._check({"in0": in0, "in1": in1}, normalize)
        if tile is None:
            maps = self._layer_distances(in0, in1, normalize)
        else:
            maps = self._layer_distances_in_tiles(in0, in1, normalize, tile)
        shares = [upsample(each, in0.shape[2:]) if self.spatial else spatial_average(each) for each in maps]
        dtype = torch.promote_types(self._dtype(in0), self._dtype(in1))
        total = torch.stack(shares).sum(dim=0).to(dtype)
        if retPerLayer:
            return total, [share.to(dtype) for share in shares]
        return total

    if TYPE_CHECKING:  # pyright takes nn.Module's declaration of __call__ for an assignment to it

        @overload
        def __call__(
            self,
            in0: "Tensor | Reference",
            in1: "Tensor | Reference",
            retPerLayer: Literal[False] = False,
            normalize: bool = False,
            tile: int | None = None,
        ) -> Tensor: ...
        @overload
        def __call__(
            self,
            in0: "Tensor | Reference",
            in1: "Tensor | Reference",
            retPerLayer: Literal[True],
            normalize: bool = False,
            tile: int | None = None,
        ) -> tuple[Tensor, list[Tensor]]: ...
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Do as `forward` does."""

    def reference(self, images: Tensor, normalize: bool = False) -> "Reference":
        """Run images through the backbone once, to compare them with others many times.

        `metric(x, metric.reference(y))` is `metric(x, y)`, at half the price where `y` stays the same.

        Args:
            images: as for `forward`. Gradients flow to them, unless under `torch.no_grad`. A reference made
                under `torch.inference_mode` may be used in a loss later.
            normalize: the images are in [0, 1].

        Raises:
            TypeError: not a tensor, or not of a usable dtype.
            ValueError: a wrong shape, images too small for the backbone, wrong device.
        """
        (batch,) = self._check({"images": images}, normalize)
        assert isinstance(batch, Tensor)
        with _ordinary_tensors():
            return self._activate(batch, normalize, self._made_by())

    def _check(self, inputs: "dict[str, Tensor | Reference]", normalize: bool) -> "list[Tensor | Reference]":
        """Return what is to be compared, images as batches, or say what is wrong with it."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return list(inputs.values())
        if isinstance(self.scaling_layer, ScalingLayer):  # through which all images have three channels
            inputs = {
                name: each if isinstance(each, Reference) else as_batch(each) for name, each in inputs.items()
            }
        for name, each in inputs.items():
            if isinstance(each, Reference) and not torch.compiler.is_compiling():
                self._check_reference(name, each)
        images = {name: each for name, each in inputs.items() if not isinstance(each, Reference)}
        for name, image in images.items():
            own = type(self.net) is Backbone
            check_image(
                name,
                image,
                like=self.like,
                min_size=self.min_size if own else 1,
                channels=self.net.in_channels if own else None,
            )
        if len(inputs) == 2:
            check_pair(*(each.shape for each in inputs.values()))
        if self.check_range and not torch.compiler.is_compiling():
            self._range_check(images, normalize)
        return list(inputs.values())

    def _state(self) -> tuple[object, ...]:
        """Return what changes when the activations of images may have changed."""
        state: list[object] = [self.version, self.like.dtype, self.like.device]
        modules: list[nn.Module] = [self.net]
        while modules:  # in a quarter of the time of self.net.parameters()
            module = modules.pop()
            modules += [child for child in module._modules.values() if child is not None]
            for p in module._parameters.values():
                if p is not None:
                    state += id(p), 0 if p.is_inference() else p._version
        return tuple(state)

    def _made_by(self) -> "_Source | None":
        """Return the mark of references that are made now."""
        if torch.compiler.is_compiling():
            return None
        state = self._state()
        if self._source is None or self._source.state != state:
            self._source = _Source(repr(self), state)
        return self._source

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self._source is not None and self._source.state != self._state():
            state["_source"] = None  # a copy could not tell that references had become stale
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._source is not None:
            self._source.state = self._state()  # a copy's parameters are others

    def _check_reference(self, name: str, reference: "Reference") -> None:
        if reference.source is None:
            return
        if self._source is None or reference.source is not self._source:
            raise ValueError(
                f"{name} is a reference that another metric made, {reference.source.name}, and this one is "
                f"{self!r}; make it with this metric's reference(images)"
            )
        if self._source.state != self._state():
            raise ValueError(
                f"{name} is a reference that was made before the metric changed: its backbone's weights, its "
                f"version, dtype or device; it was {self._source.name}, and is {self!r}. Make the reference "
                "again, with reference(images)"
            )

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the metric."""
        shift = getattr(self.scaling_layer, "shift", None)
        if isinstance(shift, Tensor):
            return shift
        return next(itertools.chain(self.parameters(), self.buffers()), torch.empty(0))

    def _own_net(self) -> bool:
        """Whether the backbone's slices may run one by one, on both batches at once."""
        return type(self.net) is Backbone and not _hooked(self.net)

    def _activate(self, images: Tensor, normalize: bool, source: "_Source | None" = None) -> "Reference":
        x = self._scale(images, normalize)
        if self._own_net():
            features = tuple(self.net.features(x))
        else:
            found = self.net(x)
            features = tuple(found[k] for k in range(self.L))
        lengths = tuple(comparison.lengths(f) for f in features)
        return Reference(features, lengths, tuple(images.shape), self._dtype(images), source)

    def _scale(self, images: Tensor, normalize: bool) -> Tensor:
        x = 2 * images - 1 if normalize else images
        # The paper's first version forgot to scale; its heads expect that.
        return self.scaling_layer(x) if self.version == "0.1" else x.to(self.like.dtype)

    def _dtype(self, images: "Tensor | Reference") -> torch.dtype:
        """Return the dtype of distances to images."""
        if isinstance(images, Reference):
            return images.dtype
        return torch.promote_types(images.dtype, self.like.dtype)

    def _runs(
        self, in0: "Tensor | Reference", in1: "Tensor | Reference", normalize: bool
    ) -> "list[Tensor | Reference]":
        """Return what goes through the backbone: both batches in one run unless only one needs a gradient."""
        if (
            isinstance(in0, Tensor)
            and isinstance(in1, Tensor)
            and in0.dtype == in1.dtype
            and (in0.requires_grad == in1.requires_grad or not torch.is_grad_enabled())
        ):
            return [self._scale(torch.cat([in0, in1]), normalize)]
        return [each if isinstance(each, Reference) else self._scale(each, normalize) for each in (in0, in1)]

    @staticmethod
    def _layer(run: "Tensor | Reference", k: int) -> tuple[Tensor, Tensor]:
        """Return a layer's activations `(N, C, h, w)` and their lengths."""
        if isinstance(run, Reference):
            return run.features[k], run.lengths[k]
        return run, comparison.lengths(run)

    def _layer_distances(
        self, in0: "Tensor | Reference", in1: "Tensor | Reference", normalize: bool
    ) -> list[Tensor]:
        """Weighted squared difference `(N, 1, h, w)` of unit activations, for each layer."""
        pairs = self._layer_pairs(in0, in1, normalize)
        return [self._layer_distance(k, *first, *second) for k, (first, second) in enumerate(pairs)]

    def _layer_pairs(
        self, in0: "Tensor | Reference", in1: "Tensor | Reference", normalize: bool
    ) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
        """Yield the activations and lengths of both batches, for each layer."""
        if not self._own_net():
            references = [x if isinstance(x, Reference) else self._activate(x, normalize) for x in (in0, in1)]
            for k in range(self.L):
                yield self._layer(references[0], k), self._layer(references[1], k)
            return
        runs = self._runs(in0, in1, normalize)
        sizes = [each.shape[0] for each in (in0, in1)]
        # layer by layer, so that no layer's activations, or gradients of them, wait for the next layer's
        for k, part in zip(range(self.L), self.net.children(), strict=False):
            runs = [run if isinstance(run, Reference) else part(run) for run in runs]
            layers = [self._layer(run, k) for run in runs]
            if len(layers) == 1:
                layers = list(zip(*(torch.split(each, sizes) for each in layers[0]), strict=True))
            yield layers[0], layers[1]

    def _layer_distances_in_tiles(
        self, in0: "Tensor | Reference", in1: "Tensor | Reference", normalize: bool, tile: int
    ) -> list[Tensor]:
        """Do as `_layer_distances` does, by tiles; without `spatial` return the averages, `(N, 1, 1, 1)`."""
        if isinstance(in0, Reference) or isinstance(in1, Reference):
            raise TypeError(
                "a reference holds the activations of whole images; with tile=, pass the images themselves"
            )
        if type(self.net) is not Backbone:
            raise ValueError("tile= knows the backbone of this package alone, and net has been replaced")
        if self.lpips and any(isinstance(m, nn.Dropout) and m.training for m in self.lins.modules()):
            raise ValueError(
                "dropout would fall differently when tiles run again in the backward pass; with tile=, call "
                ".eval() first, or build the metric with use_dropout=False"
            )
        return tiling.in_tiles(
            lambda x, y: self._layer_distances(x, y, normalize),
            *(self.net, in0, in1, tile, tuple(self.parameters())),
            average=not self.spatial,
        )

    def _layer_distance(self, k: int, f0: Tensor, length0: Tensor, f1: Tensor, length1: Tensor) -> Tensor:
        """Weigh the squared difference of one layer's unit activations."""
        lin = self.lins[k] if self.lpips else None
        if lin is None:
            weight = f0.new_ones(f0.shape[1])
        else:
            own = unchanged_weights(lin)
            if own is None:
                return comparison.wide(lin(comparison.squares(f0, f1).to(f0.dtype)))
            weight = own.flatten()
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        dropout = list(lin.model)[:-1] if isinstance(lin, NetLinLayer) and lin.training else []
        if comparison.fusible(f0, f1) and not dropout:
            return comparison.fused(f0, length0, f1, length1, weight)
        squares = comparison.squares(f0, f1)
        for layer in dropout:
            squares = layer(squares)
        return comparison.weigh(squares, weight)
