"""Containers of tensors in one safetensors file of this package, such as the state of a training run.

The file holds the weights of a metric under their own names, so that it is a checkpoint too. The tensors of
the containers are numbered. The containers themselves are JSON, kept as the bytes of one more tensor, because
they may be larger than a header.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlpips.errors import CheckpointError
from rlpips.hub import safetensorsfile, tensorfiles
from rlpips.hub.stored import file_named
from rlpips.system.files import shown_path

_TREE = "run_state"  # the name of the tensor with the JSON; the others are run_state.0, run_state.1, ...


def save_nested(path: Path, content: Any, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write containers of tensors, beside the weights of a metric, whole or not at all.

    Args:
        path: of the file.
        content: tensors and JSON values in dicts, lists and tuples; keys are strings or whole numbers.
        weights: the state dict of a metric.
        metadata: JSON values that say what the metric is.

    Raises:
        OSError: the file cannot be written.
        TypeError: there is something else in it.
    """
    tensors: list[Tensor] = []
    text = json.dumps(_packed(content, tensors))
    tree = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    numbered = {f"{_TREE}.{k}": tensor for k, tensor in enumerate(tensors)}
    safetensorsfile.write(path, {**weights, **numbered, _TREE: tree}, metadata)


def load_nested(path: Path) -> Any:
    """Read the containers that `save_nested` wrote, with tensors on the CPU, and tuples as lists.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or something else.
        OSError: the file cannot be read now.
    """
    found = tensorfiles.load_tensors(path)
    if _TREE not in found:
        raise CheckpointError(f"{shown_path(path)} does not hold the state of a run")
    with file_named(path):
        return _unpacked(json.loads(found[_TREE].numpy().tobytes()), found)


def is_nested(key: str) -> bool:
    """Tell whether a name in a file is one that `save_nested` gave to the containers' tensors."""
    return key == _TREE or key.startswith(f"{_TREE}.")


def _packed(value: Any, tensors: list[Tensor]) -> Any:
    """Replace tensors by their numbers, and dicts by lists of pairs, as keys of JSON can only be strings."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, Mapping):
        return {"dict": [[key, _packed(each, tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(each, tensors) for each in value]
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `_packed`."""
    if isinstance(value, list):
        return [_unpacked(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[f"{_TREE}.{value['tensor']}"]
    return {key: _unpacked(each, tensors) for key, each in value["dict"]}
