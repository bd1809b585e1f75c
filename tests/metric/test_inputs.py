import copy
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from peers import difference, images, peers

import rlpips
from rlpips import functional


@pytest.fixture
def metric():
    return rlpips.LPIPS(pnet_rand=True)


@pytest.mark.parametrize(
    ("in0", "in1", "error", "message"),
    [
        (np.zeros((1, 3, 64, 64)), (1, 3, 64, 64), TypeError, "in0 must be a tensor .* got ndarray"),
        ((1, 3, 64, 64), (64,), ValueError, r"in1 must have shape .* got \(64,\)"),
        ((1, 1, 3, 64, 64), (1, 3, 64, 64), ValueError, r"in0 must have shape \(N, 3, H, W\), got \(1, 1, 3"),
        ((1, 64, 64, 3), (1, 64, 64, 3), ValueError, "in0 must have 3 channels.*channels are last"),
        ((64, 64, 3), (64, 64, 3), ValueError, r"got \(64, 64, 3\); the channels are last.*\(2, 0, 1\)"),
        ((2, 64, 64), (2, 64, 64), ValueError, r"in0 must have shape \(N, 3, H, W\), got \(2, 64, 64\)$"),
        ((4, 64, 64), (3, 64, 64), ValueError, r"in0 must have shape \(N, 3, H, W\), got \(4, 64, 64\)$"),
        ((1, 3, 64, 64), (1, 2, 64, 64), ValueError, r"in1 must have 3 channels.*\(1, 2, 64, 64\)"),
        ((1, 4, 64, 64), (1, 3, 64, 64), ValueError, r"in0 must have 3 channels.*\(1, 4, 64, 64\)"),
        ((1, 3, 64, 64), (1, 3, 64, 65), ValueError, r"same height and width.*\(64, 64\) and \(64, 65\)"),
        ((2, 3, 64, 64), (3, 3, 64, 64), ValueError, "same batch size.*2 and 3"),
        ((1, 3, 30, 64), (1, 3, 30, 64), ValueError, "at least 31 x 31.*height 30 and width 64"),
        ((1, 3, 64, 8), (1, 3, 64, 8), ValueError, "at least 31 x 31.*height 64 and width 8"),
    ],
)
def test_wrong_inputs_are_named(metric, in0, in1, error, message):
    def make(shape):
        return images(*shape) if isinstance(shape, tuple) and len(shape) == 4 else shape

    first = torch.zeros(in0) if isinstance(in0, tuple) else in0
    second = torch.zeros(in1)
    with pytest.raises(error, match=message):
        metric(first, second)


SHAPES = [(2, 3, 64, 64), (1, 3, 64, 64), (2, 1, 64, 64), (1, 1, 64, 64), (3, 64, 64), (1, 64, 64), (64, 64)]


def image(shape, seed=0):
    return images(*(1,) * (4 - len(shape)), *shape, seed=seed).view(shape)


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
@pytest.mark.parametrize("normalize", [False, True])
def test_grey_and_single_images_measure_as_with_lpips(net, normalize):
    ours, theirs = peers(net)
    for first, second in [*zip(SHAPES, SHAPES, strict=True), *itertools.permutations(SHAPES[1:], 2)][::2]:
        a, b = image(first), image(second, seed=1)
        if normalize:
            a, b = (a + 1) / 2, (b + 1) / 2
        with torch.no_grad():
            expected, layers = theirs(a, b, retPerLayer=True, normalize=normalize)
            found, found_layers = ours(a, b, retPerLayer=True, normalize=normalize)
        assert found.shape == expected.shape
        assert difference(found, expected) <= 1e-6
        for layer, expected_layer in zip(found_layers, layers, strict=True):
            assert layer.shape == expected_layer.shape
            assert difference(layer, expected_layer) <= 1e-6


def test_maps_of_grey_images_are_those_of_lpips():
    ours, theirs = peers("alex", spatial=True)
    for first in SHAPES[:4]:  # by whose height and width lpips enlarges
        for second in SHAPES:
            pair = image(first), image(second, seed=1)
            found, expected = ours(*pair), theirs(*pair)
            assert found.shape == expected.shape
            assert difference(found, expected) <= 1e-6
    single = ours(image((64, 64)), image((3, 64, 64), seed=1))  # which lpips refuses here
    assert torch.equal(single, ours(image((1, 1, 64, 64)), image((1, 3, 64, 64), seed=1)))


