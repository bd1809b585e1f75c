"""From what the command line says of a metric to the metric."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rlpips

if TYPE_CHECKING:
    import torch

    from rlpips.attacks.metrics import Metric
    from rlpips.metric.lpips import LPIPS


def chosen_metric(options: argparse.Namespace) -> "LPIPS":
    """Return the metric of `--net`, `--weights`, `--version` and `--device`."""
    import torch

    from rlpips.scoring.metric_cache import cached_metric

    return cached_metric(options.net, options.weights, options.version, torch.device(options.device))


def load_metric(text: str, device: "torch.device") -> "Metric":
    """Build a metric named as in 'rlpips evaluate --weights'.

    Args:
        text: WEIGHTS, NET:WEIGHTS, piq:NAME for a classical metric, or MODULE:FUNCTION.
        device: where the metric computes.

    Raises:
        MissingExtraError: the classical metric needs `pip install 'rlpips[classical]'`.
        ValueError: there is no such metric, or the function fails.
    """
    import torch

    from rlpips.backbones.architectures import ARCHITECTURES
    from rlpips.classical import ClassicalMetric

    head, colon, tail = text.partition(":")
    metric: Metric
    if colon and head in (*ARCHITECTURES, "vgg16"):
        metric = rlpips.LPIPS(net=head, weights=tail, check_range=False)
    elif colon and head == "piq":
        metric = ClassicalMetric(tail)
    elif colon and all(name.isidentifier() for name in (*head.split("."), tail)) and not Path(text).exists():
        metric = _call_factory(text, head, tail)
    else:
        metric = rlpips.LPIPS(weights=text, check_range=False)
    if isinstance(metric, torch.nn.Module):
        metric = metric.eval().requires_grad_(False).to(device)
    return metric


def _call_factory(text: str, module: str, function: str) -> Any:
    """Call a function that returns a metric. Its module may lie in the working folder.

    Raises:
        ValueError: there is no such function, or it fails.
    """
    folder = str(Path.cwd())  # where people keep modules of their own
    added = folder not in sys.path
    if added:
        sys.path.append(folder)  # last, so that it hides no other module
    try:
        factory = getattr(importlib.import_module(module), function, None)
        metric = None if factory is None else factory()
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{text!r} is not a metric: {reason}") from error
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)
    if factory is None:
        raise ValueError(f"{text!r} is not a metric: {module} has no {function}")
    if not callable(metric):
        raise ValueError(f"{text!r} is not a metric: it returned {metric!r:.60}, which cannot be called")  # noqa: TRY004
    return metric
