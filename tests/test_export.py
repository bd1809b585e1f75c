import io
import json
import re
import sys
import warnings
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from peers import images

import rlpips
from rlpips.cli import main
from rlpips.hub.digests import metric_digest

OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7)


def pair(count, height, width):
    x = 0.4 * images(count, 3, height, width).clamp(-2, 2)
    return x, (x + 0.2 * images(count, 3, height, width, seed=1)).clamp(-1, 1)


def run(path):
    """Load an ONNX file, to be called as the metric is."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x, y: torch.from_numpy(session.run(["distance"], {"x": x.numpy(), "y": y.numpy()})[0])


def assert_equal(exported, metric, sizes):
    for size in sizes:
        x, y = pair(*size)
        with torch.no_grad():
            found, expected = exported(x, y), metric(x, y)
            assert exported(x, x).abs().max() == 0
        assert found.shape == expected.shape
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_command_writes_an_onnx_file_of_its_own(tmp_path, capfd):
    path = tmp_path / "metric.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["export", "-o", str(path)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert re.fullmatch(rf"{re.escape(str(path))}: 9\.9 MB, largest difference from PyTorch \S+\n", out)
    assert float(out.split()[-1]) < 1e-6
    assert list(tmp_path.iterdir()) == [path]

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    batch = ["N", 3, "height", "width"]
    assert shapes == {"x": batch, "y": batch, "distance": ["N", 1, 1, 1]}
    metric = rlpips.LPIPS(weights="robust")
    told = {each.key: each.value for each in model.metadata_props}
    assert (told["rlpips"], told["net"], told["weights"]) == (rlpips.__version__, "alex", "rlpips-alex")
    assert told["tensors"] == metric_digest(metric)
    assert "[-1, 1]" in told["input"]
    assert str(Path(rlpips.__file__).parent).encode() not in path.read_bytes()  # nobody's own folders

    assert_equal(run(path), metric, [(1, 64, 64), (2, 31, 46), (3, 75, 33), (1, 127, 130)])


@pytest.mark.parametrize(
    ("net", "options"), [("vgg", {"lpips": False}), ("squeeze", {"version": "0.0", "spatial": not OLD})]
)
def test_every_net_agrees_in_onnxruntime(net, options, tmp_path):
    torch.manual_seed(0)
    metric = rlpips.LPIPS(net=net, pnet_rand=True, **options)
    assert rlpips.export_metric(metric, tmp_path / "metric.onnx") < 1e-5
    assert_equal(run(tmp_path / "metric.onnx"), metric, [(1, 17, 40), (2, 50, 31)])


def test_a_program_of_torch_export_agrees_and_has_gradients(real_weights, tmp_path):
    metric = rlpips.LPIPS(eval_mode=False).double()  # in training mode, with dropout
    assert rlpips.export_metric(metric, tmp_path / "metric.pt2", weights="mine") < 1e-6
    assert metric.training
    assert metric.lin0.channel_weights.dtype == torch.float64
    assert metric.lin0.channel_weights.requires_grad
    files = {"rlpips.json": ""}
    exported = torch.export.load(tmp_path / "metric.pt2", extra_files=files).module()
    assert json.loads(files["rlpips.json"])["weights"] == "mine"

    metric = rlpips.LPIPS()
    assert_equal(exported, metric, [(1, 64, 64), (3, 75, 47)])
    x, y = pair(2, 60, 70)
    found, expected = (torch.autograd.grad(f(x.requires_grad_(), y).sum(), x)[0] for f in (exported, metric))
    assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max())


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "metric.pt2"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        rlpips.export_metric(rlpips.LPIPS(pnet_rand=True), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not OLD, reason="newer versions of torch can")
def test_what_torch_cannot_export_is_said(tmp_path):
    with pytest.raises(RuntimeError, match="a newer version may"):
        rlpips.export_metric(rlpips.LPIPS(pnet_rand=True, spatial=True), tmp_path / "metric.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    metric = rlpips.LPIPS(pnet_rand=True)
    with pytest.raises(ValueError, match=r"metric\.pth: a metric is exported as \.onnx or \.pt2"):
        rlpips.export_metric(metric, "metric.pth")
    assert main(["export", "-o", str(tmp_path / "metric.pth")]) == 1
    assert "exported as .onnx or .pt2" in capsys.readouterr().err
    with pytest.raises(TypeError, match="got Conv2d"):
        rlpips.export_metric(torch.nn.Conv2d(3, 3, 1), "metric.pt2")
    for missing in ("onnx", "onnxscript"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            with pytest.raises(rlpips.MissingExtraError, match=r"pip install 'rlpips\[onnx\]'"):
                rlpips.export_metric(metric, "metric.onnx")


def test_the_older_exporter_takes_the_metric_with_all_its_defaults():
    metric = rlpips.LPIPS(pnet_rand=True)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            metric, pair(1, 64, 64), file, dynamo=False, input_names=["x", "y"], output_names=["distance"]
        )
    assert_equal(run(file.getvalue()), metric, [(1, 64, 64)])
