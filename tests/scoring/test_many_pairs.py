import gc
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rlpips
from rlpips.scoring import measure_all, measure_pairs

UNREADABLE = Path("/proc/self/mem")  # Linux gives an I/O error for its first bytes


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file that gives errors when it is read")
def test_files_that_cannot_be_read_are_told_and_the_others_measured(folder, weights):
    (folder / "failing.png").symlink_to(UNREADABLE)
    pairs = [(folder / a, folder / b) for a, b in (("0.png", "failing.png"), ("0.png", "1.png"))]
    failed, measured = measure_pairs(pairs, rlpips.LPIPS(weights=weights))
    assert list(failed.unreadable.values()) == [
        f"{folder / 'failing.png'}: cannot be read: Input/output error"
    ]
    assert measured.distance > 0


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_pairs_are_measured_in_order_and_failures_told(folder, weights, batch_size):
    metric = rlpips.LPIPS(weights=weights)
    paths = [folder / f"{i}.png" for i in range(6)]
    pairs = [(a, b) for a in paths for b in paths]
    measured = list(measure_pairs(pairs, metric, batch_size=batch_size))
    assert [(m.a, m.b) for m in measured] == pairs
    for m in measured:
        if paths[5] in (m.a, m.b):
            assert list(m.unreadable) == [paths[5]]
            assert "not an image" in m.unreadable[paths[5]]
        elif (paths[2] == m.a) != (paths[2] == m.b) or (paths[4] == m.a) != (paths[4] == m.b):
            assert "differ in size" in m.problem
        elif paths[4] == m.a:
            assert "20 x 20 pixels are too few" in m.problem
        else:
            assert (m.problem, m.unreadable) == ("", {})
            assert m.distance == pytest.approx(rlpips.distance(m.a, m.b, weights=weights), abs=1e-6)
    resized = list(measure_pairs(pairs, metric, batch_size=batch_size, resize=(40, 48)))
    assert sum(not m.unreadable for m in resized) == 25


@pytest.mark.parametrize(("batch_size", "size"), [(1, None), (64, None), (2, (40, 48))])
def test_all_pairs_measure_as_pair_by_pair(folder, weights, batch_size, size):
    metric = rlpips.LPIPS(weights=weights)
    paths = [folder / f"{i}.png" for i in (0, 2, 5, 1, 4, 3, 0)]
    done = []
    found = list(measure_all(paths, metric, batch_size=batch_size, resize=size, progress=done.append))
    expected = list(measure_pairs(itertools.combinations(paths, 2), metric, resize=size))
    assert [(m.a, m.b, m.problem, m.unreadable) for m in found] == [
        (m.a, m.b, m.problem, m.unreadable) for m in expected
    ]
    distances = [m.distance for m in expected]
    assert [m.distance for m in found] == pytest.approx(distances, abs=1e-7, nan_ok=True)
    assert sum(done) == sum(distance == distance for distance in distances)


def storages_of_images(height, width):
    """Return where in memory the tensors of this size lie that are alive."""
    tensors = (each for each in gc.get_objects() if type(each) is torch.Tensor)
    return {each.untyped_storage().data_ptr() for each in tensors if each.shape[-2:] == (height, width)}


def test_few_images_are_kept_however_many_pairs_are_measured(weights, tmp_path):
    for k in range(24):
        data = np.random.default_rng(k).integers(0, 256, (33, 47, 3), dtype=np.uint8)
        Image.fromarray(data).save(tmp_path / f"{k}.png")
    pairs = itertools.pairwise(sorted(tmp_path.iterdir()))
    measured = measure_pairs(pairs, rlpips.LPIPS(weights=weights), batch_size=2)
    kept = [len(storages_of_images(33, 47)) for _ in measured]
    assert len(kept) == 23
    assert 0 < max(kept) <= 2 * 2 * 2  # a batch of two pairs, and as many images remembered
