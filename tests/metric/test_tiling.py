import copy
import re
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import difference, images, peers

import rlpips
from rlpips.backbones import convolutions

NETS = {"alex": 31, "vgg": 16, "squeeze": 17}
LIMIT = {torch.float32: 1e-5, torch.float64: 1e-12}
ROOT = Path(rlpips.__file__).parents[1]


def error(found, expected):
    """Return the largest difference, relative to the largest value of each image."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if not found.numel():
        return 0.0
    scale = expected.abs().amax(dim=(1, 2, 3), keepdim=True)
    return ((found - expected).abs() / scale.clamp(min=1e-30)).max().item()


def pair(metric, shape0, shape1=None, grad=True):
    dtype = metric.scaling_layer.shift.dtype
    shapes = shape0, shape1 or shape0
    return [images(*s, seed=k, dtype=dtype).requires_grad_(grad) for k, s in enumerate(shapes)]


def check_values(net, dtype, batches, size, tile, spatial, version, normalize):
    ours, _ = peers(net, dtype, version, spatial=spatial)
    x, y = pair(ours, (batches[0], 3, *size), (batches[1], 3, *size), grad=False)
    if normalize:
        x, y = (x + 1) / 2, (y + 1) / 2
    expected, expected_layers = ours(x, y, retPerLayer=True, normalize=normalize)
    found, layers = ours(x, y, retPerLayer=True, normalize=normalize, tile=tile)
    assert error(found, expected) <= LIMIT[dtype]
    for layer, expected_layer in zip(layers, expected_layers, strict=True):
        assert error(layer, expected_layer) <= LIMIT[dtype]
    assert torch.equal(ours(x, y, normalize=normalize, tile=tile), found)


anything = {
    "batches": st.sampled_from([(1, 1), (2, 2), (1, 3), (2, 1), (0, 0)]),
    "spatial": st.booleans(),
    "version": st.sampled_from(["0.0", "0.1"]),
    "normalize": st.booleans(),
}


@pytest.mark.parametrize("net", ["alex", "squeeze"])
@settings(max_examples=6)
@given(
    dtype=st.sampled_from(list(LIMIT)),
    sizes=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    tile=st.sampled_from([90, 113, 160, 1000]),
    **anything,
)
def test_tiles_of_any_image_give_its_distance(net, dtype, sizes, tile, **rest):
    check_values(net, dtype, size=[NETS[net] + side for side in sizes], tile=tile, **rest)


# Tiny tiles, which run an image many times over, and VGG16, in narrow images, where that is quick.
@pytest.mark.parametrize(("net", "examples"), [("alex", 8), ("squeeze", 8), ("vgg", 4)])
def test_tiles_of_any_size_give_the_distance(net, examples):
    @settings(max_examples=examples)
    @given(
        dtype=st.sampled_from(list(LIMIT) if net != "vgg" else [torch.float32]),
        length=st.integers(0, 260),
        breadth=st.integers(0, 9),
        upright=st.booleans(),
        tile=st.sampled_from([16, 17, 40, 95] if net != "vgg" else [40, 64, 95]),
        **anything,
    )
    def check(dtype, length, breadth, upright, tile, **rest):
        size = NETS[net] + length, NETS[net] + breadth
        check_values(net, dtype, size=size if upright else size[::-1], tile=tile, **rest)

    check()


@pytest.mark.parametrize(("net", "overlap"), [("alex", 161), ("vgg", 186), ("squeeze", 199)])
def test_crops_are_as_much_wider_than_tiles_as_the_documentation_says(net, overlap):
    metric = copy.deepcopy(peers(net)[0])
    widths = []
    metric.scaling_layer.register_forward_hook(lambda _module, _inputs, out: widths.append(out.shape[3]))
    x, y = pair(metric, (1, 3, 31, 500), grad=False)
    metric(x, y, tile=100)  # rounded up to 112
    assert (len(widths), max(widths)) == (5, 112 + overlap)
    widths.clear()
    metric(x, y, tile=400)  # two tiles of one size, not a large and a small one
    assert len(widths) == 2
    assert max(widths) <= 256 + overlap


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize(("net", "size"), [("alex", (135, 215)), ("squeeze", (211, 140)), ("vgg", (16, 231))])
def test_gradients_are_those_of_whole_images(net, size, spatial):
    ours, _ = peers(net, torch.float64, spatial=spatial)
    x, y = pair(ours, (1, 3, *size), (1 if net == "vgg" else 2, 3, *size))
    whole, tiled = ours(x, y), ours(x, y, tile=96)
    assert error(tiled, whole) <= 1e-12
    weight = torch.randn_like(whole)
    expected, found = (torch.autograd.grad(each, (x, y), weight) for each in (whole, tiled))
    assert all(error(*each) <= 1e-12 for each in zip(found, expected, strict=True))


def test_gradients_flow_to_what_requires_them():
    ours, _ = peers("alex", torch.float64)
    x, y = pair(ours, (1, 3, 40, 200))
    expected = torch.autograd.grad(ours(x, y), y)[0]
    with torch.no_grad():
        assert not ours(x, y, tile=64).requires_grad
    assert not ours(x.detach(), y.detach(), tile=64).requires_grad
    ours(x.detach(), y, tile=64).backward()
    assert x.grad is None
    assert error(y.grad, expected) <= 1e-12
    x.grad = y.grad = None
    ours(x, x, tile=64).backward()  # at distance 0
    assert x.grad.abs().max() == 0


@pytest.mark.parametrize("heads", [True, False])
def test_weights_can_be_trained(heads):
    torch.manual_seed(0)
    metric = rlpips.LPIPS(pnet_rand=True, pnet_tune=True, eval_mode=False, lpips=heads, use_dropout=False)
    metric.double()
    x, y = pair(metric, (2, 3, 40, 200), grad=False)
    gradients = []
    for tile in (None, 64):
        metric.zero_grad()
        metric(x, y, tile=tile).sum().backward()
        gradients.append([parameter.grad for parameter in metric.parameters()])
    assert len(gradients[0]) == (15 if heads else 10)
    for expected, found in zip(*gradients, strict=True):
        assert (found - expected).norm() <= 1e-12 * expected.norm()


def held(run, metric):
    """Return the most bytes, but for weights, that autograd's graphs held at once while `run` ran."""
    now = peak = 0
    weights = {parameter.data_ptr() for parameter in metric.parameters()}

    class Box:
        def __init__(self, tensor):
            self.tensor = tensor

    def release(size):
        nonlocal now
        now -= size

    def pack(tensor):
        nonlocal now, peak
        laid_out = {kept.copy.data_ptr() for kept in convolutions._laid_out.values()}
        size = 0 if tensor.data_ptr() in weights | laid_out else tensor.numel() * tensor.element_size()
        now += size
        peak = max(peak, now)
        box = Box(tensor)
        weakref.finalize(box, release, size)
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        run()
    return peak


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_one_tile_has_a_graph_at_a_time(net):
    ours, _ = peers(net)

    def step(length, tile):
        x, y = pair(ours, (1, 3, 40, length))
        return held(lambda: ours(x, y, tile=tile).backward(), ours)

    assert step(1000, 64) < step(1000, None) / 2
    more = 2 * 3 * 40 * 500 * 4  # bytes of the images themselves
    assert step(1500, 64) <= step(1000, 64) + more


