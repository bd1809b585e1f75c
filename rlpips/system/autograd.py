"""Whether PyTorch only runs and differentiates operations, or also records or transforms them."""

import torch


def eager() -> bool:
    """Whether operations are neither recorded (`torch.compile`, tracing, export) nor transformed.

    Only then may a faster function with its own derivative replace a formula.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or transforming()
    )


def transforming() -> bool:
    """Whether `torch.func` or forward-mode differentiation is active."""
    functorch: bool = torch._C._are_functorch_transforms_active()
    return functorch or torch.autograd.forward_ad._current_level >= 0
