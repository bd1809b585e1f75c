"""Our torchmetrics metric beside torchmetrics' own, with the same weights."""

import copy
import functools
import io
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import images, peers
from torchmetrics import MetricCollection
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity as Theirs
from torchmetrics.wrappers import FeatureShare

import rlpips
from benchmarks.peers import no_downloads
from rlpips.torchmetrics import LearnedPerceptualImagePatchSimilarity as Ours

ROOT = Path(rlpips.__file__).parents[1]
NETS = ("alex", "vgg", "squeeze")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint with a random backbone for each net, as `weights=`."""
    folder = tmp_path_factory.mktemp("torchmetrics")
    for net in NETS:
        torch.save(peers(net)[0].state_dict(), folder / f"{net}.pth")
    return {net: str(folder / f"{net}.pth") for net in NETS}


@functools.cache
def original(net):
    """Return torchmetrics' own metric with the weights of a checkpoint, built once."""
    with no_downloads(peers(net)[0]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Theirs(net)


@pytest.fixture(scope="module")
def make(files):
    """Make both metrics, ours and theirs, with the same weights."""

    def both(net="alex", reduction="mean", normalize=False):
        theirs = original(net).clone()
        theirs.reduction, theirs.normalize = reduction, normalize
        return Ours(net, reduction, normalize, weights=files[net]), theirs

    return both


def batches(count=3, size=2, **kwargs):
    return [tuple(images(size, 3, 40, 44, seed=2 * k + j, **kwargs) for j in (0, 1)) for k in range(count)]


# --- the same numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", None])
def test_values_of_batches_and_of_all_are_those_of_torchmetrics(make, net, normalize, reduction):
    ours, theirs = make(net, reduction=reduction, normalize=normalize)
    for x, y in batches():
        if normalize:
            x, y = (x + 1) / 2, (y + 1) / 2
        found, expected = ours(x, y), theirs(x, y)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype == torch.float32
        assert torch.allclose(found, expected, rtol=1e-4)
        assert found.max() > 1e-2
    assert torch.allclose(ours.compute(), theirs.compute(), rtol=1e-4)
    assert ours.compute().shape == theirs.compute().shape


@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    called=st.booleans(),
)
def test_any_batches_make_the_value_of_all_images_at_once(files, sizes, reduction, called):
    metric = Ours(reduction=reduction, weights=files["alex"])
    x, y = images(sum(sizes), 3, 33, 35), images(sum(sizes), 3, 33, 35, seed=1)
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        (metric if called else metric.update)(a, b)
    each = peers("alex")[0](x, y).flatten()
    expected = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
    assert torch.allclose(metric.compute(), expected, rtol=1e-5)
    metric.reset()
    metric.update(x[:1], y[:1])
    assert torch.allclose(metric.compute(), each[0], rtol=1e-5)


def test_real_weights_give_torchmetrics_numbers(real_weights):
    theirs = original("alex").clone()
    theirs.load_state_dict(Ours().state_dict())
    x, y = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    assert torch.allclose(Ours()(x, y), theirs(x, y), rtol=1e-5)


def test_weights_choose_the_metric():
    metric = Ours(weights="robust")
    x, y = images(2, 3, 64, 64), images(2, 3, 64, 64, seed=1)
    assert torch.allclose(metric(x, y), rlpips.LPIPS(weights="robust")(x, y).mean())
    with pytest.raises(ValueError, match="did you mean 'r-lpips-alex-linf-x0'"):
        Ours(weights="r-lpips-alex-linf-x00")
    with pytest.raises(rlpips.WeightsUnavailableError):
        Ours("squeeze")  # which the tests' cache lacks


def test_black_and_identical_images_are_at_distance_zero_and_nothing_is_nan():
    metric = Ours(weights="robust")
    for level in (-1.0, 0.0, 1.0):
        flat = torch.full((2, 3, 64, 64), level, requires_grad=True)
        value = metric(flat, flat.detach())
        assert value == 0
        value.backward()
        assert torch.isfinite(flat.grad).all()
    assert metric.compute() == 0


# --- the state ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_state_is_a_sum_and_a_count_and_does_not_grow(files, reduction):
    metric = Ours(reduction=reduction, weights=files["alex"])
    for x, y in batches(4):
        metric.update(x, y)
        metric(x, y)
    state = metric.metric_state
    assert {name: value.shape for name, value in state.items()} == {"total": (), "count": ()}
    assert state["count"] == 16