@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_grey_and_single_images_go_wherever_images_go(shape):
    ours, _ = peers("alex")
    whole = image(shape)[(None,) * (4 - len(shape))].expand(-1, 3, -1, -1)
    other = images(2, 3, 64, 64, seed=1)
    expected = ours(whole, other)
    reference = ours.reference(image(shape))
    assert reference.shape == whole.shape
    assert torch.allclose(ours(reference, other), expected, atol=1e-6)
    assert torch.allclose(ours(image(shape), other, tile=32), expected, atol=1e-6)
    found = functional.lpips(dict(ours.named_parameters()), image(shape), other)
    assert torch.allclose(found, expected.flatten(), atol=1e-6)
    x = image(shape).requires_grad_()
    ours(x, other).sum().backward()
    y = whole.clone().requires_grad_()
    ours(y, other).sum().backward()
    assert torch.allclose(x.grad, y.grad.sum_to_size(shape), atol=1e-6)


def test_single_images_are_single_in_functional():
    ours, _ = peers("alex")
    weights = dict(ours.named_parameters())
    value = functional.lpips(weights, image((64, 64)), image((3, 64, 64), seed=1))
    assert value.shape == ()
    assert torch.allclose(value, ours(image((64, 64)), image((3, 64, 64), seed=1)).squeeze(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_dtypes_that_are_no_images_are_refused(metric, dtype):
    x = torch.zeros(1, 3, 64, 64)
    with pytest.raises(TypeError, match=f"in1 must be floating point, in .-1, 1., got {dtype}"):
        metric(x, x.to(dtype))


def test_wider_images_than_the_metric_are_refused(metric):
    x = torch.zeros(1, 3, 64, 64)
    with pytest.raises(TypeError, match="in0 is torch.float64 but the metric is torch.float32"):
        metric(x.double(), x)
    with pytest.raises(TypeError, match="in1 is torch.float32 but the metric is torch.float16"):
        metric.half()(x.half(), x)


def test_another_device_is_named(metric):
    x = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match="in1 is on meta but the metric is on cpu"):
        metric(x, x.to("meta"))


def warned(metric, in0, in1, **arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metric(in0, in1, **arguments)
    return [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]


def test_values_out_of_range_are_warned_of_once(metric):
    good = images(1, 3, 64, 64)
    assert not warned(metric, good, good)
    (message,) = warned(metric, good, 255 * good)
    assert "in1 has values in [" in message
    assert "must lie in [-1, 1]" in message
    assert not warned(metric, good, 255 * good)


def test_the_warning_points_at_the_caller(metric):
    with pytest.warns(UserWarning, match="in0 has values") as caught:
        metric(5 * images(1, 3, 64, 64), images(1, 3, 64, 64))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("in0_is", ["nan", "inf"])
def test_values_that_are_not_finite_are_warned_of(metric, in0_is):
    bad = images(1, 3, 64, 64)
    bad[0, 0, 3, 3] = float(in0_is)
    (message,) = warned(metric, bad, images(1, 3, 64, 64))
    assert ("holds NaN" if in0_is == "nan" else "inf]") in message


def test_images_in_0_1_are_warned_of_without_normalize(metric):
    x, y = (images(1, 3, 64, 64) + 1) / 2, (images(1, 3, 64, 64, seed=1) + 1) / 2
    assert not warned(metric, x, y, normalize=True)
    assert not warned(metric, 2 * x - 1, y)
    (message,) = warned(metric, x, y)
    assert "pass normalize=True" in message


def test_negative_values_are_warned_of_with_normalize(metric):
    (message,) = warned(metric, *[images(1, 3, 64, 64)] * 2, normalize=True)
    assert "must lie in [0, 1]" in message


def test_rounding_and_empty_batches_are_not_warned_of(metric):
    x = images(1, 3, 64, 64)
    x[0, 0, 0, 0] = 1.00001
    assert not warned(metric, x, x)
    assert not warned(metric, x[:0], x[:0])


def test_the_value_check_can_be_switched_off():
    metric = rlpips.LPIPS(pnet_rand=True, check_range=False)
    assert not warned(metric, *[torch.full((1, 3, 64, 64), 7.0)] * 2)


def test_copies_of_a_metric_warn_for_themselves(metric):
    bad = torch.full((1, 3, 64, 64), 7.0)
    copied, pickled = copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))
    for each in (metric, copied, pickled):
        assert len(warned(each, bad, bad)) == 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_value_check_does_not_synchronise_cuda(metric):
    metric.cuda()
    bad = torch.full((1, 3, 64, 64), 7.0, device="cuda")
    metric(bad, bad)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(warned(metric, bad, bad)) == 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
