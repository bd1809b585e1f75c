"""From what the command line says of a metric to the metric."""

import argparse
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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

    from rlpips.classical import ClassicalMetric

    kind, head, tail = _parts(text)
    metric: Metric
    if kind == "classical":
        metric = ClassicalMetric(tail)
    elif kind == "function":
        metric = _call_factory(text, head, tail)
    else:
        metric = rlpips.LPIPS(net=head, weights=tail, check_range=False)
    if isinstance(metric, torch.nn.Module):
        metric = metric.eval().requires_grad_(False).to(device)
    return metric


def check_metric(text: str) -> None:
    """Check that what `load_metric` would build is there: the name, the file, or the function.

    Weights are read, and downloaded if they are not on this machine. Nothing is kept in memory. A function is
    not called.

    Raises:
        MissingExtraError: the classical metric needs `pip install 'rlpips[classical]'`.
        ValueError: there is no such metric.
    """
    from rlpips.backbones.architectures import architecture
    from rlpips.classical import ClassicalMetric
    from rlpips.hub import loading

    kind, head, tail = _parts(text)
    if kind == "classical":
        ClassicalMetric(tail)
    elif kind == "function":
        _factory(text, head, tail)
    else:
        loading.load(tail, architecture(head), "0.1")


def _parts(text: str) -> tuple[str, str, str]:
    """Return 'lpips', net and weights; or 'classical' or 'function', and what stands around the colon."""
    from rlpips.backbones.architectures import ARCHITECTURES

    head, colon, tail = text.partition(":")
    if colon and head in (*ARCHITECTURES, "vgg16"):
        return "lpips", head, tail
    if colon and head == "piq":
        return "classical", head, tail
    if colon and all(name.isidentifier() for name in (*head.split("."), tail)) and not Path(text).exists():
        return "function", head, tail
    return "lpips", "alex", text


def _call_factory(text: str, module: str, function: str) -> Any:
    """Call a function that returns a metric.

    Raises:
        ValueError: there is no such function, or it fails.
    """
    factory = _factory(text, module, function)
    with _users_code(text):
        metric = factory()
    if not callable(metric):
        raise ValueError(f"{text!r} is not a metric: it returned {metric!r:.60}, which cannot be called")  # noqa: TRY004
    return metric


def _factory(text: str, module: str, function: str) -> Any:
    """Return a function that returns a metric.

    Raises:
        ValueError: there is no such function, or its module fails.
    """
    with _users_code(text):
        factory = getattr(importlib.import_module(module), function, None)
    if factory is None:
        raise ValueError(f"{text!r} is not a metric: {module} has no {function}")
    return factory


@contextmanager
def _users_code(text: str) -> Iterator[None]:
    """Let users' modules lie in the working folder, and name the metric if their code fails."""
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.append(folder)  # last, so that it hides no other module
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{text!r} is not a metric: {reason}") from error
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)
