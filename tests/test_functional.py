"""The metric as functions: beside the module, finite differences, loops, and one transform beside another."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import images, peers
from torch.func import grad, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import rlpips
from rlpips import functional

ROOT = Path(rlpips.__file__).parents[1]
NETS = {"alex": 31, "vgg": 16, "squeeze": 17}
every_net = pytest.mark.parametrize("net", NETS)


def prepared(net, count=2, dtype=torch.float64):
    """Return a metric, its parameters, and two batches of images as small as it takes."""
    metric, _ = peers(net, dtype)
    side = NETS[net]
    x, y = (images(count, 3, side, side + 3, seed=seed, dtype=dtype) for seed in (0, 1))
    return metric, dict(metric.named_parameters()), x, y


def close(found, expected, rtol=1e-9):
    return (found - expected).norm() <= rtol * expected.norm()


def named_heads(parameters):
    return {name: value for name, value in parameters.items() if name.startswith("lin")}


# --- the same numbers ---------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    net=st.sampled_from(list(NETS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    sizes=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    counts=st.sampled_from([(1, 1), (3, 3), (1, 2), (2, 1), (None, 2), (2, None), (None, None), (0, 0)]),
    version=st.sampled_from(["0.1", "0.0"]),
    with_heads=st.booleans(),
    spatial=st.booleans(),
    normalize=st.booleans(),
)
def test_values_are_the_metrics(net, dtype, sizes, counts, version, with_heads, spatial, normalize):
    metric, _ = peers(net, dtype, version, with_heads, spatial)
    parameters = {k: v for k, v in metric.state_dict().items() if with_heads or not k.startswith("lin")}
    height, width = NETS[net] + sizes[0], NETS[net] + sizes[1]
    pair = []
    for seed, count in enumerate(counts):
        batch = () if count is None else (count,)
        pair.append(images(count or 1, 3, height, width, seed=seed, dtype=dtype)[: count or 1])
        if count == 0:
            pair[-1] = pair[-1][:0]
        pair[-1] = ((pair[-1] + 1) / 2 if normalize else pair[-1]).reshape(*batch, 3, height, width)
    batches = [each if each.ndim == 4 else each[None] for each in pair]
    expected = metric(*batches, normalize=normalize)[:, 0]
    if not spatial:
        expected = expected.flatten()
    if counts == (None, None):
        expected = expected[0]
    found = functional.lpips(parameters, *pair, version=version, normalize=normalize, spatial=spatial)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == dtype
    limit = 1e-5 if dtype == torch.float32 else 1e-12
    assert torch.allclose(found, expected, rtol=limit, atol=limit)


@every_net
def test_features_and_heads_are_the_metrics_and_make_its_distances(net):
    metric, parameters, x, y = prepared(net)
    features = [functional.features(parameters, each) for each in (x, y)]
    for found, expected in zip(features[0], metric.reference(x).features, strict=True):
        assert torch.allclose(found, expected)
    for found, lin in zip(functional.heads(parameters), metric.lins, strict=True):
        assert torch.equal(found, lin.channel_weights.flatten())
    single = functional.features(parameters, x[0])
    assert all(torch.allclose(a, b[0]) for a, b in zip(single, features[0], strict=True))
    found = functional.distance(single, features[1], functional.heads(parameters))
    assert torch.allclose(found, metric(x[:1], y).flatten())
    size = (x.shape[2], x.shape[3])
    maps = functional.distance(*features, functional.heads(parameters), size=size)
    assert torch.allclose(maps, functional.lpips(parameters, x, y, spatial=True))


@every_net
def test_squared_distances_of_embeddings_are_the_metric(net):
    metric, parameters, x, y = prepared(net)
    heads = functional.heads(parameters)
    a, b = (functional.embedding(functional.features(parameters, each), heads) for each in (x, y))
    assert torch.allclose((a - b).square().sum(dim=-1), metric(x, y).flatten(), rtol=1e-12)
    alone = functional.embedding(functional.features(parameters, x[0]), heads)
    assert torch.allclose(alone, a[0])

    def measure(image):
        moved = functional.embedding(functional.features(parameters, image), heads)
        return (moved - b[0]).square().sum()

    expected = grad(lambda image: functional.lpips(parameters, image, y[0]))(x[0])
    assert close(grad(measure)(x[0]), expected)


@every_net
def test_embeddings_have_gradients_to_positive_heads_and_none_that_is_nan(net):
    _, parameters, x, y = prepared(net)
    features = [functional.features(parameters, each) for each in (x[0], y[0])]

    def by_embedding(heads):
        a, b = (functional.embedding(each, heads) for each in features)
        return (a - b).square().sum()

    heads = functional.heads(parameters)
    heads = tuple(torch.where(torch.arange(len(h)) % 3 == 0, 0, h + 0.01) for h in heads)
    expected = grad(lambda h: functional.distance(*features, h))(heads)
    for found, right, head in zip(grad(by_embedding)(heads), expected, heads, strict=True):
        assert torch.isfinite(found).all()
        assert close(found[head > 0], right[head > 0])


def test_names_of_heads_without_dropout_are_known():
    metric = rlpips.LPIPS(pnet_rand=True, use_dropout=False)
    x, y = images(1, 3, 40, 40), images(1, 3, 40, 40, seed=1)
    found = functional.lpips(dict(metric.named_parameters()), x, y)
    assert torch.allclose(found, metric(x, y).flatten())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_is_the_metrics(dtype):
    metric = rlpips.LPIPS(pnet_rand=True).to(dtype)
    x, y = (images(2, 3, 40, 40, seed=seed, dtype=dtype) for seed in (0, 1))
    found = functional.lpips(metric.state_dict(), x, y)
    assert found.dtype == dtype
    assert torch.allclose(found, metric(x, y).flatten(), rtol=0.02)


def test_nothing_is_kept_of_a_call():
    _, parameters, x, y = prepared("alex")
    changed = {name: 0.5 * value for name, value in parameters.items()}
    first = functional.lpips(parameters, x, y)
    other = functional.lpips(changed, x, y)
    assert not torch.allclose(first, other)
    assert torch.equal(functional.lpips(parameters, x, y), first)


def test_threads_with_parameters_of_their_own_do_not_meet():
    _, parameters, x, y = prepared("alex")
    scaled = [{name: scale * value for name, value in parameters.items()} for scale in (1.0, 0.5)]
    expected = [functional.lpips(each, x, y) for each in scaled]
    wrong = []

    def work(k):
        found = [functional.lpips(scaled[k], x, y) for _ in range(20)]
        wrong.extend(value for value in found if not torch.equal(value, expected[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- transforms ---------------------------------------------------------------------------------------------


@every_net
def test_vmap_over_pairs_and_over_images(net):
    metric, parameters, x, y = prepared(net, count=3)
    pairs = vmap(lambda a, b: functional.lpips(parameters, a, b))(x, y)
    assert torch.allclose(pairs, metric(x, y).flatten())
    one = vmap(functional.lpips, in_dims=(None, 0, None))(parameters, x, y[0])
    assert torch.allclose(one, metric(x, y[:1]).flatten())
    table = vmap(lambda a: vmap(lambda b: functional.lpips(parameters, a, b))(y))(x)
    assert torch.allclose(table, torch.stack([metric(a[None], y).flatten() for a in x]))
    maps = vmap(lambda a, b: functional.lpips(parameters, a, b, spatial=True))(x, y)
    assert torch.allclose(maps, functional.lpips(parameters, x, y, spatial=True))
    embeddings = vmap(
        lambda a: functional.embedding(functional.features(parameters, a), functional.heads(parameters))
    )(x)
    assert torch.allclose(
        (embeddings[0] - embeddings[1]).square().sum(), functional.lpips(parameters, x[0], x[1])
    )


def test_vmap_over_the_weights_of_an_ensemble():
    metrics = [rlpips.LPIPS(pnet_rand=True, check_range=False).double() for _ in range(3)]
    _, _, x, y = prepared("alex")
    expected = torch.stack([metric(x, y).flatten() for metric in metrics])
    parameters, buffers = stack_module_state(metrics)
    for weights in (parameters, {**parameters, **buffers}):
        found = vmap(functional.lpips, in_dims=(0, None, None))(weights, x, y)
        assert torch.allclose(found, expected)


@every_net
def test_gradients_by_images_and_weights_are_the_metrics(net):
    metric, parameters, x, y = prepared(net)
    for parameter in metric.parameters():
        parameter.requires_grad_()
    moved = x.clone().requires_grad_()
    expected = torch.autograd.grad(metric(moved, y).sum(), [moved, *parameters.values()])
    for parameter in metric.parameters():
        parameter.requires_grad_(False)
    to_weights, to_images = grad(lambda p, a: functional.lpips(p, a, y).sum(), argnums=(0, 1))(parameters, x)
    assert to_weights.keys() == parameters.keys()
    for found, right in zip([to_images, *to_weights.values()], expected, strict=True):
        assert close(found, right)
    eager = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    functional.lpips(eager, x, y).sum().backward()
    for value, right in zip(eager.values(), expected[1:], strict=True):
        assert close(value.grad, right)


@every_net
def test_jvp_is_the_gradient_along_and_the_finite_difference(net):
    _, parameters, x, y = prepared(net)
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)

    def measure(a):
        return functional.lpips(parameters, a, y)

    value, slope = jvp(measure, (x,), (along,))
    assert torch.allclose(value, measure(x))
    assert torch.allclose(slope.sum(), (grad(lambda a: measure(a).sum())(x) * along).sum())
    step = 1e-6
    assert close(slope, (measure(x + step * along) - measure(x - step * along)) / (2 * step), rtol=1e-5)


@every_net
def test_jvp_by_weights_is_the_finite_difference(net):
    _, parameters, x, y = prepared(net, count=1)
    generator = torch.Generator().manual_seed(0)
    along = {n: v * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in parameters.items()}

    def measure(p):
        return functional.lpips(p, x, y)

    _, slope = jvp(measure, (parameters,), (along,))
    ahead, behind = (
        measure({name: value + step * along[name] for name, value in parameters.items()})
        for step in (1e-6, -1e-6)
    )
    assert close(slope, (ahead - behind) / 2e-6, rtol=1e-5)


@every_net
def test_jacobians_forwards_and_backwards_agree(net):
    _, parameters, x, y = prepared(net)
    brightness = torch.zeros(2, 3, dtype=x.dtype)  # of each image's channels; all pixels would take minutes

    def measure(t):
        return functional.lpips(parameters, x + t[:, :, None, None], y)

    backwards, forwards = jacrev(measure)(brightness), jacfwd(measure)(brightness)
    assert backwards.shape == (2, 2, 3)
    assert close(backwards, forwards)
    expected = grad(lambda a: functional.lpips(parameters, a, y).sum())(x).sum(dim=(2, 3))
    assert close(backwards.sum(dim=0), expected)
    assert backwards[0, 1].abs().max() == backwards[1, 0].abs().max() == 0


@every_net
def test_hessian_vector_products_agree_in_every_order_of_modes(net):
    _, parameters, x, y = prepared(net)
    x, y = x[0], y[0]
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)

    def measure(a):
        return functional.lpips(parameters, a, y)

    slope = grad(measure)
    reverse_over_reverse = vjp(slope, x)[1](v)[0]
    forward_over_reverse = jvp(slope, (x,), (v,))[1]
    reverse_over_forward = grad(lambda a: jvp(measure, (a,), (v,))[1])(x)
    moved = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(measure(moved), moved, create_graph=True)
    (eager,) = torch.autograd.grad((first * v).sum(), moved)
    differences = (slope(x + 1e-6 * v) - slope(x - 1e-6 * v)) / 2e-6
    assert reverse_over_reverse.norm() > 0
    for other in (forward_over_reverse, reverse_over_forward, eager):
        assert close(other, reverse_over_reverse)
    assert close(differences, reverse_over_reverse, rtol=1e-4)


@every_net
def test_gradients_of_each_sample_are_those_of_a_loop(net):
    _, parameters, x, y = prepared(net, count=3)
    mine = named_heads(parameters)

    def measure(own, a, b):
        return functional.lpips({**parameters, **own}, a, b)

    to_heads, to_images = vmap(grad(measure, argnums=(0, 1)), in_dims=(None, 0, 0))(mine, x, y)
    for k in range(3):
        expected_heads, expected_image = grad(measure, argnums=(0, 1))(mine, x[k], y[k])
        assert close(to_images[k], expected_image)
        for name, expected in expected_heads.items():
            assert to_heads[name].shape == (3, *mine[name].shape)
            assert close(to_heads[name][k], expected)


@every_net
def test_gradients_where_features_vanish_are_finite(net):
    _, parameters, x, y = prepared(net)
    last = sorted(name for name in parameters if name.startswith(f"net.slice{5 + 2 * (net == 'squeeze')}."))
    silent = {name: value * (name not in last) for name, value in parameters.items()}
    assert all(f.abs().max() == 0 for f in functional.features(silent, x)[-1:])

    def measure(a):
        return functional.lpips(silent, a, y).sum()

    assert torch.isfinite(grad(measure)(x)).all()
    assert torch.isfinite(jvp(measure, (x,), (torch.ones_like(x),))[1])
    assert torch.isfinite(jvp(grad(measure), (x,), (torch.ones_like(x),))[1]).all()


def test_torch_compile_makes_one_graph():
    metric = rlpips.LPIPS(pnet_rand=True, check_range=False)
    parameters = dict(metric.named_parameters())
    x, y = images(2, 3, 40, 40), images(2, 3, 40, 40, seed=1)

    def each(p, a, b):
        return vmap(grad(functional.lpips, argnums=1), in_dims=(None, 0, 0))(p, a, b)

    for function in (functional.lpips, each):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(parameters, x, y), function(parameters, x, y), rtol=1e-4, atol=1e-7)


# --- what is refused ----------------------------------------------------------------------------------------


def test_wrong_arguments_are_named():
    _, parameters, x, y = prepared("alex")
    with pytest.raises(ValueError, match="those of a whole metric.*got 'lin0.model.1.weight'"):
        functional.lpips(named_heads(parameters), x, y)
    with pytest.raises(ValueError, match="got none"):
        functional.features({}, x)
    with pytest.raises(ValueError, match="lack the heads lin2, but hold others"):
        functional.lpips({k: v for k, v in parameters.items() if k != "lin2.model.1.weight"}, x, y)
    with pytest.raises(ValueError, match=r"version='1' is unknown"):
        functional.lpips(parameters, x, y, version="1")
    with pytest.raises(ValueError, match="in1 must have 3 channels"):
        functional.lpips(parameters, x, y[:, :2])
    with pytest.raises(ValueError, match="in0 must be at least 31 x 31"):
        functional.lpips(parameters, x[0, :, :20], y)
    with pytest.raises(ValueError, match="same height and width"):
        functional.lpips(parameters, x, y[..., :-1])
    with pytest.raises(TypeError, match="images must be a tensor"):
        functional.features(parameters, [[1.0]])
    with pytest.raises(TypeError, match="in0 is torch.float64 but the metric is torch.float32"):
        functional.lpips({k: v.float() for k, v in parameters.items()}, x, y)


# --- its place in the package -------------------------------------------------------------------------------


def test_the_module_is_there_after_importing_the_package():
    code = (
        "import rlpips; print('torch' in __import__('sys').modules); print(rlpips.functional.lpips.__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["False", "lpips"], done.stderr


def test_the_snippet_of_the_guide_does_what_it_says():
    section = (ROOT / "docs" / "torchmetrics.md").read_text().partition("## With `torch.func`\n")[2]
    scope = {"torch": torch, "loader": [torch.rand(2, 2, 3, 64, 64)]}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], scope)
    metric, x, y = scope["metric"], scope["x"], scope["y"]
    assert torch.allclose(scope["each"], metric(x, y).flatten())
    moved = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(metric(moved, y).sum(), moved)
    assert close(scope["gradients"], expected, rtol=1e-5)  # the guide is in float32
    assert scope["hvp"].shape == x[0].shape