def test_many_small_distances_are_not_lost_in_a_large_sum(files):
    metric = Ours(reduction="sum", weights=files["alex"])
    x, y = batches(1)[0]
    metric.update(x, y)
    metric.total += 1e9  # of the images before these
    for _ in range(3):
        metric(x, y)
    value = peers("alex")[0](x, y).sum().item()
    assert metric.total.item() - 1e9 == pytest.approx(4 * value, rel=1e-4)


def test_nothing_measured_is_an_error_as_in_torchmetrics(make):
    for reduction in ("mean", "sum", "none"):
        for metric in make(reduction=reduction):
            with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(ValueError):
                metric.compute()
    empty = torch.empty(0, 3, 40, 40)
    metric, _ = make()
    metric.update(*batches(1)[0])
    before = metric.compute()
    metric.update(empty, empty)
    assert metric.compute() == before


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_states_merge(files, reduction):
    first, second, both = (Ours(reduction=reduction, weights=files["alex"]) for _ in range(3))
    (a, b) = batches(2)
    first.update(*a)
    second.update(*b)
    both.update(*a)
    both.update(*b)
    first.merge_state(second)
    assert torch.allclose(first.compute().sort().values, both.compute().sort().values)


def test_two_processes_give_the_numbers_of_one(files, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, torch\n"
        "from rlpips.torchmetrics import LearnedPerceptualImagePatchSimilarity as Metric\n"
        "torch.set_num_threads(1)\n"
        "torch.distributed.init_process_group('gloo')\n"
        "rank = torch.distributed.get_rank()\n"
        "x, y = torch.load(os.path.join(sys.argv[2], 'images.pt'))\n"
        "found = {}\n"
        "for name, own in (('uneven', [slice(0, 2)] if rank == 0 else [slice(2, 3), slice(3, 7)]),\n"
        "                  ('one', [slice(0, 2), slice(2, 7)] if rank == 0 else [])):\n"
        "    for reduction in ('mean', 'sum', 'none'):\n"
        "        metric = Metric(reduction=reduction, weights=sys.argv[1])\n"
        "        for batch in own:\n"
        "            metric.update(x[batch], y[batch])\n"
        "        before = str(metric.metric_state)\n"
        "        found[name, reduction] = metric.compute()\n"
        "        assert str(metric.metric_state) == before\n"  # the rank goes on with its own
        "metric = Metric(weights=sys.argv[1], dist_sync_on_step=True)\n"
        "step = slice(2 * rank, 2 * rank + 2)\n"
        "found['step', 'mean'] = metric(x[step], y[step])\n"
        "torch.save(found, os.path.join(sys.argv[2], f'{rank}.pt'))\n"
        "torch.distributed.barrier()  # gloo of torch 2.6 may hang without\n"
        "torch.distributed.destroy_process_group()\n"
    )
    x, y = images(7, 3, 40, 40), images(7, 3, 40, 40, seed=1)
    torch.save((x, y), tmp_path / "images.pt")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    group = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *group, str(script), files["alex"], str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr
    each = peers("alex")[0](x, y).flatten()
    expected = {"mean": each.mean(), "sum": each.sum(), "none": each}
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert torch.allclose(found.pop(("step", "mean")), each[:4].mean(), rtol=1e-5)
        assert len(found) == 6
        for (_, reduction), value in found.items():
            assert value.shape == expected[reduction].shape
            assert torch.allclose(value, expected[reduction], rtol=1e-5)


# --- a frozen metric inside ---------------------------------------------------------------------------------


def test_gradients_flow_through_the_value_of_a_batch(make):
    found = []
    for metric in make():
        assert metric.is_differentiable
        for x, y in batches(2):
            x = x.clone().requires_grad_()
            value = metric(x, y)
            value.backward()
        found.append(x.grad)
        if isinstance(metric, Ours):  # theirs keeps the graphs of all batches
            assert not metric.compute().requires_grad
            assert not metric.total.requires_grad
    assert (found[0] - found[1]).norm() <= 1e-3 * found[1].norm()


