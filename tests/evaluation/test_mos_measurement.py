import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import ENVIRONMENT
from peers import peers
from tables import difference, save, scored_pairs, write_table

import rlpips
from rlpips.data import MOS
from rlpips.evaluation import correlations, measure_mos


@pytest.fixture
def dataset(tmp_path):
    rows = scored_pairs(tmp_path)
    for r in range(3):  # large enough for AlexNet
        save(tmp_path / "refs" / f"r{r}.png", 100, (40, 40 + 4 * r))
        for k in range(4):
            save(tmp_path / "dist" / f"r{r}-{k}.png", 101 + 3 * k + r, (40, 40 + 4 * r))
    order = np.random.default_rng(0).permutation(len(rows))  # references are mixed in the table
    return MOS(write_table(tmp_path / "pairs.csv", [rows[i] for i in order]))


def test_distances_are_those_of_single_pairs_in_the_order_of_the_table(dataset):
    metric, _ = peers("alex")
    for batch_size in (1, 3):
        d, worse = measure_mos(metric, dataset, batch_size=batch_size)
        expected = [
            metric(item["ref"][None], item["dist"][None]).item()
            for item in map(dataset.__getitem__, range(12))
        ]
        np.testing.assert_allclose(d, expected, atol=1e-6)
        assert np.array_equal(worse, dataset.scores)


def test_a_metric_that_equals_the_score_agrees_perfectly(dataset):
    d, worse = measure_mos(difference, dataset)
    assert np.array_equal(d, worse)
    found = correlations(d, worse, dataset.groups)
    assert [score.value for score in found.values()] == pytest.approx([1, 1, 1], abs=1e-3)


def test_a_reference_runs_once_for_the_pairs_of_a_batch(dataset):
    metric, _ = peers("alex")
    seen, done = [], []
    hook = metric.net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    measure_mos(metric, dataset, batch_size=3, progress=done.append)
    hook.remove()
    assert seen == [1, 3, 1, 1] * 3
    assert done == [3, 1] * 3


def test_nan_is_an_error_that_names_metric_and_line(dataset):
    wrong = dataset[7]["dist"]

    def broken(x, y):
        same = torch.tensor([a.shape == wrong.shape and bool((a == wrong).all()) for a in x])
        return difference(x, y).masked_fill(same, torch.nan)

    with pytest.raises(rlpips.UndefinedDistanceError, match=r"broken gives NaN for \w+/line-9") as caught:
        measure_mos(broken, dataset)
    assert caught.value.image_id == 7


def test_two_processes_give_the_numbers_of_one(dataset, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, os, numpy as np\n"
        "from rlpips.data import MOS\n"
        "from rlpips.evaluation import measure_mos\n"
        "from rlpips.system.processes import torchrun_group\n"
        "metric = lambda x, y: (x - y).abs().mean(dim=(1, 2, 3))\n"
        "with torchrun_group('cpu'):\n"
        "    d, _ = measure_mos(metric, MOS(sys.argv[1]), batch_size=3)\n"
        "np.save(os.path.join(sys.argv[2], os.environ['RANK']), d)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    done = subprocess.run(
        [str(each) for each in [*command, dataset.path, tmp_path]],
        capture_output=True, text=True, timeout=180, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected, _ = measure_mos(lambda x, y: (x - y).abs().mean(dim=(1, 2, 3)), dataset, batch_size=3)
    for rank in (0, 1):
        assert np.array_equal(np.load(tmp_path / f"{rank}.npy"), expected)
