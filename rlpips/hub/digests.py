"""Names for content: digests of files, of tensors, and of metrics."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def tensors_digest(state: Mapping[str, Tensor]) -> str:
    """Return 'sha256:HEX' over the names, dtypes, shapes and little-endian bytes of tensors, sorted by name.

    The same numbers have the same digest, whatever kind of file they came in.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        array = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
        name = f"{key} {str(tensor.dtype).removeprefix('torch.')} {array.shape}\n"
        digest.update(name.encode(errors="surrogatepass"))
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return f"sha256:{digest.hexdigest()}"


def metric_digest(metric: object) -> str | None:
    """Return the digest of the tensors in a metric's state dict; None if the metric is not a module."""
    return tensors_digest(metric.state_dict()) if isinstance(metric, torch.nn.Module) else None


def file_digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file.

    Args:
        path: the file.
        algorithm: 'sha256', or 'git-blob-sha1', git's object id: SHA-1 over 'blob SIZE', a zero byte and the
            content.
    """
    if algorithm == "git-blob-sha1":
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def matches(path: Path, digest: str) -> bool:
    """Tell whether a file has the digest 'ALGORITHM:HEX'."""
    algorithm, _, expected = digest.partition(":")
    return file_digest(path, algorithm) == expected
