import importlib.util
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import images, peers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rlpips
from rlpips.images import resize
from rlpips.pairwise import Projection, cdist, embed, nearest, pdist

ULP = {torch.float32: 2e-6, torch.float64: 1e-12}


@pytest.fixture(scope="module")
def metric():
    return peers("alex")[0]


@pytest.fixture(scope="module")
def photos(shared):
    """Patches of 40 photos, 64 pixels."""
    files = sorted((shared / "images" / "photos").glob("*.jpg"))[::27][:40]
    whole = (rlpips.im2tensor(rlpips.load_image(file)) for file in files)
    return torch.cat([resize(each, (64, 64)) for each in whole]).clamp(-1, 1)


def one_by_one(metric, a, b):
    """Return what `metric` says of each pair, `(N, M)`."""
    with torch.no_grad():
        rows = [metric(x[None].expand_as(b), b).flatten() for x in a]
    return torch.stack(rows) if rows else torch.zeros(0, len(b))


def above(square):
    return square[tuple(torch.triu_indices(len(square), len(square), 1))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("net", "options"),
    [("alex", {}), ("alex", {"heads": False}), ("vgg", {"version": "0.0"}), ("squeeze", {})],
)
def test_squared_distances_of_embeddings_are_the_metric(net, options, dtype):
    ours, theirs = peers(net, dtype, **options)
    x = images(4, 3, *((35, 41) if net != "vgg" else (19, 23)), dtype=dtype)
    embedded = embed(ours, x)
    assert (embedded.dtype, embedded.is_contiguous(), embedded.requires_grad) == (dtype, True, False)
    assert embedded.ndim == 2
    expected = one_by_one(ours, x, x)
    tolerance = {"rtol": ULP[dtype], "atol": ULP[dtype] / 10}
    direct = (embedded[:, None] - embedded).square().sum(dim=2)
    torch.testing.assert_close(direct, expected, **tolerance)
    torch.testing.assert_close(pdist(ours, x), above(expected), **tolerance)
    torch.testing.assert_close(pdist(ours, embedded), above(expected), **tolerance)
    torch.testing.assert_close(cdist(ours, x, x[1:]), expected[:, 1:], **tolerance)
    torch.testing.assert_close(pdist(ours, (x + 1) / 2, normalize=True), above(expected), **tolerance)
    torch.testing.assert_close(above(expected), above(one_by_one(theirs, x, x)), **tolerance)


def test_the_documented_width(metric):
    assert embed(metric, images(1, 3, 64, 64)).shape == (1, 31872)


@settings(max_examples=12)
@given(
    st.integers(0, 5), st.integers(0, 4), st.integers(31, 50), st.integers(31, 50),
    st.sampled_from([1, 200_000, 600_000, 3_000_000, 1 << 30]), st.integers(1, 4), st.data(),
)  # fmt: skip
def test_neither_blocks_nor_batches_change_results(metric, count, others, height, width, memory, batch, data):
    a, b = images(count, 3, height, width), images(others, 3, height, width, seed=1)
    expected, within = one_by_one(metric, a, b), above(one_by_one(metric, a, a))
    embedded = embed(metric, a, batch_size=batch), embed(metric, b, batch_size=batch)
    given_a, given_b = (
        data.draw(st.sampled_from([each, done])) for each, done in zip((a, b), embedded, strict=True)
    )
    options = {"batch_size": batch, "memory": memory}
    close = {"rtol": 2e-6, "atol": 1e-8}
    torch.testing.assert_close(cdist(metric, given_a, given_b, **options), expected, **close)
    done = []
    pairs = pdist(metric, given_a, progress=done.append, **options)
    torch.testing.assert_close(pairs, within, **close)
    assert sum(done) == len(pairs)
    if others:
        k = data.draw(st.integers(1, others))
        found, where = nearest(metric, given_a, given_b, k, **options)
        torch.testing.assert_close(found, expected.sort(dim=1).values[:, :k], **close)
        torch.testing.assert_close(expected.gather(1, where), found, **close)


@pytest.mark.parametrize("memory", [1, 1 << 22])
def test_near_duplicates_do_not_cancel(real_peers, photos, memory):
    ours, _ = real_peers("alex")
    exact, _ = real_peers("alex", torch.float64)
    x = photos[:6]
    for strength in (0.1, 0.01, 0.002):
        noise = strength * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        near = (x + noise).clamp(-1, 1)
        found = cdist(ours, x, near, memory=memory).diagonal().double()
        expected = ours(x, near).flatten().double()
        assert (found - expected).abs().max() < 1e-6
        assert ((found - expected).abs() / expected).max() < 1e-4
        expected = exact(x.double(), near.double()).flatten()
        assert (found - expected).abs().max() < 1e-6
        assert ((found - expected).abs() / expected).max() < 1e-3
    assert 4e-6 < expected.min() < 1e-5  # as near as it is said to hold