def test_real_photos_measure_as_with_lpips(real_peers, shared):
    ours, theirs = real_peers("alex")
    path = max((shared / "images" / "photos").glob("*.jpg"), key=lambda path: path.stat().st_size)
    photo = rlpips.im2tensor(rlpips.load_image(path))
    noisy = (photo + 0.1 * images(*photo.shape)).clamp(-1, 1)
    expected = theirs(photo, noisy)
    assert ours(photo, noisy, tile=128).item() == pytest.approx(expected.item(), rel=1e-5)
    assert difference(ours(photo, noisy, tile=128), expected) <= 1e-6


def test_the_snippet_of_the_guide_does_what_it_says():
    section = (ROOT / "docs" / "losses.md").read_text().partition("## Huge images\n")[2]
    code = re.match(r"\n```python\n(.*?)```", section, re.DOTALL)[1]
    metric, _ = peers("alex")
    _, y = pair(metric, (1, 3, 40, 900), grad=False)
    scope = {"metric": metric, "target": y}
    exec(code, scope)
    x = scope["output"].detach().requires_grad_()
    expected = metric(x, y).mean()
    (gradient,) = torch.autograd.grad(expected, x)
    assert abs(scope["loss"] - expected) <= 1e-5 * expected
    assert (scope["output"].grad - gradient).norm() <= 1e-4 * gradient.norm()


