"""Whether PyTorch does more with operations than run and differentiate them."""

import torch


def eager() -> bool:
    """Whether a function with a derivative of its own may stand for a formula.

    It may not where operations are recorded (`torch.compile`, tracing, export) or transformed.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or transforming()
    )


def transforming() -> bool:
    """Whether `torch.func` or forward-mode differentiation is at work."""
    functorch: bool = torch._C._are_functorch_transforms_active()
    return functorch or torch.autograd.forward_ad._current_level >= 0
