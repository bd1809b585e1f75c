"""A metric with floors and layers of pixels, on every path, against the formula written out in float64."""

import copy
import io

import numpy as np
import pytest
import scipy.fft
import torch
import torch.nn.functional as F  # noqa: N812
from peers import images

import rlpips
from rlpips import functional, pairwise
from rlpips.backbones.pixels import PixelFeatures, pixel_filters
from rlpips.errors import CheckpointError
from rlpips.export import export_metric

YUV = torch.tensor([[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.100]]).double()


def state_with_parts(net, scales):
    torch.manual_seed(3)
    metric = rlpips.LPIPS(net=net, pnet_rand=True, use_dropout=False)
    state = {key: value for key, value in metric.state_dict().items() if not key.startswith("lins.")}
    lengths = metric.reference(images(1, 3, 64, 64)).lengths
    floors = [length.mean() / 2 for length in lengths] + [torch.tensor(0.7), torch.tensor(0.4)]
    for k in range(scales):
        state[f"lin{metric.L + k}.model.0.weight"] = torch.rand(1, 96, 1, 1) / 30
    return state | {"floors": torch.stack(floors[: metric.L + scales])}


@pytest.fixture(scope="module", params=[("alex", 2), ("alex", 1), ("alex", 0), ("vgg", 2)], ids=str)
def metric(request, tmp_path_factory):
    net, scales = request.param
    path = tmp_path_factory.mktemp("parts") / "parts.pth"
    torch.save(state_with_parts(net, scales), path)
    return rlpips.LPIPS(net=net, weights=path, use_dropout=False)


@pytest.fixture(scope="module")
def pair():
    x = images(2, 3, 75, 90, seed=1).clamp(-1, 1)
    return x, (x + 0.3 * images(2, 3, 75, 90, seed=2)).clamp(-1, 1)


def written_out(metric, x, y):
    """Return the shares of the layers, computed step by step from the state dict, in float64."""
    state = {key: value.double() for key, value in metric.state_dict().items()}
    net = copy.deepcopy(metric.net).double()
    scales = sum(value.shape[1:] == (96, 1, 1) for key, value in state.items() if key.startswith("lin")) // 2
    layers = []
    for image in (x.double(), y.double()):
        scaled = (image - state["scaling_layer.shift"]) / state["scaling_layer.scale"]
        features = [*net(scaled)]
        colours = torch.einsum("kc,nchw->nkhw", YUV / YUV.norm(dim=1, keepdim=True), image / 2)
        for scale in range(scales):
            shrunk = F.avg_pool2d(colours, 2**scale)
            blocks = shrunk.unfold(2, 8, 4).unfold(3, 8, 4).detach().numpy()
            waves = scipy.fft.dctn(blocks, axes=(-2, -1), norm="ortho")
            waves[..., 0, 0] /= 8
            kept = [waves[:, 0, ..., a, b] for a in range(8) for b in range(8)]
            kept += [waves[:, k, ..., a, b] for k in (1, 2) for a in range(4) for b in range(4)]
            features.append(torch.from_numpy(np.stack(kept, 1)))
        layers.append(features)
    shares = []
    for k, (f, g) in enumerate(zip(*layers, strict=True)):
        weight = state.get(f"lin{k}.model.0.weight")
        u, v = (each / (each.square().sum(1, True) + state["floors"][k] ** 2).sqrt() for each in (f, g))
        shares.append(((u - v).square() * weight).sum(1).mean((1, 2)))
    return torch.stack(shares)


def test_distances_are_those_of_the_formula(metric, pair):
    expected = written_out(metric, *pair)
    total, shares = metric(*pair, retPerLayer=True)
    assert len(shares) == metric.L == len(metric.chns)
    assert torch.allclose(torch.stack(shares).flatten(1).double(), expected, rtol=2e-5)
    assert torch.allclose(total.flatten().double(), expected.sum(0), rtol=1e-5)
    exact = copy.deepcopy(metric).double()
    assert torch.allclose(exact(*(x.double() for x in pair)).flatten(), expected.sum(0), rtol=1e-12)


