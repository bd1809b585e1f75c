"""The comparison of activations in blocks against its formula, and the first convolution against torch's."""

import functools

import pytest
import torch
from peers import images, peers
from torch.utils._python_dispatch import TorchDispatchMode

from rlpips.backbones import convolutions
from rlpips.backbones.convolutions import ImageConv2d
from rlpips.metric import fused
from rlpips.metric.formula import layer_map, weighted_sum

NETS = ("alex", "vgg", "squeeze")


def features(seed=0, shape=(3, 24, 5, 7), last=True):
    generator = torch.Generator().manual_seed(seed)
    f = torch.randn(shape, generator=generator, dtype=torch.float64).relu()
    f[0, :, 1, 2] = 0  # a vector without a direction
    return f.to(memory_format=torch.channels_last) if last else f


def blockwise(f0, f1, weight):
    return fused.fused_layer_map(f0, fused.channel_lengths(f0), f1, fused.channel_lengths(f1), weight)


def by_formula(f0, f1, weight):
    return layer_map(f0, f1, functools.partial(weighted_sum, weight=weight))


@pytest.fixture(params=[1, 100, 1 << 18])
def block(request, monkeypatch):
    monkeypatch.setattr(fused, "BLOCK", request.param)


@pytest.mark.parametrize("last", [True, False])
def test_blocks_give_the_formulas_values_and_gradients(block, last):
    weight = torch.randn(24, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(3, 1, 5, 7, dtype=torch.float64)
    found = []
    for measure in (blockwise, by_formula):
        f0, f1 = (features(seed, last=last).requires_grad_() for seed in (0, 1))
        value = measure(f0, f1, weight)
        found.append((value, *torch.autograd.grad((value * towards).sum(), (f0, f1, weight))))
    for ours, expected in zip(*found, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lengths_are_those_of_the_values_not_rounded_again(block, dtype, last):
    f = (features(last=last) * 500).to(dtype)  # squares that float16 cannot hold
    expected = f.double().square().sum(dim=1, keepdim=True).sqrt()
    found = fused.channel_lengths(f)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lengths_of_reduced_precision_are_taken_within_transforms(dtype):
    f = features().to(dtype)
    found = torch.func.vmap(lambda each: fused.channel_lengths(each[None])[0])(f)
    assert found.dtype == torch.float32
    assert torch.allclose(found, fused.channel_lengths(f), rtol=1e-6, atol=0)


@pytest.mark.parametrize("other", [None, 0])
@pytest.mark.parametrize(
    ("dtype", "exponents", "limit"),
    [
        (torch.float32, range(-30, 19), 1e-6),
        (torch.bfloat16, range(-30, 19), 1e-2),
        (torch.float16, range(-4, 5), 1e-2),
        (torch.float64, range(-150, 153, 3), 1e-12),
    ],
    ids=str,
)
def test_derivatives_are_right_whatever_the_size_of_activations(dtype, exponents, limit, other):
    """Of both batches, or of one beside another of usual size."""
    weight = torch.rand(24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weight = weight.to(torch.promote_types(dtype, torch.float32))
    for exponent in exponents:
        sizes = (exponent, exponent if other is None else other)
        f0, f1 = (
            (torch.nn.functional.normalize(features(seed) + 0.1) * 10.0**size).to(dtype)
            for seed, size in enumerate(sizes)
        )
        found = []
        for measure, wide in ((blockwise, False), (by_formula, True)):
            a, b, w = ((x.double() if wide else x).detach().requires_grad_() for x in (f0, f1, weight))
            found.append(torch.autograd.grad(measure(a, b, w).sum(), (a, b, w)))
            found[-1] += torch.autograd.grad(measure(a, b.detach(), w.detach()).sum(), a, create_graph=True)
        for ours, expected in zip(*found, strict=True):
            assert torch.isfinite(ours).all(), exponent
            error = (ours.double() - expected).norm()
            assert error <= limit * expected.norm() or error < 1e-30, exponent


@pytest.mark.parametrize("exponent", [-44, -40, -35, 20, 25, 30, 37])
def test_derivatives_are_finite_where_squares_leave_the_range_of_floats(exponent):
    for sizes in ((exponent, exponent), (exponent, 0), (0, exponent)):
        f0, f1 = (
            (torch.nn.functional.normalize(features(seed) + 0.1) * 10.0**size).float().requires_grad_()
            for seed, size in enumerate(sizes)
        )
        weight = torch.ones(24, requires_grad=True)
        value = blockwise(f0, f1, weight)
        gradients = torch.autograd.grad(value.sum(), (f0, f1, weight))
        for each in (value, *gradients):
            assert torch.isfinite(each).all()
        for f, gradient in zip((f0, f1), gradients, strict=False):
            if f.abs().max() > 1e19:  # the slope is that of the distance over the length
                assert gradient.abs().max() < 1e-18


@pytest.mark.parametrize("exponent", range(-24, 15, 2))
def test_second_derivatives_are_finite_whatever_the_size_of_activations(exponent):
    f0 = (torch.nn.functional.normalize(features(0) + 0.1) * 10.0**exponent).float().requires_grad_()
    f1 = features(1).float()
    (slope,) = torch.autograd.grad(blockwise(f0, f1, torch.ones(24)).sum(), f0, create_graph=True)
    assert torch.isfinite(slope).all()
    (bend,) = torch.autograd.grad((slope / slope.detach().abs().max()).sum(), f0)
    assert torch.isfinite(bend).all()


def test_second_derivatives_are_those_of_the_formula():
    weight = torch.rand(4, dtype=torch.float64, requires_grad=True)
    f0, f1 = (features(seed, (2, 4, 2, 3)).abs().add(0.1).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(blockwise, (f0, f1, weight))
    assert torch.autograd.gradgradcheck(blockwise, (f0, f1, weight))
    assert torch.autograd.gradgradcheck(
        lambda a: blockwise(a, a, weight) + blockwise(a, f1.detach(), weight), f0
    )


def test_gradients_with_a_graph_are_those_without():
    weight = torch.rand(24, dtype=torch.float64, requires_grad=True)
    f0, f1 = (features(seed).requires_grad_() for seed in (0, 1))
    for inputs in ((f0, f1, weight), (weight,), (f1,), (f0, weight)):
        expected, found = (
            torch.autograd.grad(blockwise(f0, f1, weight).sum(), inputs, create_graph=graph)
            for graph in (False, True)
        )
        assert all(torch.allclose(*each, rtol=1e-10) for each in zip(found, expected, strict=True))


class Allocated(TorchDispatchMode):
    """Notes how many values each operation takes new memory for."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        held = [each for each in (*args, *(kwargs or {}).values()) if isinstance(each, torch.Tensor)]
        pointers = {each.untyped_storage().data_ptr() for each in held}
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in pointers:
            self.sizes.append(out.numel())
        return out


def test_large_activations_are_compared_in_blocks_and_small_ones_at_once():
    weight, steps = torch.ones(64), []
    for side, dtype in ((4, torch.float32), (8, torch.float32), (160, torch.float32), (160, torch.bfloat16)):
        f0, f1 = (features(seed, (1, 64, side, side)).to(dtype).requires_grad_() for seed in (0, 1))
        with Allocated() as whole:
            value = blockwise(f0, f1, weight).sum()
        assert max(whole.sizes) <= max(2**18, side**2)  # of 2**20.6 values
        with Allocated() as whole:
            value.backward()
        assert sum(size > max(2**18, side**2) for size in whole.sizes) == (
            2 if side == 160 else 0
        )  # gradients
        steps.append(len(whole.sizes))
    assert steps[0] == steps[1]


@pytest.mark.parametrize("net", NETS)
def test_a_loss_step_keeps_less_than_three_quarters_of_what_lpips_keeps(net):
    kept = []
    for metric in peers(net, torch.float32):
        storages = {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        in0, in1 = images(1, 3, 192, 192, seed=0).requires_grad_(), images(1, 3, 192, 192, seed=1)
        weights = {p.untyped_storage().data_ptr() for p in metric.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = metric(in0, in1)
        # copies of weights, of which there is one whatever the number of steps
        weights |= {each.copy.untyped_storage().data_ptr() for each in convolutions._laid_out.values()}
        kept.append(sum(size for pointer, size in storages.items() if pointer not in weights))
        value.sum().backward()
    assert kept[0] < 0.75 * kept[1]


@pytest.mark.parametrize("distance", [1e-2, 1e-5, 1e-8])
def test_near_duplicates_lose_no_digits(distance):
    f0 = features(last=True)
    f1 = f0 + distance**0.5 * features(1)
    weight = torch.rand(24, dtype=torch.float64)
    expected = by_formula(f0, f1, weight)
    found = blockwise(f0.float(), f1.float(), weight.float())
    assert (found - expected).abs().sum() <= 1e-3 * expected.sum()
    assert blockwise(f0.float(), f0.float().clone(), weight.float()).abs().max() == 0


@pytest.mark.parametrize("net", NETS)
def test_the_backward_pass_keeps_nothing_but_activations_and_lengths(net):
    ours, _ = peers(net)
    reference = ours.reference(images(1, 3, 64, 64, seed=1))
    x = images(1, 3, 64, 64).requires_grad_()
    moved = ours.reference(x)
    known = {f.untyped_storage().data_ptr() for r in (reference, moved) for f in (*r.features, *r.lengths)}
    new = []

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in known:
            new.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ours(moved, reference).sum().backward()
    assert max(new, default=0) <= max(ours.chns)  # the heads' weights
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("net", NETS)
def test_transforms_take_the_formula(net):
    ours, _ = peers(net, torch.float64)
    x, y = images(2, 3, 40, 40, dtype=torch.float64), images(2, 3, 40, 40, seed=1, dtype=torch.float64)
    reference = ours.reference(y)

    def measure(a):
        return ours(a, reference).sum()

    moved = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(measure(moved), moved)
    along = torch.randn_like(x)
    _, slope = torch.func.jvp(measure, (x,), (along,))
    assert torch.allclose(slope, (expected * along).sum())
    assert torch.allclose(torch.func.grad(measure)(x), expected)
    each = torch.func.vmap(lambda a, b: torch.func.grad(lambda c: ours(c[None], b[None]).sum())(a))(x, y)
    assert torch.allclose(each, expected)
    rows = torch.func.jacrev(lambda t: ours(x * t[:, None, None, None], reference).flatten())(x.new_ones(2))
    assert torch.allclose(rows.diagonal(), (expected * x).sum(dim=(1, 2, 3)))
    value = ours(moved, reference).flatten()
    (batched,) = torch.autograd.grad(
        value, moved, torch.eye(2, dtype=torch.float64), is_grads_batched=True, retain_graph=True
    )
    assert torch.allclose(batched.sum(dim=0), expected)


@pytest.mark.parametrize(("size", "stride", "padding"), [(11, 4, 2), (3, 2, 0), (3, 1, 1)])
@pytest.mark.parametrize("shape", [(2, 3, 31, 46), (1, 3, 33, 64), (0, 3, 32, 32)])
def test_the_first_convolution_is_torchs(size, stride, padding, shape):
    ours = ImageConv2d(3, 8, size, stride=stride, padding=padding).double()
    plain = torch.nn.Conv2d(3, 8, size, stride=stride, padding=padding).double()
    plain.load_state_dict(ours.state_dict())
    found = []
    for conv in (ours, plain):
        x = images(*shape, dtype=torch.float64).requires_grad_()
        out = conv(x)
        grads = torch.autograd.grad(out.square().sum(), (x, *conv.parameters()))
        found.append((out, *grads))
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    assert not len(x) or found[0][0].is_contiguous(memory_format=torch.channels_last)