def test_the_value_of_a_batch_is_differentiable_as_a_finite_difference_says(files):
    metric = Ours(weights=files["alex"]).set_dtype(torch.float64)
    x, y = (images(1, 3, 31, 31, seed=seed, dtype=torch.float64) * 0.9 for seed in (0, 1))
    along = images(1, 3, 31, 31, seed=2, dtype=torch.float64)
    moved = x.clone().requires_grad_()
    metric(moved, y).backward()
    with torch.no_grad():
        ahead, behind = (metric(x + step * along, y) for step in (1e-6, -1e-6))
    assert (moved.grad * along).sum().item() == pytest.approx(((ahead - behind) / 2e-6).item(), rel=1e-5)


def test_the_metric_inside_is_frozen_and_stays_in_eval_mode(files):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
            self.quality = Ours(weights=files["alex"])

    model = Model().train()
    assert not any(module.training for module in model.quality.net.modules())
    assert not any(parameter.requires_grad for parameter in model.quality.parameters())
    x, y = batches(1)[0]
    model.quality(model.conv(x).tanh(), y).backward()
    assert model.conv.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.quality.parameters())


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("held", [False, True])
def test_state_dicts_are_interchangeable_with_torchmetrics(make, net, held):
    ours, theirs = make(net)
    x, y = batches(1)[0]
    expected = ours(x, y)
    if held:
        quality = ours
        ours, theirs = torch.nn.ModuleList([ours]), torch.nn.ModuleList([theirs])
    assert set(ours.state_dict()) == set(theirs.state_dict())
    changed = {key: 0.5 * value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(changed)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(ours.state_dict())
    if held:
        ours, theirs = quality, theirs[0]
    assert not torch.allclose(ours(x, y), expected)
    ours.reset()
    theirs.reset()
    assert torch.allclose(ours(x, y), theirs(x, y), rtol=1e-4)


def test_the_net_inside_takes_torchmetrics_name_for_the_shares_of_layers(make):
    ours, theirs = make()
    x, y = batches(1)[0]
    value, layers = ours.net(x, y, retperlayer=True, normalize=False)
    expected, expected_layers = theirs.net(x, y, retperlayer=True, normalize=False)
    assert torch.allclose(value, expected, rtol=1e-4)
    for layer, expected_layer in zip(layers, expected_layers, strict=True):
        assert torch.allclose(layer, expected_layer, rtol=1e-3, atol=1e-6)
    assert torch.equal(ours.net(x, y, retPerLayer=True)[0], value)
    assert torch.equal(ours.net(x, y), value)


def test_weights_saved_under_the_names_of_lpips_load(make):
    ours, _ = make("squeeze")
    x, y = batches(1)[0]
    expected = ours(x, y)
    state = {
        f"net.{key}": value for key, value in peers("squeeze")[0].state_dict().items() if "scaling" not in key
    }
    other = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in other.net.parameters():
            parameter.mul_(0.5)
    other.load_state_dict(state)
    assert torch.equal(other(x, y), expected)


# --- precision and devices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("convert", ["set_dtype", "to"])
def test_other_precisions_keep_sums_and_counts_exact(files, dtype, convert):
    metric = Ours(weights=files["alex"])
    x, y = batches(1)[0]
    expected = metric(x, y)
    metric.count += 2048  # where float16 cannot count on
    getattr(metric, convert)(dtype)
    value = metric(x.to(dtype), y.to(dtype))
    assert value.dtype == metric.compute().dtype == dtype
    assert torch.allclose(value.float(), expected, rtol=0.05)
    assert metric.count == 2052
    assert metric.total.dtype == torch.float64
    metric.reset()
    assert torch.allclose(metric(x.to(dtype), y.to(dtype)).float(), expected, rtol=0.05)


def test_plain_dtype_methods_do_nothing_as_for_every_torchmetrics_metric(files):
    metric = Ours(weights=files["alex"])
    for method in ("half", "double", "float"):
        getattr(metric, method)()
        assert metric.net.lin0.channel_weights.dtype == torch.float32
    assert metric.type(torch.float16).net.lin0.channel_weights.dtype == torch.float32


def test_a_device_move_moves_everything(files):
    metric = Ours(weights=files["alex"])
    metric.update(*batches(1)[0])
    metric.to("meta")
    tensors = [*metric.state_dict().values(), *metric.net.buffers(), metric.total, metric.count]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    metric.reset()
    assert metric.total.device.type == metric.device.type == "meta"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cuda_gives_the_cpus_values(files, reduction):
    metric = Ours(reduction=reduction, weights=files["alex"])
    ahead = copy.deepcopy(metric).to("cuda")
    for x, y in batches():
        assert torch.allclose(ahead(x.cuda(), y.cuda()).cpu(), metric(x, y), rtol=1e-2)
    assert torch.allclose(ahead.compute().cpu(), metric.compute(), rtol=1e-2)
    assert torch.allclose(ahead.to("cpu").compute(), metric.compute(), rtol=1e-2)
    with pytest.raises(ValueError, match="img1 is on cuda:0 but the metric is on cpu"):
        ahead.update(x.cuda(), y.cuda())


# --- what torchmetrics expects of every metric --------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "copier",
    [
        copy.deepcopy,
        Ours.clone,
        lambda metric: pickle.loads(pickle.dumps(metric)),
        lambda metric: torch.load(saved(metric), weights_only=False),
    ],
    ids=["deepcopy", "clone", "pickle", "save"],
)
def test_copies_go_on_from_where_the_original_is(files, reduction, copier):
    metric = Ours(reduction=reduction, weights=files["alex"])
    first, second = batches(2)
    metric.update(*first)
    other = copier(metric)
    for each in (metric, other):
        each.update(*second)
    assert torch.equal(metric.compute(), other.compute())
    other.reset()
    other.update(*second)
    assert not torch.equal(metric.compute(), other.compute())


