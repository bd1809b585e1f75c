import copy
import io
import itertools
import logging
import os
import pickle
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import difference, hushed, images, peers

import rlpips

NETS = {"alex": 31, "vgg": 16, "squeeze": 17}
LIMIT = {torch.float32: 1e-6, torch.float64: 1e-12}

# Each promise that lpips does not keep is tested on both libraries, and must fail on lpips.
both = pytest.mark.parametrize(
    "library",
    [
        rlpips,
        pytest.param(lpips, marks=pytest.mark.xfail(strict=True, reason="lpips does not keep this promise")),
    ],
    ids=["rlpips", "lpips"],
)


def build(library, **arguments):
    with hushed():
        return library.LPIPS(pnet_rand=True, **arguments)


# --- the same numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("net", NETS)
def test_values_are_those_of_lpips_for_every_setting(net, dtype):
    least = NETS[net]
    for version, heads, spatial, normalize in itertools.product(("0.1", "0.0"), *[(True, False)] * 3):
        ours, theirs = peers(net, dtype, version, heads, spatial)
        for height, width in ((least, least), (least, 2 * least + 1), (54, 47)):
            in0, in1 = (
                images(2, 3, height, width, dtype=dtype),
                images(2, 3, height, width, seed=1, dtype=dtype),
            )
            if normalize:
                in0, in1 = (in0 + 1) / 2, (in1 + 1) / 2
            with torch.no_grad():
                value, layers = ours(in0, in1, retPerLayer=True, normalize=normalize)
                expected, expected_layers = theirs(in0, in1, retPerLayer=True, normalize=normalize)
            assert value.shape == expected.shape == ((2, 1, height, width) if spatial else (2, 1, 1, 1))
            assert difference(value, expected) <= LIMIT[dtype]
            assert len(layers) == len(expected_layers)
            for layer, expected_layer in zip(layers, expected_layers, strict=True):
                assert layer.shape == expected_layer.shape
                assert difference(layer, expected_layer) <= LIMIT[dtype]


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("size", [(224, 224), (512, 512), (511, 301)], ids=str)
def test_values_are_those_of_lpips_for_large_images(net, size, dtype):
    if net == "vgg" and dtype == torch.float64 and size != (224, 224):
        size = size[0] // 2, size[1] // 2  # the full sizes take a minute
    in0, in1 = images(1, 3, *size, dtype=dtype), images(1, 3, *size, seed=1, dtype=dtype)
    for spatial in (False, True):
        ours, theirs = peers(net, dtype, spatial=spatial)
        with torch.no_grad():
            assert difference(ours(in0, in1), theirs(in0, in1)) <= LIMIT[dtype]