# --- other precisions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_is_that_of_whole_images(dtype):
    metric = copy.deepcopy(peers("alex")[0]).to(dtype)
    x, y = pair(metric, (1, 3, 40, 200), grad=False)
    expected, found = metric(x, y), metric(x, y, tile=64)
    assert found.dtype == expected.dtype == dtype
    assert torch.allclose(found, expected, rtol=0.02)
    assert peers("alex")[0](x, y, tile=64).dtype == torch.float32


def test_autocast_holds_in_the_backward_pass_too():
    ours, _ = peers("alex")
    x, y = pair(ours, (1, 3, 40, 200))
    exact = torch.autograd.grad(ours(x, y), x)[0]
    gradients = []
    for tile in (None, 64):
        with torch.autocast("cpu", torch.bfloat16):
            value = ours(x, y, tile=tile)
        assert value.dtype == torch.float32
        gradients.append(torch.autograd.grad(value, x)[0])
    expected, found = gradients
    assert (found - expected).norm() < (exact - expected).norm() / 4


# --- what cannot be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [0, -512, 512.0, True, "512", (512, 512)])
def test_a_tile_is_a_positive_number_of_pixels(tile):
    ours, _ = peers("alex")
    with pytest.raises(ValueError, match="tile must be a positive whole number of pixels"):
        ours(*pair(ours, (1, 3, 64, 64)), tile=tile)


def test_a_reference_cannot_be_cut():
    ours, _ = peers("alex")
    x, y = pair(ours, (1, 3, 64, 64))
    for each in ((x, ours.reference(y)), (ours.reference(x), y)):
        with pytest.raises(TypeError, match="a reference holds the features of whole images"):
            ours(*each, tile=64)


def test_images_are_checked_as_ever():
    ours, _ = peers("alex")
    x, y = pair(ours, (1, 3, 20, 64))
    with pytest.raises(ValueError, match="in0 must be at least 31 x 31"):
        ours(x, y, tile=64)


def test_dropout_is_refused():
    metric = rlpips.LPIPS(pnet_rand=True, eval_mode=False)
    x, y = pair(metric, (1, 3, 40, 100))
    with pytest.raises(ValueError, match=r"dropout would fall differently; .* use_dropout=False"):
        metric(x, y, tile=64)
    metric.eval()
    assert error(metric(x, y, tile=64), metric(x, y)) <= 1e-5


def test_a_second_derivative_is_refused():
    ours, _ = peers("alex")
    x, y = pair(ours, (1, 3, 40, 100))
    with pytest.raises(RuntimeError, match="tiles have no second derivatives; .* create_graph"):
        torch.autograd.grad(ours(x, y, tile=64), x, create_graph=True)


def test_images_that_change_before_the_backward_pass_are_noticed():
    ours, _ = peers("alex")
    x, y = pair(ours, (1, 3, 40, 100))
    distance = ours(x, y, tile=64)
    with torch.no_grad():
        y.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        distance.backward()