def saved(metric):
    buffer = io.BytesIO()
    torch.save(metric, buffer)
    buffer.seek(0)
    return buffer


def test_metrics_of_one_class_are_told_apart_by_their_hash(files):
    first, second = Ours(weights=files["alex"]), Ours(weights=files["alex"])
    assert hash(first) != hash(second)


def test_constants_are_torchmetrics_and_cannot_be_changed(make):
    ours, theirs = make()
    names = (
        "is_differentiable",
        "higher_is_better",
        "full_state_update",
        "plot_lower_bound",
        "plot_upper_bound",
    )
    for name in names:
        assert getattr(ours, name) == getattr(theirs, name)
        with pytest.raises(RuntimeError, match="Can't change const"):
            setattr(ours, name, None)


def test_a_collection_measures_with_each(files):
    collection = MetricCollection(
        {r: Ours(reduction=r, weights=files["alex"]) for r in ("mean", "sum", "none")}
    )
    for x, y in batches():
        collection.update(x, y)
    found = collection.compute()
    assert torch.allclose(found["none"].sum(), found["sum"])
    assert torch.allclose(found["none"].mean(), found["mean"])
    collection.reset()
    collection(x, y)
    assert torch.allclose(collection.compute()["none"], peers("alex")[0](x, y).flatten(), rtol=1e-5)


def test_a_network_is_shared_by_feature_share(files):
    shared = FeatureShare({r: Ours(reduction=r, weights=files["alex"]) for r in ("mean", "none")})
    x, y = batches(1)[0]
    with torch.no_grad():
        shared.update(x, y)
    assert shared["mean"].net is shared["none"].net
    assert torch.allclose(shared.compute()["mean"], peers("alex")[0](x, y).mean(), rtol=1e-5)


def test_arithmetic_of_metrics_works(files):
    metric = Ours(weights=files["alex"])
    twice = metric + metric
    x, y = batches(1)[0]
    twice.update(x, y)
    assert torch.allclose(twice.compute(), 2 * peers("alex")[0](x, y).mean(), rtol=1e-5)


def test_values_are_plotted(files):
    matplotlib.use("Agg")
    metric = Ours(weights=files["alex"])
    values = [metric(x, y) for x, y in batches()]
    _, axes = metric.plot()
    assert axes.get_ylim()[0] <= metric.compute() <= axes.get_ylim()[1]
    _, own = matplotlib.pyplot.subplots()
    _, axes = metric.plot(values, ax=own)
    assert axes is own
    assert np.allclose(axes.lines[0].get_ydata(), torch.stack(values))
    matplotlib.pyplot.close("all")


