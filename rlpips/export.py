"""Export of the metric to a file that runs without this package: ONNX, or a program of `torch.export`."""

import copy
import functools
import importlib.util
import io
import itertools
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from rlpips._version import __version__
from rlpips.backbones.architectures import Backbone, architecture
from rlpips.errors import MissingExtraError
from rlpips.hub.digests import metric_digest
from rlpips.metric.formula import average_and_sum, layer_maps
from rlpips.metric.heads import apply_head
from rlpips.metric.lpips import LPIPS
from rlpips.system.files import write_atomically

__all__ = ["export_metric"]

_OPSET = 18  # what the exporters of all supported versions of torch write
_TOLERANCE = 1e-4
_METADATA = "rlpips.json"


class _PlainMetric(nn.Module):
    """The formula of LPIPS and nothing else: no checks of images, no fast path."""

    def __init__(self, metric: LPIPS) -> None:
        super().__init__()
        self.metric = metric

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape != y.shape:
            raise ValueError(f"x and y must have the same shape, got {tuple(x.shape)} and {tuple(y.shape)}")
        metric = self.metric
        # in two runs, because onnxruntime takes twice as long to split one batch of both
        features = zip(*(metric._run(each, normalize=False) for each in (x, y)), strict=True)
        heads = [functools.partial(apply_head, head) for head in metric.heads]
        maps = layer_maps(itertools.islice(features, metric.L), heads, metric.layer_floors)
        distance, _ = average_and_sum(maps, x.shape[2:] if metric.spatial else None)
        return distance


def check_export_file(path: str | PathLike[str]) -> None:
    """Check that a metric can be exported to a file with this name, before any work is done.

    Raises:
        MissingExtraError: the name ends in .onnx, and onnx or onnxscript is not installed.
        ValueError: the name ends neither in .onnx nor in .pt2.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{path}: a metric is exported as .onnx or .pt2")
    if suffix == ".onnx":
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("exporting to ONNX", "onnx") from error


def export_metric(metric: LPIPS, path: str | PathLike[str], *, weights: str = "") -> float | None:
    """Write a metric to a file that computes `metric(x, y)` without this package.

    An ONNX file runs without PyTorch too. The inputs `x` and `y` are images `(N, 3, height, width)` of one
    shape, RGB in [-1, 1], float32. The output `distance` is `(N, 1, 1, 1)`, or `(N, 1, height, width)` if the
    metric has `spatial=True`. N, height and width are free; height and width must be at least 31 (AlexNet),
    16 (VGG16) or 17 (SqueezeNet). The file does not check the images: it measures values out of range as they
    are, and images that are too small may crash onnxruntime. A .pt2 file needs up to 16 pixels more per side,
    and raises an error for smaller images.

    The ending of the name chooses the format. `.onnx` is a single file of opset 18, with the metadata in its
    properties. `.pt2` is for `torch.export.load(path).module()`; gradients flow through it to the images, and
    its metadata is the extra file 'rlpips.json'. Both hold the heads and backbone of the metric, for the CPU,
    in float32 and in eval mode. The metric itself does not change. Before the file is written, its distances
    are compared with those of the metric; for ONNX this needs onnxruntime.

    Args:
        metric: any `rlpips.LPIPS`.
        path: a file ending in .onnx or .pt2. It is written whole or not at all.
        weights: a name for the weights; the metadata holds it beside their digest.

    Returns:
        The largest difference between distances of the file and of the metric, for three pairs of random
        images. None for ONNX without onnxruntime.

    Raises:
        MissingExtraError: the name ends in .onnx, and onnx or onnxscript is not installed.
        OSError: the file cannot be written.
        RuntimeError: this version of torch cannot export the metric (torch 2.6 cannot export `spatial=True`
            to ONNX), or the exported file gives other distances.
        TypeError: the metric is not an `LPIPS`.
        ValueError: the name ends neither in .onnx nor in .pt2.
    """
    path = Path(path)
    check_export_file(path)
    if not isinstance(metric, LPIPS):
        raise TypeError(f"metric must be an rlpips.LPIPS, got {type(metric).__name__}")
    if type(metric.net) is not Backbone:
        raise TypeError("export needs a backbone of this package, but net has been replaced")
    metric = copy.deepcopy(metric).cpu().float().eval().requires_grad_(False)
    metadata = {
        "rlpips": __version__,
        "net": architecture(metric.pnet_type).name,
        "version": metric.version,
        "weights": weights,
        "tensors": metric_digest(metric) or "",
        "input": "x and y: images (N, 3, height, width), RGB in [-1, 1], float32",
        "output": f"distance: {'(N, 1, height, width)' if metric.spatial else '(N, 1, 1, 1)'}, float32",
        "least_size": str(metric.min_size),
    }
    with _quiet(), torch.no_grad():
        program = _trace(metric)
        if path.suffix.lower() == ".onnx":
            data = _onnx(program, metadata)
            difference = _difference(metric, _run_onnx(data)) if _installed("onnxruntime") else None
        else:
            data = _pt2(program, metadata)
            difference = _difference(metric, program.module())
    if difference is not None and not difference <= _TOLERANCE:
        raise RuntimeError(
            f"{path} was not written: its distances would differ from the metric's by {difference:.2g}. "
            f"torch {torch.__version__} exports it incorrectly"
        )
    write_atomically(path, data)
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings and logs of the exporters that users can do nothing about."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _images(count: int, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator, device="cpu") * 2 - 1


def _trace(metric: LPIPS) -> torch.export.ExportedProgram:
    """Record the graph of a metric, for any number of images of any size."""
    size = torch.export.Dim.DYNAMIC
    shape = {0: torch.export.Dim("N"), 2: size, 3: size}
    # Height and width differ, and no layer is one pixel wide; otherwise the exporter makes them constants.
    examples = (_images(2, 67, 75, seed=0), _images(2, 67, 75, seed=1))
    program = torch.export.export(_PlainMetric(metric), examples, dynamic_shapes=(shape, shape), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains file names of this machine
    return program


def _pt2(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={_METADATA: json.dumps(metadata)})
    return file.getvalue()


def _onnx(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    import onnx

    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["x", "y"],
            output_names=["distance"],
            opset_version=_OPSET,
            optimize=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise RuntimeError(
            f"torch {torch.__version__} cannot export this metric to ONNX; a newer version may"
        ) from error
    assert exported is not None
    model = exported.model_proto
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]  # the exporter's record of modules and lines of code
        part.doc_string = ""
    del graph.value_info[:]  # runtimes infer these shapes
    for value in (*graph.input, *graph.output):
        for dimension, name in zip(
            value.type.tensor_type.shape.dim, ("N", "", "height", "width"), strict=True
        ):
            if dimension.dim_param:
                dimension.dim_param = name
    model.doc_string = "LPIPS, a perceptual distance between images, exported by rlpips"
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _run_onnx(data: bytes) -> Callable[[Tensor, Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda x, y: torch.from_numpy(session.run(None, {"x": x.numpy(), "y": y.numpy()})[0])


def _difference(metric: LPIPS, exported: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return the largest difference, for a number and size of images that differ from the recorded ones."""
    x, y = _images(3, 96, 64, seed=2), _images(3, 96, 64, seed=3)
    return float((exported(x, y) - metric(x, y)).abs().max())
