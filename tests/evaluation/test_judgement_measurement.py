import os
import shutil
import subprocess
import sys
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from attack_toys import plain
from peers import hushed, images, peers
from PIL import Image

import rlpips
from rlpips.attacks import APGD, PGD, SSA, StAdv
from rlpips.evaluation import (
    WorstImages,
    accuracy,
    jnd_score,
    measure_2afc,
    measure_jnd,
    two_afc_score,
)

EPS = 4 / 255


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.array([image], dtype=np.float32))
    else:
        Image.fromarray(rlpips.tensor2im(image)).save(path)


@pytest.fixture(scope="module")
def bapps(tmp_path_factory):
    """A data set of 11 triplets and 9 pairs in BAPPS' layout, made of smooth noise."""
    root = tmp_path_factory.mktemp("bapps")
    ref = 0.8 * images(11, 3, 40, 40).clamp(-1, 1)
    for i in range(11):
        folder, near, far = root / "2afc" / "val" / "toy", 0.06, 0.09
        strengths = (near, far) if i % 2 == 0 else (far, near)
        write(folder / "ref" / f"{i:06}.png", ref[i : i + 1])
        for name, strength in zip(("p0", "p1"), strengths, strict=True):
            noise = images(1, 3, 40, 40, seed=10 * i + len(name) + int(name[1]))
            write(folder / name / f"{i:06}.png", (ref[i : i + 1] + strength * noise).clamp(-1, 1))
        write(folder / "judge" / f"{i:06}.npy", [0.2, 0.8, 0.0, 1.0, 0.4][i % 5] if i % 2 else 0.2)
    for i in range(9):
        folder = root / "jnd" / "val" / "toy"
        write(folder / "p0" / f"{i:06}.png", ref[i : i + 1])
        write(
            folder / "p1" / f"{i:06}.png",
            (ref[i : i + 1] + 0.01 * i * images(1, 3, 40, 40, seed=i)).clamp(-1, 1),
        )
        write(folder / "same" / f"{i:06}.npy", 1 - i / 9)
    return root


class Loader:
    """What lpips calls a data loader."""

    def __init__(self, dataset, batch_size=4):
        self.loader = torch.utils.data.DataLoader(dataset, batch_size)

    def load_data(self):
        return self.loader


def test_scores_are_those_of_lpips(bapps):
    ours, theirs = peers("alex")
    for library, metric in ((rlpips, ours), (lpips, theirs)):
        with hushed(), torch.no_grad():
            two = library.score_2afc_dataset(Loader(rlpips.TwoAFC(bapps)), metric.forward)
            jnd = library.score_jnd_dataset(
                Loader(rlpips.JND(bapps)), lambda a, b, metric=metric: metric(a, b).flatten()
            )
        if library is rlpips:
            found = two, jnd
    assert found[0][0] == pytest.approx(two[0], abs=1e-9)
    assert found[1][0] == pytest.approx(jnd[0], abs=1e-9)
    for mine, other in zip(found, (two, jnd), strict=True):
        assert set(mine[1]) == set(other[1])
        for key, value in other[1].items():
            np.testing.assert_allclose(mine[1][key], value, atol=1e-6)


def test_jnd_counts_all_pairs_where_distances_have_the_metrics_shape():
    generator = torch.Generator().manual_seed(0)
    same, d = torch.rand(2, 20, generator=generator)

    class Pairs:
        def load_data(self):
            return [{"p0": d, "p1": d, "same": same}]

    with hushed():
        expected, _ = lpips.score_jnd_dataset(Pairs(), lambda a, _: a)
        wrong, _ = lpips.score_jnd_dataset(Pairs(), lambda a, _: a.view(-1, 1, 1, 1))
    assert wrong == pytest.approx(same[0].item())  # as the guide says
    found, _ = rlpips.score_jnd_dataset(Pairs(), lambda a, _: a.view(-1, 1, 1, 1))
    assert found == pytest.approx(expected)


def test_any_loader_will_do(bapps):
    metric, _ = peers("alex")
    dataset = rlpips.TwoAFC(bapps)
    score, details = rlpips.score_2afc_dataset(torch.utils.data.DataLoader(dataset, 3), metric)
    assert score == rlpips.score_2afc_dataset(Loader(dataset), metric)[0]
    assert details["d0s"].shape == (11,)


def test_natural_distances_are_those_of_the_metric(bapps):
    metric, _ = peers("alex")
    dataset = rlpips.TwoAFC(bapps)
    d0, d1, judge = measure_2afc(metric, dataset, batch_size=4)
    assert d0.shape == d1.shape == judge.shape == (11,)
    example = dataset[5]
    assert d0[5] == pytest.approx(metric(example["p0"][None], example["ref"][None]).item(), abs=1e-6)
    assert d1[5] == pytest.approx(metric(example["p1"][None], example["ref"][None]).item(), abs=1e-6)
    assert judge[5] == pytest.approx(example["judge"].item())
    d, same = measure_jnd(metric, rlpips.JND(bapps), batch_size=4)
    assert d[0] == pytest.approx(0, abs=1e-6)
    assert same[0] == 1
    assert jnd_score(d, same) > 0.8


