"""Words for error messages: what a file seems to be that is not the expected checkpoint."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rlpips.backbones.architectures import ARCHITECTURES, Architecture
from rlpips.errors import printable
from rlpips.hub.stored import Stored


def shown_key(value: Any) -> str:
    """Return a key or a number from a file as messages show it."""
    if isinstance(value, str | int | float):
        return printable(repr(value), 80)
    return f"a {type(value).__name__}"


def shorten(texts: Sequence[str], most: int = 8, sep: str = ", ") -> str:
    """Join texts from a file, each cut, and count those beyond the first `most`."""
    shown = sep.join(printable(text, 1000 if sep == "; " else 80) for text in texts[:most])
    return shown + (f" and {len(texts) - most} more" if len(texts) > most else "")


def describe_container(loaded: Any) -> str:
    """Say what a file without a state dict at its top seems to be."""
    if not isinstance(loaded, Mapping):
        return "a bare Tensor" if isinstance(loaded, Stored) else f"a bare {type(loaded).__name__}"
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(loaded.get(key), Mapping):
            return f"a training checkpoint, whose weights are under {key!r}: save those alone"
    if {"state", "param_groups"} <= set(loaded):
        return "the state of an optimizer"
    return f"a dictionary with {shorten([shown_key(key) for key in loaded])}"


def backbone_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of each of a backbone's tensors, by torchvision's names."""
    with torch.device("meta"):
        layers = torch.nn.Sequential(*arch.layers())
    return {f"features.{key}": tuple(value.shape) for key, value in layers.state_dict().items()}


def describe_state(state: Mapping[str, Stored]) -> str:
    """Say what a state dict seems to be."""
    heads = [key for key in state if re.match(r"lins?\.?\d{1,2}\D", key)]
    for arch in ARCHITECTURES.values():
        shapes = backbone_shapes(arch)
        for prefix, kind in (("features.", "torchvision's weights"), ("net.slice", "an LPIPS state dict")):
            found = {
                re.sub(r"^(net\.slice\d+|features)\.", "features.", k): v
                for k, v in state.items()
                if k.startswith(prefix)
            }
            same = sum(key in found and tuple(found[key].shape) == shape for key, shape in shapes.items())
            if same > len(shapes) // 2:
                return f"{kind} for net={arch.name!r}"
    if heads:
        widths = sorted({(int(re.findall(r"\d+", key)[0]), state[key].numel()) for key in heads})
        for arch in ARCHITECTURES.values():
            if [width for _, width in widths][: len(arch.channels)] == list(arch.channels):
                return f"LPIPS heads for net={arch.name!r}"
        return "LPIPS heads for another backbone"
    if "conv1.weight" in state and any(key.startswith("layer1.") for key in state):
        return "a ResNet"
    if any(key.startswith("features.") for key in state):
        return "a torchvision model of another architecture"
    if any(
        re.match(r"(net\.)?model\.\d+\.weight", key) and value.shape[1:] == (5, 1, 1)
        for key, value in state.items()
    ):
        return "LPIPS' ranking network, which is used only in training"
    return "a state dict of something else" if state else "an empty state dict"