def test_photos_measure_as_with_lpips(real_peers, photos):
    for net in ("alex", "vgg"):
        ours, theirs = real_peers(net)
        x = photos[:4] if net == "alex" else photos[:2]
        assert (pdist(ours, x) - above(one_by_one(theirs, x, x))).abs().max() < 1e-6


def test_copies_are_at_distance_0(real_peers, photos):
    ours, _ = real_peers("alex")
    x = photos[:2].repeat(9, 1, 1, 1)
    for batch_size in (64, 16, 5):  # the last batch is another than the others, and so is its rounding
        square = cdist(ours, x, x[:2], batch_size=batch_size)
        assert (square[::2, 0] == 0).all()
        assert (square[1::2, 1] == 0).all()
        assert (square[::2, 1] > 0.1).all()
        pairs = pdist(ours, x, batch_size=batch_size, memory=3_000_000)
        assert (pairs == 0).sum() == 2 * (9 * 8 // 2)
    black = torch.full((2, 3, 64, 64), -1.0)
    assert pdist(ours, black).item() == 0


class Peak(TorchDispatchMode):
    """The most bytes that tensors held at once that were made in this context."""

    def __init__(self, *inputs):
        super().__init__()
        self.now = self.most = 0
        self._seen = weakref.WeakSet(each.untyped_storage() for each in inputs)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage):
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(storage)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size):
        self.now -= size


@pytest.mark.parametrize("memory", [2 << 20, 5 << 20, 12 << 20])
def test_memory_stays_within_the_budget(metric, memory):
    x = images(20, 3, 64, 64)  # 2.5 MB of embeddings
    metric(x[:1], x[:1])  # whose weights are laid out in the first call
    given = (x, *metric.parameters())
    for run in (
        lambda: pdist(metric, x, memory=memory),
        lambda: cdist(metric, x, x[:16], memory=memory),
        lambda: nearest(metric, x[:16], x, memory=memory),
    ):
        with Peak(*given) as peak:
            run()
        assert peak.most < memory
    embedded = torch.randn(1500, 64)
    with Peak(embedded) as peak:
        nearest(metric, embedded, embedded, 3, memory=memory)
    assert peak.most < memory + 2 * 1500 * 3 * 12


def test_images_may_be_read_as_they_are_needed(metric):
    x = images(9, 3, 64, 64)

    class OnDisk:
        shape = (9, 3, 64, 64)
        most = 0

        def __getitem__(self, part):
            self.most = max(self.most, len(x[part]))
            return x[part]

    lazy = OnDisk()
    assert torch.equal(pdist(metric, lazy, batch_size=4), pdist(metric, x, batch_size=4))
    assert lazy.most == 4
    assert torch.equal(embed(metric, lazy), embed(metric, x))


def test_nearest_finds_the_originals(real_peers, photos):
    ours, _ = real_peers("alex")
    queries = resize(resize(photos[5:15], (48, 48)), (64, 64))
    found, where = nearest(ours, queries, photos, 3)
    assert where[:, 0].tolist() == list(range(5, 15))
    assert (found.diff(dim=1) >= 0).all()


def test_projections_keep_distances_on_average(real_peers, photos):
    ours, _ = real_peers("alex")
    embedded = embed(ours, photos[:12])
    exact = pdist(ours, embedded)
    dim, seeds = 64, 200
    ratios = torch.stack([pdist(ours, Projection(dim, seed)(embedded)) / exact for seed in range(seeds)])
    deviation = (2 / dim) ** 0.5
    # of a mean of `seeds` draws, for each of 66 pairs; and of a variance of them, likewise
    assert ((ratios.mean(dim=0) - 1).abs() < 4.5 * deviation / seeds**0.5).all()
    assert ratios.std(dim=0).max() < deviation * (1 + 4.5 / (2 * seeds) ** 0.5)
    assert ratios.std(dim=0).mean() > deviation / 2  # so the stated error is not idle
    wide = Projection(40_000)(embedded)  # wider than the embeddings: only shuffled
    torch.testing.assert_close(pdist(ours, wide), exact, rtol=1e-6, atol=0)


