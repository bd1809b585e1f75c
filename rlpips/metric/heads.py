"""The layers of LPIPS around the backbone: the scaling of images before it, the learned heads after it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rlpips.hub import checkpoints
from rlpips.metric.formula import at_least_float32, weighted_sum


class ScalingLayer(nn.Module):
    """Scale images in [-1, 1] to the statistics of ImageNet: `(x - shift) / scale`, `(N, 3, H, W)`."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(checkpoints.SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(checkpoints.SCALE).view(1, 3, 1, 1))

    def forward(self, inp: Tensor) -> Tensor:
        """Scale images `(N, 3, H, W)`."""
        return (inp - self.shift).div_(self.scale)


class NetLinLayer(nn.Module):
    """A head: a 1x1 convolution without bias, from `(N, chn_in, H, W)` to `(N, chn_out, H, W)`.

    With `use_dropout`, dropout comes before the convolution.
    """

    def __init__(self, chn_in: int, chn_out: int = 1, use_dropout: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Dropout()] if use_dropout else []
        layers.append(nn.Conv2d(chn_in, chn_out, 1, bias=False))
        self.model = nn.Sequential(*layers)

    @property
    def channel_weights(self) -> Tensor:
        """The weights of the channels, `(chn_out, chn_in, 1, 1)`.

        The name is not `weight`, because code written for `lpips` takes a module with a `weight` for a
        convolution.
        """
        weight = self.model[-1].weight
        assert isinstance(weight, Tensor)
        return weight

    def reset_parameters(self) -> None:
        """Fill the weights with random values from torch's global generator."""
        conv = self.model[-1]
        assert isinstance(conv, nn.Conv2d)
        conv.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels of `(N, chn_in, H, W)`, and sum over them."""
        out: Tensor = self.model(x)
        return out


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling a module does more than its class says: it has hooks, or its own `forward`."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks or module._backward_hooks or module._backward_pre_hooks or "forward" in module.__dict__)


def unchanged_weights(lin: nn.Module) -> Tensor | None:
    """Return the weights of a head, `(1, C, 1, 1)`, if it does nothing but dropout and weighing.

    None means that a user has replaced the head, or has added hooks or layers to it. Then it must be called.
    """
    if type(lin) is not NetLinLayer or type(lin.model) is not nn.Sequential:
        return None
    *before, conv = lin.model
    if type(conv) is not nn.Conv2d or conv.bias is not None or conv.out_channels != 1:
        return None
    if any(type(layer) is not nn.Dropout for layer in before):
        return None
    return None if any(map(has_hooks, (lin, lin.model, *before, conv))) else conv.weight


def fixed_weights(heads: Iterable[nn.Module | None]) -> list[Tensor | None] | None:
    """Return the weights of each head, `(C,)`, in float32 or float64.

    None stands for a layer without a head, and for its weights, which are all 1. The result is None if a head
    does more than weigh: a user has changed it, or dropout runs.
    """
    weights: list[Tensor | None] = []
    for head in heads:
        own = None if head is None else unchanged_weights(head)
        if head is not None and (own is None or (head.training and _dropout(head))):
            return None
        weights.append(None if own is None else at_least_float32(own.flatten()))
    return weights


def apply_head(head: nn.Module | None, squares: Tensor) -> Tensor:
    """Weigh squared differences `(N, C, h, w)` and sum them over channels, to `(N, 1, h, w)`.

    A head that a user has changed is called, in the dtype of its parameters. Others are computed in the dtype
    of `squares`, under autocast too. Without a head, all channels have weight 1.
    """
    if head is None:
        return weighted_sum(squares, None)
    weights = unchanged_weights(head)
    if weights is None:
        own = next(head.parameters(), squares)
        return at_least_float32(head(squares.to(own.dtype)))
    for layer in _dropout(head) if head.training else ():
        squares = layer(squares)
    return weighted_sum(squares, at_least_float32(weights.flatten()))


def _dropout(head: nn.Module) -> list[nn.Module]:
    """Return the layers of an unchanged head that come before its convolution."""
    assert isinstance(head, NetLinLayer)
    return list(head.model)[:-1]


def store_heads_apart(_module: nn.Module, state: dict[str, Any], prefix: str, _meta: dict[str, Any]) -> None:
    """Copy one of the two entries of each head in a state dict, because safetensors refuses shared memory."""
    for name in [name for name in state if name.startswith(f"{prefix}lins.")]:
        if not isinstance(state[name], nn.Parameter):  # with keep_vars=True, entries stay the parameters
            state[name] = state[name].clone()