@pytest.mark.parametrize(
    ("attack", "perturb"),
    [(PGD("linf", EPS, 3), "x0"), (PGD("l2", 0.5, 3), "ref"), (APGD("linf", EPS, 4), "x0+x1"),
     (SSA("linf", EPS, 3), "x1"), (StAdv(0.5, 3), "x0")],
)  # fmt: skip
def test_attacked_scores_do_not_depend_on_batches_and_repeat(bapps, attack, perturb):
    metric, _ = peers("alex")
    dataset = rlpips.TwoAFC(bapps)
    natural = measure_2afc(metric, dataset)
    by_size = [measure_2afc(metric, dataset, attack, perturb, batch_size=size) for size in (3, 3, 11)]
    for first, second in zip(by_size[0], by_size[1], strict=True):
        np.testing.assert_array_equal(first, second)
    for first, second in zip(by_size[0], by_size[2], strict=True):
        np.testing.assert_allclose(first, second, atol=2e-3)  # steps along signs enlarge rounding
    assert accuracy(*by_size[0]).mean() == pytest.approx(accuracy(*by_size[2]).mean(), abs=0.1)
    if not isinstance(attack, SSA):
        assert accuracy(*by_size[0]).mean() < accuracy(*natural).mean()


def test_limits_and_progress(bapps):
    metric, _ = peers("alex")
    done = []
    d0, _, _ = measure_2afc(metric, rlpips.TwoAFC(bapps), batch_size=2, limit=5, progress=done.append)
    assert len(d0) == 5
    assert done == [2, 2, 1]
    assert len(measure_jnd(metric, rlpips.JND(bapps), limit=3)[0]) == 3


def test_somebody_elses_metric_is_measured_and_attacked(bapps):
    def metric(x, y):
        return (x - y).square().mean(dim=(1, 2, 3))

    d0, d1, judge = measure_2afc(metric, rlpips.TwoAFC(bapps))
    assert two_afc_score(d0, d1, judge).mean() > 0.5
    attacked = measure_2afc(metric, rlpips.TwoAFC(bapps), PGD("linf", EPS, 3), "x0")
    assert accuracy(*attacked).mean() <= accuracy(d0, d1, judge).mean()


@pytest.fixture(scope="module")
def mixed(bapps, tmp_path_factory):
    """The same data set, where the images of every third example have another size."""
    root = tmp_path_factory.mktemp("mixed") / "mixed"
    shutil.copytree(bapps, root)
    for layout, kinds, count in (("2afc", ("ref", "p0", "p1"), 11), ("jnd", ("p0", "p1"), 9)):
        for i in range(1, count, 3):
            for k, name in enumerate(kinds):
                image = 0.8 * images(1, 3, 48, 40, seed=i) + 0.1 * k * images(1, 3, 48, 40, seed=i + k)
                write(root / layout / "val" / "toy" / name / f"{i:06}.png", image.clamp(-1, 1))
    return root


@pytest.mark.parametrize("attack", [None, PGD("linf", EPS, 1), SSA("linf", EPS, 1)])
def test_examples_of_several_sizes_are_measured_as_if_alone(bapps, mixed, attack):
    metric, _ = peers("alex")
    worst, done = WorstImages(), []
    found = measure_2afc(
        metric, rlpips.TwoAFC(mixed), attack, batch_size=4, worst=worst, progress=done.append
    )
    alone = measure_2afc(metric, rlpips.TwoAFC(mixed), attack, batch_size=1)
    np.testing.assert_array_equal(found[2], alone[2])
    np.testing.assert_allclose(found[0], alone[0], atol=1e-4)
    np.testing.assert_allclose(found[1], alone[1], atol=1e-4)
    assert done == [4, 4, 3]
    if attack is not None:
        for i, image in worst.images().items():
            assert image.shape == (3, 48 if i % 3 == 1 else 40, 40)
            assert abs(image - rlpips.TwoAFC(mixed)[i]["p0"].numpy()).max() < 2.1 * EPS
    alike = measure_2afc(metric, rlpips.TwoAFC(bapps), attack, batch_size=1)
    same = [i for i in range(11) if i % 3 != 1 and (not isinstance(attack, SSA) or i % 3 != 0)]
    np.testing.assert_array_equal(alone[0][same], alike[0][same])  # SSA needs the next reference
    other = [i for i in range(11) if i % 3 == 1]
    assert (alone[0][other] != alike[0][other]).all()