def test_a_projection_depends_on_its_seed_alone(metric):
    x = images(5, 3, 64, 64)
    projected = embed(metric, x, projection=Projection(32, seed=3), batch_size=2)
    assert projected.shape == (5, 32)
    whole = embed(metric, x)
    torch.testing.assert_close(projected, Projection(32, seed=3)(whole), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(projected, Projection(32, seed=4)(whole), atol=1e-3)
    torch.testing.assert_close(embed(metric, x[3:4], projection=Projection(32, seed=3)), projected[3:4])
    assert nearest(metric, projected[2:3], projected, 1)[1].item() == 2
    with pytest.raises(ValueError, match="dim=0 must be at least 1"):
        Projection(0)


def test_reduced_precision_is_measured_in_float32(metric):
    x = images(3, 3, 64, 64)
    half = x.half()
    found = pdist(metric, half)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, above(one_by_one(metric, half, half)), rtol=2e-6, atol=1e-8)
    with torch.autocast("cpu", torch.bfloat16):
        rough = pdist(metric, x)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, pdist(metric, x), rtol=0.05, atol=1e-3)
    stored = embed(metric, x).half()
    torch.testing.assert_close(pdist(metric, stored), pdist(metric, x), rtol=0.01, atol=1e-5)


def test_what_cannot_be_is_named(metric):
    x, small = images(2, 3, 64, 64), images(2, 3, 48, 64)
    embedded = embed(metric, x)
    for call, error, message in (
        (lambda: cdist(metric, x, small), ValueError, r"a and b must have the same height and width, got \(64, 64\) and \(48, 64\)"),
        (lambda: nearest(metric, small, embedded), ValueError, "queries and gallery have embeddings of .* values"),
        (lambda: nearest(metric, x, x, 3), ValueError, "k=3 must be at least 1 and at most the size of the gallery, 2"),
        (lambda: nearest(metric, x, x, 0), ValueError, "k=0 must be"),
        (lambda: nearest(metric, x, x[:0], 1), ValueError, "the size of the gallery, 0"),
        (lambda: pdist(metric, x, memory=0), ValueError, "memory=0 must be at least 1"),
        (lambda: embed(metric, x, batch_size=0), ValueError, "batch_size=0 must be at least 1"),
        (lambda: pdist(metric, x[0]), ValueError, r"images must have shape \(N, 3, H, W\), got \(3, 64, 64\)"),
        (lambda: embed(metric, embedded), ValueError, r"images must have shape \(N, 3, H, W\)"),
        (lambda: pdist(metric, (x * 127).to(torch.uint8)), TypeError, "images must be floating point"),
        (lambda: pdist(metric, embedded.long()), TypeError, "images must be floating point, as embed made them"),
        (lambda: cdist(metric, x, x.numpy()), TypeError, "must be a tensor"),
        (lambda: cdist(metric, x, x[:, :, :20]), ValueError, "b must be at least 31 x 31"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()


def test_metrics_that_are_no_distance_of_vectors_are_refused():
    x = images(2, 3, 64, 64)
    with pytest.raises(ValueError, match="spatial=True measures maps"):
        embed(rlpips.LPIPS(pnet_rand=True, spatial=True), x)
    metric = rlpips.LPIPS(pnet_rand=True)
    metric.lin3.channel_weights.data[0, 5] = -0.25
    with pytest.raises(ValueError, match="lin3 of the metric has negative weights, down to -0.25"):
        pdist(metric, x)


def test_the_example_finds_copies_and_with_the_robust_weights_attacked_ones(real_weights, photos):
    path = Path(__file__).parents[2] / "examples" / "near_duplicates.py"
    spec = importlib.util.spec_from_file_location("near_duplicates", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    standard, robust = (
        example.found(rlpips.LPIPS(weights=weights), photos, 8) for weights in ("standard", "robust")
    )
    assert min(standard["jpeg"], standard["brightness"], *robust.values()) == 8
    assert standard["attacked"] <= 1


def test_faiss_measures_the_metric(metric):
    import faiss

    x = images(6, 3, 64, 64)
    embedded = embed(metric, x)
    index = faiss.IndexFlatL2(embedded.shape[1])
    index.add(embedded[1:].numpy())
    distances, numbers = index.search(embedded[:1].numpy(), 3)
    found, where = nearest(metric, x[:1], x[1:], 3)
    assert numbers.tolist() == where.tolist()
    np.testing.assert_allclose(distances, found, rtol=1e-5)


def test_the_module_comes_with_the_package():
    code = "import rlpips; assert 'torch' not in __import__('sys').modules; print(rlpips.pairwise.embed.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "embed\n"


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize(
    ("query", "image", "message"),
    [
        (2, None, r"queries\[2\] is at no finite"),
        (None, 1, r"gallery\[1\] is at no finite"),
        (2, 1, r"queries\[2\]"),
    ],
)
def test_nearest_refuses_what_has_no_distance(k, query, image, message):
    queries, gallery = torch.rand(3, 8), torch.rand(4, 8)
    if query is not None:
        queries[query, 0] = torch.nan
    if image is not None:
        gallery[image, 0] = torch.inf
    with pytest.raises(ValueError, match=message):
        nearest(None, queries, gallery, k)
    with pytest.raises(ValueError, match="not finite: embeddings are too large"):
        nearest(None, torch.tensor([[1e30], [0.0]]), torch.tensor([[0.0], [1e30]]), 1)
