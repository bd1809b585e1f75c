import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpips.evaluation import (
    accuracy,
    bootstrap,
    disagreement,
    jnd_score,
    margin,
    two_afc_score,
)

unit = st.floats(0, 1, width=32)


@given(st.lists(st.tuples(unit, unit, unit), min_size=1, max_size=20))
def test_2afc_credits_the_share_of_judges_and_accuracy_the_majority(rows):
    d0, d1, judge = np.array(rows, dtype=float).T
    for i, (first, second, share) in enumerate(rows):
        credit = 0.5 if first == second else 1 - share if first < second else share
        assert two_afc_score(d0, d1, judge)[i] == pytest.approx(credit)
        majority = 0.5 if share == 0.5 or first == second else float((first < second) == (share < 0.5))
        assert accuracy(d0, d1, judge)[i] == majority


def test_jnd_finds_the_pairs_that_look_the_same():
    same = np.array([1.0, 1.0, 0.0, 0.0])
    assert jnd_score(np.array([0.1, 0.2, 0.3, 0.4]), same) == 1
    assert jnd_score(np.array([0.4, 0.3, 0.2, 0.1]), same) < 0.6


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(100):
        score = bootstrap(
            lambda x: float(np.mean(x)), (rng.random(60) < 0.7).astype(float), seed=trial, draws=300
        )
        assert score.low <= score.value <= score.high
        held += score.low <= 0.7 <= score.high
    assert 88 <= held <= 100
    assert bootstrap(lambda x: float(np.mean(x)), np.ones(5)) == bootstrap(
        lambda x: float(np.mean(x)), np.ones(5)
    )


def test_intervals_are_those_of_resampled_examples():
    score = bootstrap(lambda x, y: float(np.mean(x + y)), np.arange(10.0), np.ones(10), draws=4000)
    error = np.arange(10.0).std() / 10**0.5
    assert (score.value, score.count) == (5.5, 10)
    assert score.low == pytest.approx(5.5 - 1.96 * error, abs=0.1)
    assert score.high == pytest.approx(5.5 + 1.96 * error, abs=0.1)
    only = bootstrap(lambda x: float(np.mean(x)), np.array([3.0]))
    assert (only.value, only.low, only.high, only.count) == (3, 3, 3, 1)


def test_margins_are_logarithms_of_the_ratio_of_distances():
    d0, d1 = np.array([1.0, 1.0, 3.0, 1.0, 0.0, 2.0]), np.array([2.0, 2.0, 1.0, 2.0, 1.0, 2.0])
    found = margin(d0, d1, np.array([0.2, 0.8, 1.0, 0.5, 0.0, 0.9]))
    np.testing.assert_allclose(found[[0, 1, 2, 5]], [np.log(2), -np.log(2), np.log(3), 0], atol=1e-12)
    assert np.isnan(found[3])  # the judges are tied
    assert np.isfinite(found[4])
    assert found[4] > 100


def test_disagreement_compares_ranks_with_the_share_who_saw_a_difference():
    d = np.array([0.3, 0.1, 0.9, 0.5, 0.7])
    agreed = np.array([0.75, 1.0, 0.0, 0.5, 0.25])
    np.testing.assert_allclose(disagreement(d, agreed), 0, atol=1e-12)
    np.testing.assert_allclose(disagreement(d, 1 - agreed), [0.5, 1, 1, 0, 0.5])
    np.testing.assert_allclose(disagreement(np.array([1.0, 1.0, 2.0]), np.array([0.75, 0.75, 0.0])), 0)
    np.testing.assert_allclose(disagreement(np.arange(4.0), np.zeros(4)), [1, 2 / 3, 1 / 3, 0])
    np.testing.assert_allclose(disagreement(np.array([0.4]), np.array([0.25])), 0.75)  # a rank of nothing


def test_scores_of_nan_are_nan():
    nan, one, half = np.array([np.nan]), np.array([1.0]), np.array([0.5])
    assert np.isnan(two_afc_score(nan, one, half)[0])
    assert np.isnan(two_afc_score(one, nan, half)[0])
    assert np.isnan(two_afc_score(one, one, nan)[0])
    assert two_afc_score(one, one, np.array([0.2]))[0] == 0.5
    assert np.isnan(jnd_score(np.array([0.1, 0.2]), np.zeros(2)))  # nobody saw a pair as the same
    assert np.isnan(jnd_score(np.array([np.nan, 0.2]), np.ones(2)))
    score = bootstrap(jnd_score, np.array([0.1, 0.2]), np.zeros(2), draws=10)
    assert np.isnan([score.value, score.low, score.high]).all()