@settings(max_examples=40)
@given(
    net=st.sampled_from(list(NETS)),
    dtype=st.sampled_from(list(LIMIT)),
    sizes=st.tuples(st.integers(0, 70), st.integers(0, 70)),
    batches=st.sampled_from([(1, 1), (3, 3), (1, 2), (2, 1), (0, 0)]),
    heads=st.booleans(),
    version=st.sampled_from(["0.0", "0.1"]),
    channels_last=st.booleans(),
    wanted=st.sampled_from([None, (False, False), (True, False), (False, True), (True, True)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_values_are_those_of_lpips_for_any_shape(
    net, dtype, sizes, batches, heads, version, channels_last, wanted, seed
):
    """Whichever of the images, `wanted`, need gradients, or with gradients switched off (None)."""
    ours, theirs = peers(net, dtype, version, heads)
    height, width = NETS[net] + sizes[0], NETS[net] + sizes[1]
    in0 = images(batches[0], 3, height, width, seed=seed, dtype=dtype)
    in1 = images(batches[1], 3, height, width, seed=seed + 1, dtype=dtype)
    if channels_last:
        in0 = in0.to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = theirs(in0, in1)
    with torch.set_grad_enabled(wanted is not None):
        value = ours(
            *(x.requires_grad_(need) for x, need in zip((in0, in1), wanted or (False, False), strict=True))
        )
    assert value.shape == expected.shape == (max(batches) if 0 not in batches else 0, 1, 1, 1)
    if value.numel():
        assert difference(value, expected) <= LIMIT[dtype]


@pytest.mark.parametrize(("net", "expected"), [("alex", (0.72188, 0.13757)), ("vgg", (0.56861, 0.42166))])
def test_real_weights_give_the_published_numbers(real_peers, shared, net, expected):
    ours, theirs = real_peers(net)
    ref, p0, p1 = (
        rlpips.im2tensor(rlpips.load_image(shared / "images" / "lpips-examples" / f"ex_{name}.png"))
        for name in ("ref", "p0", "p1")
    )
    with torch.no_grad():
        found = ours(ref, p0).item(), ours(ref, p1).item()
        assert difference(ours(ref, p0), theirs(ref, p0)) <= 1e-6
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("net", "dtype"), [("alex", torch.float32), ("alex", torch.float64), ("vgg", torch.float32)], ids=str
)
def test_photos_measure_as_with_lpips(real_peers, shared, net, dtype):
    ours, theirs = real_peers(net, dtype)
    for path in sorted((shared / "images" / "photos").glob("*.jpg"))[::500]:
        photo = rlpips.im2tensor(rlpips.load_image(path)).to(dtype)
        noisy = (photo + 0.1 * images(*photo.shape, dtype=dtype)).clamp(-1, 1)
        with torch.no_grad():
            assert difference(ours(photo, noisy), theirs(photo, noisy)) <= LIMIT[dtype]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_gradients_are_those_of_lpips(net, spatial, dtype, limit):
    errors = []
    for seed in range(5 if dtype == torch.float32 else 1):
        gradients = []
        for metric in peers(net, dtype, spatial=spatial):
            in0 = images(1, 3, 37, 42, seed=2 * seed, dtype=dtype).requires_grad_()
            in1 = images(1, 3, 37, 42, seed=2 * seed + 1, dtype=dtype).requires_grad_()
            metric(in0, in1).mean().backward()
            gradients.append(torch.cat([in0.grad, in1.grad]))
        assert torch.isfinite(gradients[1]).all()
        errors.append(((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item())
    # where float32 rounds, a ReLU or a maximum that is all but tied may fall the other way, in either library;
    # of some inputs, and the fewer the smaller they are, whereas an error in the formula would show in all
    assert statistics.median(errors) <= limit, errors


def test_an_image_is_at_distance_zero_from_itself_and_distances_are_symmetric():
    ours, _ = peers("alex")
    a, b = images(2, 3, 64, 64), images(2, 3, 64, 64, seed=1)
    assert ours(a, a).abs().max() == 0
    assert torch.equal(ours(a, b), ours(b, a))
    assert (ours(a, b) > 0).all()


def test_one_image_is_compared_with_each_of_a_batch():
    ours, _ = peers("alex")
    a, b = images(1, 3, 64, 64), images(3, 3, 64, 64, seed=1)
    each = torch.cat([ours(a, b[i : i + 1]) for i in range(3)])
    assert torch.allclose(ours(a, b), each, atol=1e-6)


# --- the same state dict and attributes ---------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("net", NETS)
def test_state_dicts_are_interchangeable(net, heads, dropout):
    ours = build(rlpips, net=net, lpips=heads, use_dropout=dropout)
    with hushed():
        theirs = lpips.LPIPS(net=net, pnet_rand=True, lpips=heads, use_dropout=dropout, pretrained=dropout)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [v.shape for v in ours.state_dict().values()] == [v.shape for v in theirs.state_dict().values()]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for name in ("pnet_type", "pnet_tune", "pnet_rand", "spatial", "lpips", "version", "chns", "L"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.net.N_slices == theirs.net.N_slices


def test_a_checkpoint_of_a_model_that_holds_lpips_loads():
    class Holder(torch.nn.Module):
        def __init__(self, metric):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)
            self.loss = metric

    Holder(build(rlpips)).load_state_dict(Holder(build(lpips)).state_dict(), strict=True)


@pytest.mark.parametrize("net", NETS)
def test_the_backbone_alone_returns_the_same_named_activations(net):
    ours, theirs = peers(net)
    x = images(1, 3, 64, 64)
    found, expected = ours.net(x), theirs.net(x)
    assert found._fields == expected._fields
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("net", NETS)
def test_the_smallest_size_is_that_of_lpips(net):
    ours, theirs = peers(net)
    small = torch.zeros(1, 3, NETS[net] - 1, 64)
    with pytest.raises(ValueError, match=f"at least {NETS[net]} x {NETS[net]}"):
        ours(small, small)
    with pytest.raises(RuntimeError):
        theirs(small, small)


def test_random_backbones_have_the_spread_of_torchvisions():
    for net in NETS:
        torch.manual_seed(0)
        ours = build(rlpips, net=net).net.state_dict()
        theirs = build(lpips, net=net).net.state_dict()
        for key, value in ours.items():
            assert value.std().item() == pytest.approx(theirs[key].std().item(), rel=0.3, abs=1e-6)


def test_vgg16_is_another_name_of_vgg():
    ours = build(rlpips, net="vgg16")
    assert ours.chns == [64, 128, 256, 512, 512]
    assert ours.pnet_type == "vgg16"


# --- better than lpips --------------------------------------------------------------------------------------


def silence_last_layer(metric, factor=0.0):
    """Make the features of the deepest layer vanish, as they can on flat images, or nearly so."""
    with torch.no_grad():
        for parameter in metric.net.get_submodule(f"slice{metric.net.N_slices}").parameters():
            parameter.mul_(factor)


@both
@pytest.mark.parametrize("net", NETS)
def test_gradients_are_finite_where_features_vanish(library, net):
    metric = build(library, net=net)
    silence_last_layer(metric)
    in0 = images(1, 3, 64, 64).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anomaly detection says that it is on
        with torch.autograd.detect_anomaly():  # finds NaN anywhere in the backward pass
            metric(in0, images(1, 3, 64, 64, seed=1)).sum().backward()
    assert torch.isfinite(in0.grad).all()


@both
def test_gradients_are_finite_where_squares_of_features_underflow(library):
    metric = build(library)
    silence_last_layer(metric, factor=1e-25)
    in0 = images(1, 3, 64, 64).requires_grad_()
    metric(in0, images(1, 3, 64, 64, seed=1)).sum().backward()
    assert torch.isfinite(in0.grad).all()


@both
def test_normalize_tensor_has_finite_gradients_at_zero(library):
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    library.normalize_tensor(features).sum().backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.filterwarnings("ignore:every value of in0")
@pytest.mark.parametrize("net", NETS)
def test_values_where_features_vanish_are_those_of_lpips(net):
    ours, theirs = build(rlpips, net=net), build(lpips, net=net)
    silence_last_layer(theirs)
    ours.load_state_dict(theirs.state_dict())
    for in0, in1 in ((images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)), (torch.zeros(1, 3, 64, 64),) * 2):
        assert difference(ours(in0, in1), theirs(in0, in1)) <= 1e-6


@pytest.mark.filterwarnings("ignore:every value of in0")
@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_flat_and_identical_images_have_finite_gradients_with_real_weights(real_peers, level):
    ours, _ = real_peers("alex")
    in0 = torch.full((1, 3, 64, 64), level, requires_grad=True)
    ours(in0, images(1, 3, 64, 64)).sum().backward()
    assert torch.isfinite(in0.grad).all()
    ours(in0, torch.full((1, 3, 64, 64), level)).sum().backward()
    assert torch.isfinite(in0.grad).all()


@pytest.mark.parametrize("vanishing", [False, True])
def test_second_derivatives_exist(vanishing):
    metric = build(rlpips).double()
    if vanishing:
        silence_last_layer(metric)
    in1 = images(1, 3, 31, 31, seed=1, dtype=torch.float64)
    base = images(1, 3, 31, 31, dtype=torch.float64)

    def along_two_pixels(t):  # all pixels would take minutes, and add nothing
        moved = base.clone()
        moved[0, 0, 5, 7], moved[0, 2, 20, 11] = t[0], t[1]
        return metric(moved, in1).sum()

    t = torch.tensor([0.1, -0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along_two_pixels, t)
    assert torch.autograd.gradgradcheck(along_two_pixels, t)


@both
def test_no_graph_is_built_when_the_inputs_need_none(library):
    metric = build(library)
    assert not any(parameter.requires_grad for parameter in metric.parameters())
    assert not metric(images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)).requires_grad


class Generator(torch.nn.Module):
    def __init__(self, metric):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.metric = metric

    def forward(self, x):
        return self.metric(self.conv(x).tanh(), x).mean()


@both
def test_an_optimizer_over_a_model_that_holds_the_metric_cannot_train_it(library):
    model = Generator(build(library))
    before = copy.deepcopy(model.metric.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    conv = model.conv.weight.detach().clone()
    model(images(2, 3, 64, 64)).backward()
    optimizer.step()
    assert not torch.equal(conv, model.conv.weight)
    assert all(torch.equal(value, before[key]) for key, value in model.metric.state_dict().items())


@both
def test_train_on_a_parent_leaves_a_frozen_metric_in_eval_mode(library):
    model = Generator(build(library)).train()
    assert model.conv.training
    assert not any(module.training for module in model.metric.modules())
    x, y = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    assert torch.equal(model.metric(x, y), model.metric(x, y))


@both
def test_building_prints_and_warns_of_nothing(library, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        library.LPIPS(pnet_rand=True)
    assert capsys.readouterr() == ("", "")


def test_verbose_logs(caplog):
    with caplog.at_level(logging.INFO, logger="rlpips"):
        build(rlpips, verbose=False)
        assert not caplog.records
        build(rlpips, verbose=True)
    assert "net=alex" in caplog.text


def test_loading_weights_leaves_the_global_generator_alone(real_weights):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    rlpips.LPIPS()
    assert torch.equal(torch.rand(1), expected)


# --- references ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("spatial", [False, True])
def test_a_reference_stands_for_its_images(net, spatial):
    ours, _ = peers(net, spatial=spatial)
    x, y = images(3, 3, 64, 64), images(3, 3, 64, 64, seed=1)
    a, b = ours.reference(x), ours.reference(y)
    expected, layers = ours(x, y, retPerLayer=True)
    for first, second in ((x, b), (a, y), (a, b)):
        found, found_layers = ours(first, second, retPerLayer=True)
        assert torch.equal(found, expected)
        assert all(torch.equal(*pair) for pair in zip(layers, found_layers, strict=True))
    assert torch.equal(
        ours((x + 1) / 2, ours.reference((y + 1) / 2, normalize=True), normalize=True), expected
    )
    keep = torch.tensor([2, 0])
    assert torch.allclose(ours(x[keep], b[keep]), expected[keep], atol=1e-6)
    assert torch.allclose(ours(x, b[1:2]), ours(x, y[1:2]), atol=1e-6)


def test_references_select_like_tensors():
    ours, _ = peers("alex")
    y = images(2, 3, 64, 64)
    b = ours.reference(y)
    for index in ([0, 1], [1, 0], [1], [], [False, True], [True, True], slice(1)):
        select = index if isinstance(index, slice) else torch.tensor(index, dtype=None if index else int)
        found = b[select]
        assert found.shape == y[select].shape
        assert all(torch.equal(f, g[select]) for f, g in zip(found.features, b.features, strict=True))
        assert all(torch.equal(f, g[select]) for f, g in zip(found.lengths, b.lengths, strict=True))
    assert b[torch.arange(2)] is b
    assert {b: 1, b[0]: 2}[b] == 1
    for number in (0, -1, np.int64(1), torch.tensor(1, dtype=torch.int32)):
        found = b[number]
        assert found.shape == (1, 3, 64, 64)
        assert all(torch.equal(f, g[[int(number)]]) for f, g in zip(found.features, b.features, strict=True))
    assert [each.shape for each in b] == [(1, 3, 64, 64)] * 2
    assert torch.equal(b[[1, 0]].features[0], b.features[0].flip(0))
    with pytest.raises(IndexError):
        b[2]
    for wrong in (None, "0", (0, 1), 0.0, ...):
        with pytest.raises(TypeError, match="selected by a number, a slice"):
            b[wrong]


def test_references_of_other_metrics_are_refused():
    x = images(1, 3, 64, 64)
    ours = build(rlpips)
    reference = ours.reference(x)
    others = {
        "weights=random": build(rlpips, pretrained=False),
        "version=0.0": build(rlpips, version="0.0"),
        "net=vgg": build(rlpips, net="vgg"),
        "float16": build(rlpips).half(),
        "net=alex": build(rlpips),
    }
    for name, other in others.items():
        other.reference(x.to(other.like.dtype))
        for pair in ((x.to(other.like.dtype), reference), (reference, reference)):
            with pytest.raises(ValueError, match=f"a reference that another metric made.*net=alex.*{name}"):
                other(*pair)
    assert torch.allclose(ours(x, reference), ours(x, x), atol=1e-6)


def _step(metric):
    optimizer = torch.optim.SGD(metric.net.parameters(), lr=0.1)
    metric(images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "change",
    [
        _step,
        lambda metric: metric.load_state_dict(build(rlpips).state_dict()),
        lambda metric: metric.load_state_dict(build(rlpips).state_dict(), assign=True),
        lambda metric: metric.net.load_state_dict(build(rlpips).net.state_dict(), assign=True),
        lambda metric: setattr(metric, "version", "0.0"),
        lambda metric: metric.half(),
        lambda metric: metric.to("meta"),
    ],
)
def test_references_made_before_the_metric_changed_are_refused(change):
    metric = build(rlpips, pnet_tune=True)
    x = images(1, 3, 64, 64)
    reference = metric.reference(x)
    change(metric)
    copied = copy.deepcopy([metric, reference.source])[0]
    with pytest.raises(ValueError, match="before the metric changed.*Make the reference again"):
        metric(x.to(metric.like), reference)
    with pytest.raises(ValueError, match="another metric made"):
        copied(x.to(metric.like), reference)
    metric(x.to(metric.like), metric.reference(x.to(metric.like)))


def test_references_outlive_what_does_not_touch_the_backbone():
    metric = build(rlpips, eval_mode=False, use_dropout=False)
    x, y = images(2, 3, 64, 64), images(2, 3, 64, 64, seed=1)
    reference = metric.reference(y)
    optimizer = torch.optim.Adam(metric.parameters(), lr=0.01)
    metric(x, reference).sum().backward()
    optimizer.step()
    metric.eval().to(memory_format=torch.channels_last)
    metric.spatial = True
    metric.double().float()
    assert torch.allclose(metric(x, reference), metric(x, y), atol=1e-6)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda holder: pickle.loads(pickle.dumps(holder))])
def test_a_metric_is_copied_together_with_its_references(copier):
    x, y = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    holder = torch.nn.Module()
    holder.metric = build(rlpips, pnet_tune=True)
    with torch.no_grad():
        holder.goal = holder.metric.reference(y)
    expected = holder.metric(x, y)
    copied = copier(holder)
    assert torch.allclose(copied.metric(x, copied.goal), expected, atol=1e-6)
    with pytest.raises(ValueError, match="another metric made"):
        copied.metric(x, holder.goal)
    _step(copied.metric)
    with pytest.raises(ValueError, match="before the metric changed"):
        copied.metric(x, copied.goal)
    assert torch.allclose(holder.metric(x, holder.goal), expected, atol=1e-6)
    _step(holder.metric)
    stale = copier(holder)
    with pytest.raises(ValueError, match="another metric made"):
        stale.metric(x, stale.goal)


@pytest.mark.parametrize("version", ["0.0", "0.1"])
def test_a_reference_made_under_inference_mode_serves_in_a_loss(version):
    metric = build(rlpips, version=version, eval_mode=False, use_dropout=False)
    x, y = images(2, 3, 64, 64).requires_grad_(), images(2, 3, 64, 64, seed=1)
    with torch.inference_mode():
        whole = metric.reference(y)
        parts = [whole, metric.reference(y.clone()), whole[torch.tensor([1, 0])], whole[0]]
        assert metric(x, whole).is_inference()
    for part, images_ in zip(parts, (y, y, y.flip(0), y[:1]), strict=True):
        x.grad = None
        metric(x, part).sum().backward()
        found, x.grad = x.grad, None
        metric(x, images_).sum().backward()
        assert torch.allclose(found, x.grad, atol=1e-6)


def test_metrics_and_references_say_what_they_are_in_a_line():
    metric = rlpips.LPIPS(weights="robust", verbose=False)
    assert repr(metric) == "LPIPS(net=alex, weights=robust, version=0.1, frozen, float32, cpu)"
    assert "(metric): LPIPS(net=alex" in repr(Generator(metric))
    found = repr(metric.reference(images(2, 3, 64, 64)))
    assert found.startswith("Reference(images=(2, 3, 64, 64), features=[(64, 15, 15), (192, 7, 7), ")
    assert len(found) < 150
    other = build(rlpips, net="vgg", spatial=True, eval_mode=False, pnet_tune=True, version=0.0).half()
    text = repr(other)
    for word in ("net=vgg", "version=0.0", "spatial=True", "trainable=backbone+heads", "float16"):
        assert word in text
    assert "weights=random" in repr(build(rlpips, pretrained=False))
    metric.load_state_dict(build(rlpips).state_dict())
    assert "weights=a state dict" in repr(metric)


def test_gradients_flow_through_a_reference():
    ours, _ = peers("alex")
    y = images(1, 3, 64, 64, seed=1)
    gradients = []
    for measure in (lambda x: ours(x, y), lambda x: ours(ours.reference(x), ours.reference(y))):
        x = images(1, 3, 64, 64).requires_grad_()
        measure(x).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_references_are_checked_too():
    ours, _ = peers("alex")
    reference = ours.reference(images(2, 3, 64, 64))
    with pytest.raises(ValueError, match="same height and width"):
        ours(images(2, 3, 64, 66), reference)
    with pytest.raises(ValueError, match="same batch size"):
        ours(images(3, 3, 64, 64), reference)
    with pytest.raises(ValueError, match="images must be at least 31 x 31"):
        ours.reference(images(1, 3, 20, 64))


# --- what is trainable --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "backbone", "heads"),
    [
        ({}, False, False),
        ({"eval_mode": False}, False, True),
        ({"pretrained": False}, False, True),
        ({"pnet_tune": True}, True, False),
        ({"pnet_tune": True, "eval_mode": False}, True, True),
    ],
)
def test_arguments_make_the_parts_they_name_trainable(arguments, backbone, heads):
    metric = build(rlpips, **arguments)
    assert {p.requires_grad for p in metric.net.parameters()} == {backbone}
    assert {p.requires_grad for p in metric.lins.parameters()} == {heads}
    assert metric.training == (arguments.get("eval_mode") is False)
    metric.train()
    assert metric.training == (backbone or heads)
    assert metric.lins[0].model[0].training == heads
    metric.eval()
    assert not any(module.training for module in metric.modules())


@pytest.mark.parametrize("use_dropout", [True, False])
def test_heads_that_are_not_learned_are_random(use_dropout):
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        metric = build(rlpips, pretrained=False, use_dropout=use_dropout)
        drawn.append(metric.lins[2].channel_weights)
        assert drawn[-1].isfinite().all()
        assert drawn[-1].std() > 0.01
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_train_on_a_frozen_metric_says_once_that_it_changes_nothing(caplog):
    metric = build(rlpips)
    for parent in (Generator(metric), torch.nn.Sequential(torch.nn.Sequential(metric))):
        parent.train()
        parent.train(False)
        parent.eval()
    metric.eval()
    for trainable in ({"eval_mode": False}, {"pnet_tune": True}, {"pretrained": False}):
        build(rlpips, **trainable).train()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert metric.train() is metric
    metric.train()
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.name == "rlpips"
    assert "eval_mode=False" in record.getMessage()
    assert "pnet_tune=True" in record.getMessage()


def test_dropout_runs_only_while_heads_are_trained():
    x, y = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    with torch.no_grad():
        training = build(rlpips, eval_mode=False)
        assert not torch.equal(training(x, y), training(x, y))
        training.eval()
        assert torch.equal(training(x, y), training(x, y))
        without = build(rlpips, eval_mode=False, use_dropout=False)
        assert torch.equal(without(x, y), without(x, y))
        tuned = build(rlpips, pnet_tune=True).train()
        assert torch.equal(tuned(x, y), tuned(x, y))


def test_training_lowers_a_ranking_loss():
    torch.manual_seed(0)
    metric = build(rlpips, pretrained=False, eval_mode=False, pnet_tune=True)
    ranking = rlpips.BCERankingLoss()
    optimizer = torch.optim.Adam([*metric.parameters(), *ranking.parameters()], lr=5e-5)
    ref, p0, p1 = (images(4, 3, 64, 64, seed=s) for s in range(3))
    judge = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(4, 1, 1, 1)
    losses = []
    for _ in range(15):
        loss = ranking(metric(ref, p0), metric(ref, p1), judge)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01


# --- the ways in which modules are used ---------------------------------------------------------------------


@pytest.fixture
def pair():
    return images(2, 3, 64, 64), images(2, 3, 64, 64, seed=1)


def test_copies_and_pickles_measure_alike(pair):
    metric = build(rlpips)
    expected = metric(*pair)
    assert torch.equal(copy.deepcopy(metric)(*pair), expected)
    assert torch.equal(pickle.loads(pickle.dumps(metric))(*pair), expected)
    buffer = io.BytesIO()
    torch.save(metric, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(*pair), expected)


def test_memory_format_does_not_matter(pair):
    metric = build(rlpips)
    expected = metric(*pair)
    metric.to(memory_format=torch.channels_last)
    last = [x.to(memory_format=torch.channels_last) for x in pair]
    assert torch.allclose(metric(*last), expected, atol=1e-6)


def test_torchs_default_device_is_respected():
    with torch.device("meta"):
        metric = build(rlpips)
    assert {value.device.type for value in metric.state_dict().values()} == {"meta"}


def test_a_device_move_moves_everything():
    metric = build(rlpips).to("meta")
    out = metric(torch.empty(2, 3, 64, 64, device="meta"), torch.empty(2, 3, 64, 64, device="meta"))
    assert out.device.type == "meta"
    assert out.shape == (2, 1, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_modules_work(pair, dtype):
    metric = build(rlpips)
    expected = metric(*pair)
    value = metric.to(dtype)(*(x.to(dtype) for x in pair))
    assert value.dtype == dtype
    assert torch.allclose(value.float(), expected, rtol=0.05)


def test_autocast_keeps_normalisation_and_sums_in_float32(pair):
    metric = build(rlpips)
    expected = metric(*pair)
    in0 = pair[0].clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = metric(in0, pair[1])
    assert value.dtype == torch.float32
    assert torch.allclose(value, expected, rtol=0.02)
    value.sum().backward()
    assert torch.isfinite(in0.grad).all()


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_autocast_measures_photos_within_one_percent(real_peers, shared, net):
    metric, _ = real_peers(net)
    for path in sorted((shared / "images" / "photos").glob("*.jpg"))[::400]:
        photo = rlpips.im2tensor(rlpips.load_image(path))[..., :160, :160]
        noisy = (photo + 0.1 * images(*photo.shape)).clamp(-1, 1)
        with torch.no_grad():
            expected = metric(photo, noisy)
            with torch.autocast("cpu", torch.bfloat16):
                found = metric(photo, noisy)
        assert torch.allclose(found, expected, rtol=0.01)


def test_half_precision_does_not_overflow():
    metric = build(rlpips)
    with torch.no_grad():
        for parameter in metric.net.slice1.parameters():
            parameter.mul_(2e4)  # activations of this size have squares beyond float16
    x, y = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    _, expected = metric(x, y, retPerLayer=True)
    _, found = metric.half()(x.half(), y.half(), retPerLayer=True)
    assert expected[0] > 1e-3
    assert torch.allclose(found[0].float(), expected[0], rtol=0.02)


def test_half_images_are_promoted_by_a_float32_metric(pair):
    metric = build(rlpips)
    assert metric(pair[0].half(), pair[1].half()).dtype == torch.float32


def test_torch_compile_makes_one_graph(pair):
    metric = build(rlpips)
    compiled = torch.compile(metric, fullgraph=True)
    in0 = pair[0].clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "every value of in0")  # the value check must not run
        value = compiled(in0 / 2 + 0.5, pair[1] / 2 + 0.5)
    value.sum().backward()
    expected_in0 = pair[0].clone().requires_grad_()
    expected = build_like(metric)(expected_in0 / 2 + 0.5, pair[1] / 2 + 0.5)
    expected.sum().backward()
    assert torch.allclose(value, expected, atol=1e-6)
    assert torch.allclose(in0.grad, expected_in0.grad, atol=1e-6)


def build_like(metric):
    other = rlpips.LPIPS(pnet_rand=True, check_range=False)
    other.load_state_dict(metric.state_dict())
    return other


def test_torch_export_with_any_batch(pair):
    metric = build(rlpips)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(metric, pair, dynamic_shapes=({0: batch}, {0: batch}, None, None)[:2])
    more = images(5, 3, 64, 64, seed=2), images(5, 3, 64, 64, seed=3)
    assert torch.allclose(exported.module()(*more), metric(*more), atol=1e-6)


def test_jit_trace(pair):
    metric = build(rlpips)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(metric, pair)
    other = images(3, 3, 80, 70, seed=2), images(3, 3, 80, 70, seed=3)
    assert torch.allclose(traced(*other), metric(*other), atol=1e-6)


def test_vmap_and_grad_transforms_work(pair):
    metric = build(rlpips)
    each = torch.func.vmap(lambda a, b: metric(a[None], b[None])[0, 0, 0, 0])(*pair)
    assert torch.allclose(each, metric(*pair).flatten(), atol=1e-6)
    gradient = torch.func.grad(lambda a: metric(a, pair[1]).sum())(pair[0])
    in0 = pair[0].clone().requires_grad_()
    metric(in0, pair[1]).sum().backward()
    assert torch.allclose(gradient, in0.grad, atol=1e-6)


def test_data_parallel(pair):
    metric = build(rlpips)
    expected = metric(*pair)
    assert torch.equal(torch.nn.DataParallel(metric)(*pair), expected)
    # A replica is what DataParallel makes for each GPU: a shallow copy without registered parameters.
    replica = metric._replicate_for_data_parallel()
    replica._modules = dict(metric._modules)
    assert not list(replica.parameters(recurse=False))
    assert torch.equal(replica(*pair), expected)


def test_a_script_under_ddp(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, rlpips\n"
        "import torch.distributed.nn.functional  # which keeps a group that is there before it\n"
        "torch.distributed.init_process_group('gloo')\n"
        "rank = torch.distributed.get_rank()\n"
        "class Model(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)\n"
        "        self.metric = rlpips.LPIPS(pnet_rand=True)\n"
        "    def forward(self, x):\n"
        "        return self.metric(self.conv(x).tanh(), x).mean()\n"
        "model = torch.nn.parallel.DistributedDataParallel(Model())\n"
        "before = model.module.metric.lin0.channel_weights.clone()\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=1.0)\n"
        "torch.manual_seed(rank)\n"
        "for _ in range(2):\n"
        "    optimizer.zero_grad()\n"
        "    model(torch.rand(2, 3, 64, 64) * 2 - 1).backward()\n"
        "    optimizer.step()\n"
        "weights = [torch.zeros_like(model.module.conv.weight) for _ in range(2)]\n"
        "torch.distributed.all_gather(weights, model.module.conv.weight.detach())\n"
        "assert torch.equal(*weights)\n"
        "assert torch.equal(before, model.module.metric.lin0.channel_weights)\n"
        "print('rank', rank, 'is done', flush=True)\n"
        "torch.distributed.destroy_process_group()\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    root = Path(rlpips.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is done") == 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_on_cuda_values_are_the_cpus_and_nothing_waits_for_the_device(net, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    metric = rlpips.LPIPS(net=net, pnet_rand=True)
    x, y = torch.rand(2, 2, 3, 65, 71) * 2 - 1
    expected = metric(x, y)
    metric.cuda()
    x, y = x.cuda().requires_grad_(), y.cuda()
    reference = metric.reference(y)
    metric(x, y).sum().backward()  # what the first call sets up may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        distance = metric(x, y)
        again = metric(x, reference)
        again.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(distance.cpu(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(again.cpu(), expected, rtol=1e-4, atol=1e-6)


# --- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"net": "resnet"}, "net='resnet' is unknown; choose 'alex', 'vgg' or 'squeeze'"),
        ({"net": None}, "net=None is unknown"),
        ({"version": "0.2"}, "version='0.2' is unknown"),
        ({"model_path": "a.pth", "weights": "robust"}, "model_path and weights both"),
        ({"weights": "r-lpips-alex-linf-x00"}, "did you mean 'r-lpips-alex-linf-x0'"),
        ({"weights": "lpips-vgg-v0.1"}, "are for net='vgg', not 'alex'"),
        ({"weights": "lpips-alex-v0.0"}, "are for version='0.0', not '0.1'"),
        ({"version": 0.2}, "version='0.2' is unknown"),
        ({"weights": "robust", "net": "squeeze"}, "no robust weights for net='squeeze'"),
        ({"weights": "lpips-alex-v0.1", "lpips": False}, "holds only heads"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(rlpips, **arguments)


@pytest.mark.parametrize(
    ("name", "message"), [("vgg", 'pass net="vgg"'), ("squeeze", "net="), ("robust", 'pass weights="robust"')]
)
def test_a_name_as_the_first_argument_is_an_error_that_names_the_keyword(name, message):
    with pytest.raises(TypeError, match=message.replace('"', "'")):
        rlpips.LPIPS(name)


@pytest.mark.parametrize("version", [0.1, 0.0])
def test_a_version_may_be_a_number(version):
    metric = build(rlpips, version=version)
    assert metric.version == str(version)
    folder = Path(lpips.__file__).parent / "weights" / f"v{version}"
    published = torch.load(folder / "alex.pth", map_location="cpu", weights_only=True)
    assert torch.equal(metric.lin0.channel_weights, published["lin0.model.1.weight"])


def test_named_heads_are_those_of_the_package():
    metric = build(rlpips, weights="lpips-squeeze-v0.0", net="squeeze", version="0.0")
    published = torch.load(
        Path(lpips.__file__).parent / "weights" / "v0.0" / "squeeze.pth",
        map_location="cpu",
        weights_only=True,
    )
    for k, lin in enumerate(metric.lins):
        assert torch.equal(lin.channel_weights, published[f"lin{k}.model.1.weight"])


def test_code_written_for_lpips_runs(real_weights, shared, capsys):
    """The steps of lpips' own lpips_2imgs.py, with the import changed."""
    folder = shared / "images" / "lpips-examples"
    import rlpips as lpips

    loss_fn = lpips.LPIPS(net="alex", version="0.1")
    img0 = lpips.im2tensor(lpips.load_image(str(folder / "ex_ref.png")))
    img1 = lpips.im2tensor(lpips.load_image(str(folder / "ex_p0.png")))
    dist01 = loss_fn.forward(img0, img1)
    assert "%.3f" % dist01 == "0.722"  # noqa: UP031


def test_gradient_descent_on_an_image_brings_it_closer_to_its_target():
    metric = build(rlpips, check_range=False)
    target = images(1, 3, 64, 64)
    x = images(1, 3, 64, 64, seed=1).requires_grad_()
    before = metric(x, target).item()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        metric(x, target).sum().backward()
        optimizer.step()
    assert metric(x, target).item() < 0.7 * before