def test_scores_are_kept_on_the_cpu_on_request(files):
    metric = Ours(reduction="none", weights=files["alex"], compute_on_cpu=True)
    metric.update(*batches(1)[0])
    assert {score.device.type for score in metric.scores} == {"cpu"}


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"net_type": "resnet"}, "net_type='resnet' is unknown; choose one of 'alex', 'vgg', 'squeeze'"),
        ({"net_type": None}, "net_type=None is unknown"),
        ({"reduction": "median"}, "reduction='median' is unknown; choose one of 'mean', 'sum', 'none', None"),
        ({"reduction": 1}, "reduction=1 is unknown"),
        ({"normalize": "yes"}, "normalize must be True or False, got 'yes'"),
        ({"normalize": 1}, "normalize must be True or False, got 1"),
        ({"sync_on_compute": 3}, "sync_on_compute"),
        ({"nonsense": 3}, "nonsense"),
    ],
)
def test_wrong_arguments_are_named_and_refused_by_torchmetrics_too(files, arguments, message):
    for cls, more in ((Ours, {"weights": files["alex"]}), (Theirs, {})):
        with (
            no_downloads(peers("alex")[0]),
            pytest.raises(ValueError, match=message if cls is Ours else None),
        ):
            cls(**{**more, **arguments})


GOOD = torch.full((2, 3, 40, 40), 0.5)


@pytest.mark.parametrize(
    ("x", "y", "normalize", "message"),
    [
        (GOOD[:, :1], GOOD, False, "img1 must have 3 channels"),
        (GOOD, GOOD[:, :1], False, "img2 must have 3 channels"),
        (GOOD[0], GOOD, False, r"img1 must have shape \(N, 3, H, W\)"),
        (GOOD - 2, GOOD, False, r"img1 has values in \[-1.5, -1.5\]; images must lie in \[-1, 1\]"),
        (GOOD, GOOD - 2, False, "img2 has values in"),
        (GOOD, GOOD - 1, True, r"img2 has values in .*; with normalize=True must lie in \[0, 1\]"),
        (GOOD + 1, GOOD, True, "img1 has values in"),
        (GOOD * torch.nan, GOOD, False, "img1 holds NaN"),
        (GOOD, GOOD[..., :31], False, "img1 and img2 must have the same height and width"),
        (GOOD, torch.cat([GOOD, GOOD]), False, "img1 and img2 must have the same batch size"),
        (GOOD[..., :20], GOOD[..., :20], False, "img1 must be at least 31 x 31"),
    ],
)
def test_wrong_images_are_named_and_refused_by_torchmetrics_too(make, x, y, normalize, message):
    ours, theirs = make(normalize=normalize)
    ours.update(GOOD, GOOD)
    with pytest.raises(ValueError, match=message):
        ours.update(x, y)
    assert ours.compute() == 0
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        theirs.update(x, y)


def test_images_beyond_one_are_measured_as_in_torchmetrics_with_one_warning(make):
    ours, theirs = make()
    x, y = batches(1)[0]
    with pytest.warns(
        UserWarning, match=r"img1 has values in .*; images must lie in \[-1, 1\]. They are"
    ) as caught:
        ours.update(127.5 * (x + 1), y)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.update(x, 127.5 * (y + 1))
    theirs.update(127.5 * (x + 1), y)
    theirs.update(x, 127.5 * (y + 1))
    assert torch.allclose(ours.compute(), theirs.compute(), rtol=1e-4)
    for wrong in (GOOD * torch.inf, GOOD * 5 - 10, torch.cat([GOOD * 300, GOOD * torch.nan])[1:3]):
        with pytest.raises(ValueError, match="img2"):
            ours.update(GOOD, wrong)
    with pytest.raises(TypeError, match=r"img1 must be floating point.* use x / 127.5 - 1"):
        ours.update((GOOD * 255).byte(), GOOD)


# --- its place in the package -------------------------------------------------------------------------------


def test_without_torchmetrics_the_extra_is_named(tmp_path):
    (tmp_path / "torchmetrics.py").write_text("raise ImportError('not here')")
    code = (
        "import rlpips\n"
        "try:\n"
        "    rlpips.torchmetrics\n"
        "except rlpips.MissingExtraError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "pip install 'rlpips[torchmetrics]'" in done.stdout, done.stderr


def test_the_snippet_of_the_guide_does_what_it_says():
    section = (ROOT / "docs" / "torchmetrics.md").read_text().partition("## In a torchmetrics pipeline\n")[2]
    scope = {}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], scope)
    x, y = (2 * torch.cat(images) - 1 for images in zip(*scope["loader"], strict=True))
    assert torch.allclose(scope["value"], rlpips.LPIPS(weights="robust")(x, y).mean())