def test_every_way_to_a_distance_is_the_same(metric, pair):
    x, y = pair
    expected = metric(x, y).flatten()
    parameters = dict(metric.named_parameters())
    vectors = pairwise.embed(metric, torch.cat(pair))
    reference = metric.reference(y)
    units = zip(metric.reference(x).unit_features, reference.unit_features, metric.heads, strict=True)
    ways = {
        "reference": metric(x, reference),
        "one with many": torch.cat([metric(x[k : k + 1], y)[k : k + 1] for k in range(2)]),
        "tiles": metric(x, y, tile=32),
        "functional": functional.lpips(parameters, x, y),
        "vmap": torch.func.vmap(functional.lpips, (None, 0, 0))(parameters, x, y),
        "embeddings": (vectors[:2] - vectors[2:]).square().sum(1),
        "all pairs": pairwise.cdist(metric, x, y).diagonal(),
        "unit features": sum(head((a - b).square()).mean((1, 2, 3)) for a, b, head in units),
        "state dict": functional.lpips(metric.state_dict(), x, y),
        "[0, 1]": metric(x / 2 + 0.5, y / 2 + 0.5, normalize=True),
    }
    for name, found in ways.items():
        assert torch.allclose(found.flatten(), expected, rtol=1e-4), name
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(metric(x, y).flatten(), expected, rtol=0.1)


def test_gradients_are_those_of_the_formula(metric, pair):
    metric = copy.deepcopy(metric).double()
    y = pair[1].double()
    parameters = dict(metric.named_parameters())
    found = []
    for measure in (
        lambda x: metric(x, y),
        lambda x: metric(x, metric.reference(y)),
        lambda x: metric(x, y, tile=32),
        lambda x: functional.lpips(parameters, x, y),  # and so the formula's own derivative
    ):
        x = pair[0].double().requires_grad_()
        measure(x).sum().backward()
        found.append(x.grad)
    for each in found:
        assert (each - found[-1]).norm() < 1e-9 * found[-1].norm()
    step = 1e-5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        slope = (metric(x + step, y) - metric(x - step, y)).sum() / 2
    assert torch.allclose(slope, (found[0] * step).sum(), rtol=1e-4)


def test_second_derivatives_know_the_floors(metric):
    metric = copy.deepcopy(metric).double()
    x = images(1, 3, 48, 48, seed=4).clamp(-1, 1).double()
    y, v = images(1, 3, 48, 48, seed=5).clamp(-1, 1).double(), images(1, 3, 48, 48, seed=6).double()
    gradient = torch.func.grad(lambda each: functional.lpips(dict(metric.named_parameters()), each, y).sum())
    _, expected = torch.func.jvp(gradient, (x,), (v,))
    x.requires_grad_()
    (first,) = torch.autograd.grad(metric(x, y).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first * v).sum(), x)
    assert torch.allclose(second, expected, rtol=1e-6, atol=1e-12)


def test_floors_that_are_trained_get_their_gradient(metric, pair):
    metric = copy.deepcopy(metric).double()
    x, y = (each.double() for each in pair)
    metric.floors.requires_grad_()
    metric(x, y).sum().backward()
    with torch.no_grad():
        for k in range(metric.L):
            ends = []
            for sign in (1, -1):
                moved = copy.deepcopy(metric)
                moved.floors[k] += sign * 1e-5
                ends.append(moved(x, y).sum())
            assert torch.allclose((ends[0] - ends[1]) / 2e-5, metric.floors.grad[k], rtol=1e-4)


def test_a_reference_is_stale_when_floors_change(metric, pair):
    metric = copy.deepcopy(metric)
    reference = metric.reference(pair[1])
    with torch.no_grad():
        metric.floors.mul_(2)
    with pytest.raises(ValueError, match="before the metric changed"):
        metric(pair[0], reference)


def test_maps_are_made_in_tiles_too(metric, pair):
    spatial = copy.deepcopy(metric)
    spatial.spatial = True
    assert torch.allclose(spatial(*pair, tile=32), spatial(*pair), rtol=1e-3, atol=1e-6)


