"""The command `rlpips export`."""

import argparse
from pathlib import Path
from typing import Any

import rlpips
from rlpips.cli.options import add_weights_options, output_file


def add_export(commands: Any) -> None:
    """Add the command to those of `rlpips`."""
    command = commands.add_parser(
        "export",
        help="write a metric as ONNX, or as a program of torch.export",
        description="Write a metric as one file: .onnx for onnxruntime and other runtimes, or .pt2 for "
        "torch.export.load. It takes images x and y of any number and size, (N, 3, height, width), RGB in "
        "[-1, 1], float32, and returns their distances.",
        epilog="ONNX needs: pip install 'rlpips[onnx]'. Where onnxruntime is installed, the file's distances "
        "are compared with PyTorch's before it is written.",
    )
    add_weights_options(command)
    command.add_argument("--spatial", action="store_true", help="return a map of distances for each pair")
    command.add_argument(
        "-o",
        dest="output",
        type=output_file,
        required=True,
        metavar="FILE",
        help="write to FILE, whole or not at all; .onnx or .pt2 chooses the format",
    )
    command.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    """Write the file, say how large it is and how well it agrees."""
    from rlpips.export import check_export_file, export_metric
    from rlpips.hub.registry import robust_default

    check_export_file(options.output)
    metric = rlpips.LPIPS(
        net=options.net, weights=options.weights, version=options.version, spatial=options.spatial
    )
    name = robust_default(options.net) if options.weights == "robust" else Path(options.weights).name
    difference = export_metric(metric, options.output, weights=name)
    size = f"{options.output.stat().st_size / 1e6:.1f} MB" if options.output.is_file() else "written"
    if difference is None:
        print(f"{options.output}: {size}, not compared with PyTorch, as onnxruntime is not installed")
    else:
        print(f"{options.output}: {size}, largest difference to PyTorch {difference:.1g}")
    return 0
