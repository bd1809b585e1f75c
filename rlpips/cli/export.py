"""The command `rlpips export`."""

import argparse
from pathlib import Path
from typing import Any

import rlpips
from rlpips.cli.options import add_output_option, add_weights_options, output_file


def add_export(commands: Any) -> None:
    """Add the command to those of `rlpips`."""
    command = commands.add_parser(
        "export",
        help="write a metric as an ONNX file or a torch.export program",
        description="Write a metric to one file: .onnx for onnxruntime and other runtimes, or .pt2 for "
        "torch.export.load. Its inputs x and y are float32 images (N, 3, height, width), RGB in [-1, 1], of "
        "any number and size; its output is their distances.",
        epilog="ONNX needs: pip install 'rlpips[onnx]'. If onnxruntime is installed, the distances of the "
        "file are compared with PyTorch's before it is written.",
    )
    add_weights_options(command)
    command.add_argument(
        "--spatial", action="store_true", help="return a map of distances instead of one number for each pair"
    )
    add_output_option(
        command,
        output_file,
        "write to FILE, completely or not at all; .onnx or .pt2 chooses the format",
        required=True,
    )
    command.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    """Write the file, and print how large it is and how closely it agrees with PyTorch."""
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
        print(f"{options.output}: {size}, not compared with PyTorch because onnxruntime is not installed")
    else:
        print(f"{options.output}: {size}, largest difference from PyTorch {difference:.1g}")
    return 0