def test_copies_on_disk_and_in_memory_agree(metric, pair, tmp_path):
    expected = metric(*pair)
    net = metric.pnet_type
    metric.save(tmp_path / "own.safetensors")
    torch.save(copy.deepcopy(metric).half().state_dict(), tmp_path / "half.pth")
    own = rlpips.LPIPS(net=net, weights=tmp_path / "own.safetensors", use_dropout=False)
    assert torch.equal(own(*pair), expected)
    half = rlpips.LPIPS(net=net, weights=tmp_path / "half.pth", use_dropout=False)
    assert torch.allclose(half(*pair), expected, rtol=0.02)
    buffer = io.BytesIO()
    torch.save(metric, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(*pair), expected)
    bare = rlpips.LPIPS(net=net, weights=tmp_path / "own.safetensors", lpips=False)
    assert bare.pixels is None
    assert len(bare.floors) == bare.L


def test_a_plain_metric_has_neither(metric):
    plain = rlpips.LPIPS(net=metric.pnet_type, pnet_rand=True, use_dropout=False)
    assert plain.floors is None
    assert plain.pixels is None
    assert not {key for key in plain.state_dict() if "floors" in key or "pixels" in key}
    with pytest.raises(RuntimeError, match="floors"):
        plain.load_state_dict(metric.state_dict())
    with pytest.raises(RuntimeError, match="floors"):
        metric.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_exports_agree(tmp_path, suffix):
    torch.save(state_with_parts("alex", 2), tmp_path / "parts.pth")
    metric = rlpips.LPIPS(weights=tmp_path / "parts.pth", use_dropout=False)
    difference = export_metric(metric, tmp_path / f"metric{suffix}")  # an error if the file disagrees
    assert difference is not None
    assert difference < 1e-5


def test_torch_compile_takes_it(tmp_path, pair):
    torch.save(state_with_parts("alex", 2), tmp_path / "parts.pth")
    metric = rlpips.LPIPS(weights=tmp_path / "parts.pth", use_dropout=False)
    compiled = torch.compile(metric, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(*pair), metric(*pair), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"floors": torch.ones(5)}, r"floors has shape \(5,\), not \(7,\)"),
        ({"floors": -torch.ones(7)}, "floors has negative values"),
        ({"floors": torch.full((7,), torch.nan)}, "floors is not finite"),
        ({"floors": torch.ones(7, dtype=torch.int64)}, "floors is not finite floating point"),
        ({"lin6.model.0.weight": -torch.ones(1, 96, 1, 1)}, "lin6 has negative weights"),
        ({"lin6.model.0.weight": torch.ones(1, 64, 1, 1)}, r"lin6 has shape \(1, 64, 1, 1\)"),
        ({"lin7.model.0.weight": torch.ones(1, 96, 1, 1)}, "unknown: lin7"),
        ({"lin5.model.0.weight": None}, "missing: lin5"),
    ],
)
def test_parts_that_no_metric_can_have_are_refused(tmp_path, change, message):
    state = {**state_with_parts("alex", 2), **change}
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=message):
        rlpips.LPIPS(weights=tmp_path / "bad.pth")


def test_filters_are_the_same_after_any_conversion():
    pixels = PixelFeatures(1).half().bfloat16().double()
    assert torch.equal(pixels.filters, pixel_filters())
    luma = pixel_filters()[1:64].flatten(1)
    assert torch.allclose(luma @ luma.T, torch.eye(63).double(), atol=1e-12)
    with pytest.raises(ValueError, match="scales=3"):
        PixelFeatures(3)


def test_features_of_pixels_lie_channels_last_with_and_without_gradients():
    pixels, x = PixelFeatures(2), images(2, 3, 75, 90)
    with torch.no_grad():
        plain = list(pixels(x))
    for without, f in zip(plain, pixels(x.requires_grad_()), strict=True):
        assert without.is_contiguous(memory_format=torch.channels_last)  # as the comparison reads them
        assert f.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(without, f, atol=1e-6)