def test_pairs_of_several_sizes_are_measured_as_if_alone(mixed):
    metric, _ = peers("alex")
    found = measure_jnd(metric, rlpips.JND(mixed), batch_size=4)
    alone = measure_jnd(metric, rlpips.JND(mixed), batch_size=1)
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_nan_in_a_batch_of_several_sizes_names_its_example(mixed):
    dataset = rlpips.TwoAFC(mixed)
    bad = dataset[7]["ref"]

    def broken(a, b):
        same = (
            (b == bad).flatten(1).all(dim=1) if b.shape[1:] == bad.shape else torch.zeros(len(b), dtype=bool)
        )
        return plain(a, b).masked_fill(same, torch.nan)

    for attack in (None, PGD("linf", EPS, 2)):
        with pytest.raises(rlpips.UndefinedDistanceError, match="gives NaN for val/toy/000007"):
            measure_2afc(broken, dataset, attack, batch_size=4)


@pytest.mark.parametrize("attack", [None, PGD("linf", EPS, 2)])
def test_nan_is_an_error_that_names_metric_and_example(bapps, attack):
    dataset = rlpips.TwoAFC(bapps)
    third = dataset[2]["ref"]

    def broken(a, b):
        bad = (b == third).flatten(1).all(dim=1)
        return (a - b).square().mean(dim=(1, 2, 3)).masked_fill(bad, torch.nan)

    with pytest.raises(rlpips.UndefinedDistanceError, match="broken gives NaN for val/toy/000002"):
        measure_2afc(broken, dataset, attack, batch_size=4)
    with pytest.raises(rlpips.UndefinedDistanceError, match="<lambda> gives NaN for val/toy/000000"):
        measure_jnd(lambda a, b: broken(a, b) * torch.nan, rlpips.JND(bapps))
    with pytest.raises(rlpips.UndefinedDistanceError, match="gives NaN for example 2 of the loader"):
        rlpips.score_2afc_dataset(Loader(dataset), lambda a, b: broken(b, a))
    with pytest.raises(rlpips.UndefinedDistanceError, match="example 0 of the loader"):
        rlpips.score_jnd_dataset(
            Loader(rlpips.JND(bapps)), lambda a, b: (a - b).mean(dim=(1, 2, 3)) * torch.nan
        )


def test_each_image_runs_through_the_backbone_once(bapps):
    metric, runs = rlpips.LPIPS(pnet_rand=True), []
    metric.net.register_forward_pre_hook(lambda net, images: runs.append(len(images[0])))
    measure_2afc(metric, rlpips.TwoAFC(bapps), limit=5, batch_size=2)
    assert sum(runs) == 3 * 5


@pytest.mark.parametrize("attack", [None, PGD("linf", EPS, 2)])
def test_nothing_is_measured_after_nan(bapps, attack):
    seen = []

    def broken(a, b):
        seen.append(len(a))
        return (a - b).square().mean(dim=(1, 2, 3)) * torch.nan

    with pytest.raises(rlpips.UndefinedDistanceError):
        measure_2afc(broken, rlpips.TwoAFC(bapps), attack, batch_size=2)
    first = len(seen)
    with pytest.raises(rlpips.UndefinedDistanceError):
        measure_2afc(broken, rlpips.TwoAFC(bapps), attack, batch_size=2, limit=2)
    assert len(seen) == 2 * first
    seen.clear()
    with pytest.raises(rlpips.UndefinedDistanceError):
        measure_jnd(broken, rlpips.JND(bapps), batch_size=2)
    assert seen == [2]


def test_two_processes_give_the_numbers_of_one(bapps, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, os, numpy as np, torch, rlpips\n"
        "from rlpips.attacks import PGD\n"
        "from rlpips.evaluation import measure_2afc, measure_jnd\n"
        "from rlpips.system.processes import torchrun_group\n"
        "torch.set_num_threads(1)\n"
        "torch.manual_seed(0)\n"
        "metric = rlpips.LPIPS(pnet_rand=True)\n"
        "dataset = rlpips.TwoAFC(sys.argv[1])\n"
        "with torchrun_group('cpu'):\n"
        "    found = measure_2afc(metric, dataset, PGD('linf', 4 / 255, 3), 'ref', batch_size=3)\n"
        "    pairs = measure_jnd(metric, rlpips.JND(sys.argv[1]), batch_size=2)\n"
        "name = os.environ.get('RANK', 'alone')\n"
        "np.savez(os.path.join(sys.argv[2], name), *found, *pairs)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rlpips.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    arguments = [str(script), str(bapps), str(tmp_path)]
    group = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for launcher in ([], group):
        command = [sys.executable, *launcher, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
        assert done.returncode == 0, done.stderr
    alone, *ranks = (np.load(tmp_path / f"{name}.npz") for name in ("alone", "0", "1"))
    assert len(alone.files) == 5
    for rank in ranks:
        for key in alone.files:
            np.testing.assert_array_equal(alone[key], rank[key])
