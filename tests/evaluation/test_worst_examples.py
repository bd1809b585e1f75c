import numpy as np
import pytest

from rlpips.evaluation import accuracy, margin, two_afc_score
from rlpips.evaluation.result_cache import Measurements
from rlpips.evaluation.worst_examples import worst_of

NAMES = ("d0", "d1", "judge")


def badness(d0, d1, judge):
    return -margin(d0, d1, judge)


@pytest.fixture
def cases():
    """Three attacks on 200 triplets, on some of which people or distances are tied."""
    rng = np.random.default_rng(0)
    judge = rng.integers(0, 11, 200) / 10
    found = []
    for _ in range(3):
        d0, d1 = rng.uniform(0, 1, (2, 200))
        d1[:20] = d0[:20]
        found.append(Measurements({"judge": judge, "d0": d0, "d1": d1}))
    return found


def test_the_worst_of_several_cases_has_the_least_credit_on_each_triplet(cases):
    worst = worst_of(cases, NAMES, badness)
    for score in (accuracy, two_afc_score):
        each = np.stack([score(*(case.columns[name] for name in NAMES)) for case in cases])
        np.testing.assert_array_equal(score(*(worst.columns[name] for name in NAMES)), each.min(axis=0))
    tied = cases[0].columns["judge"] == 0.5
    assert tied.any()
    for name in NAMES:
        np.testing.assert_array_equal(worst.columns[name][tied], cases[0].columns[name][tied])


def test_the_images_are_those_of_the_strongest_attack():
    judge = np.zeros(3)
    blank = np.zeros((3, 4, 4), dtype=np.float32)
    first = Measurements(
        {"d0": np.array([1.0, 3, 1]), "d1": np.full(3, 2.0), "judge": judge}, {0: blank, 1: blank}
    )
    second = Measurements(
        {"d0": np.array([2.0, 1, 3]), "d1": np.full(3, 2.0), "judge": judge}, {0: blank + 1, 2: blank + 1}
    )
    worst = worst_of([first, second], NAMES, badness)
    assert worst.columns["d0"].tolist() == [2, 3, 3]
    assert {i: image.max() for i, image in worst.images.items()} == {0: 1, 1: 0, 2: 1}
