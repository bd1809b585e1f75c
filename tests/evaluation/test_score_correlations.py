import numpy as np
import pytest
from scipy import optimize, stats

from rlpips.evaluation import bootstrap, correlations, fit_logistic

METRICS = ("Spearman", "Kendall", "Pearson")


def pairs(kind, count=90, seed=0):
    """Distances, scores with ties, and groups of different sizes, for several shapes of the relation."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.uniform(0, 100, count) / 4) * 4
    noise = rng.standard_normal(count)
    d = {
        "linear": scores / 100 + 0.1 * noise,
        "saturating": np.tanh((scores - 50) / 20) + 0.1 * noise,
        "like MSE": np.exp(scores / 15 + 0.4 * noise),
        "ties": np.round(scores / 20 + noise),
        "wrong way": -scores + 20 * noise,
    }[kind]
    return d, scores, rng.integers(0, 6, count).tolist()


KINDS = ("linear", "saturating", "like MSE", "ties", "wrong way")


@pytest.mark.parametrize("kind", KINDS)
def test_rank_correlations_and_their_intervals_are_those_of_scipy_on_resampled_groups(kind):
    d, scores, groups = pairs(kind)
    found = correlations(d, scores, groups, seed=3, draws=60)
    for name, statistic in (("Spearman", stats.spearmanr), ("Kendall", stats.kendalltau)):
        expected = bootstrap(
            lambda x, y, f=statistic: float(f(x, y)[0]), d, scores, groups=groups, seed=3, draws=60
        )
        assert vars(found[name]) == pytest.approx(vars(expected), abs=1e-12)


def usual_fit(d, scores):
    """Fit VQEG's curve as its users do, and correlate."""

    def curve(x, low, high, centre, width):
        return low + (high - low) / (1 + np.exp(-np.clip((x - centre) / abs(width), -500, 500)))

    start = [scores.min(), scores.max(), d.mean(), d.std() / 4]
    best, _ = optimize.curve_fit(curve, d, scores, start, maxfev=20000)
    return curve(d, *best)


@pytest.mark.parametrize("kind", KINDS)
def test_pearson_follows_the_usual_fit(kind):
    d, scores, groups = pairs(kind)
    fitted = fit_logistic(d, scores)
    usual = usual_fit(d, scores)
    error = np.mean((fitted(d) - scores) ** 2)
    assert error <= np.mean((usual - scores) ** 2) * (1 + 1e-6)
    assert error == pytest.approx(np.mean((usual - scores) ** 2), rel=1e-3)
    found = correlations(d, scores, groups, draws=100)["Pearson"]
    sign = -1 if kind == "wrong way" else 1
    assert found.value == pytest.approx(sign * np.corrcoef(fitted(d), scores)[0, 1], abs=1e-9)

    def refitted(x, y):  # each sample with a curve of its own
        return sign * np.corrcoef(fit_logistic(x, y)(x), y)[0, 1]

    expected = bootstrap(refitted, d, scores, groups=groups, draws=100)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=2e-3)


def test_a_metric_that_is_the_score_agrees_perfectly():
    scores = np.arange(40.0)
    for d in (scores, 3 * scores + 1):
        for score in correlations(d, scores, list(range(8)) * 5, draws=50).values():
            assert (score.value, score.low, score.high) == pytest.approx((1, 1, 1), abs=1e-5)
            assert score.count == 40
    wrong = correlations(-scores, scores, draws=50)
    assert [wrong[name].value for name in METRICS] == pytest.approx([-1, -1, -1], abs=1e-5)


def test_intervals_resample_references_not_pairs():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(6), 30)
    scores = np.tile(np.linspace(0, 1, 30), 6)
    d = scores + rng.standard_normal(6)[groups]  # each reference has an offset of its own
    by_pair, by_group = correlations(d, scores), correlations(d, scores, groups.tolist())
    for name in METRICS:
        assert by_pair[name].value == pytest.approx(by_group[name].value, abs=1e-12)
        assert by_group[name].high - by_group[name].low > 1.5 * (by_pair[name].high - by_pair[name].low)
    drawn = bootstrap(lambda x: float(np.mean(x)), np.repeat([0.0, 1.0], 50), groups=[0] * 50 + [1] * 50)
    assert (drawn.low, drawn.value, drawn.high) == (0, 0.5, 1)


def test_what_has_no_correlation_or_no_interval_is_nan():
    scores = np.arange(6.0)
    for d in (np.ones(6), np.array([0, 1, 2, np.nan, 4, 5])):
        assert all(np.isnan(score.value) for score in correlations(d, scores).values())
    assert all(np.isnan(score.value) for score in correlations(scores, np.ones(6)).values())
    assert all(np.isnan(score.value) for score in correlations(scores[:2], scores[:2]).values())
    alone = correlations(scores, scores, ["one reference"] * 6)
    assert alone["Spearman"].value == pytest.approx(1)
    assert np.isnan(alone["Spearman"].low)
    only = bootstrap(lambda x: float(np.mean(x)), scores, groups=["one"] * 6)
    assert (only.value, np.isnan(only.low)) == (2.5, True)
    with pytest.raises(ValueError, match="that differ"):
        fit_logistic(np.ones(6), scores)


def test_many_pairs_are_counted_in_blocks(monkeypatch):
    d, scores, groups = pairs("linear", 200)
    whole = correlations(d, scores, groups, draws=20)
    for module in ("score_correlations", "logistic"):
        monkeypatch.setattr(f"rlpips.evaluation.{module}._AT_ONCE", 1500)
    parts = correlations(d, scores, groups, draws=20)
    for name in METRICS:
        assert vars(parts[name]) == pytest.approx(vars(whole[name]), abs=1e-9)
