import math
import warnings

import numpy as np
import pytest
import torch
from attack_toys import lengths, plain, triplets
from peers import images
from toys import random_metric

import rlpips
from rlpips.evaluation import Certified

SLOPE = images(1, 3, 8, 8, seed=5).double()


def linear(x, y):
    """A "distance" that is linear in both images, so that everything about it under noise is known."""
    return ((x - y) * SLOPE.to(x)).flatten(1).sum(dim=1)


def mse(x, y):
    return (x - y).square().flatten(1).mean(dim=1)


def toy(n=1, seed=0):
    return [0.5 * images(n, 3, 8, 8, seed=seed + k).double() for k in range(3)]


def true_radius(metric, ref, x0, x1, perturb):
    """Return the length, on the [0, 1] scale, of the shortest change that makes the smoothed decision tie.

    The difference of the distances is linear in what carries noise, so the length is value over slope.
    """
    given = {"ref": ref, "x0": x0, "x1": x1}
    moving = [given[k].requires_grad_() for k in (given if perturb == "all" else [perturb])]
    difference = metric(given["x1"], given["ref"]) - metric(given["x0"], given["ref"])
    slopes = torch.autograd.grad(difference.sum(), moving)
    length = torch.stack([slope.flatten(1).square().sum(dim=1) for slope in slopes]).sum(dim=0).sqrt()
    for each in moving:
        each.requires_grad_(False)
    return (difference.abs() / length / 2).detach().numpy(), (difference < 0).long().numpy()


CASES = [(mse, "ref"), (linear, "x0"), (linear, "x1"), (linear, "all")]


@pytest.mark.parametrize(("metric", "perturb"), CASES)
def test_the_radius_exceeds_the_true_one_as_rarely_as_alpha_says(metric, perturb):
    given = toy()
    (radius,), (nearer,) = true_radius(metric, *given, perturb)
    certified = Certified(metric, radius, n=150, n0=20, alpha=0.1, batch_size=256)
    many = [image.expand(400, -1, -1, -1) for image in given]
    found = certified.decide(*many, perturb)
    wrong = (found.radius > radius) | ((found.nearer != nearer) & ~found.abstained)
    # Clopper and Pearson are a little careful, so about 0.08 is expected, give or take 0.014
    assert 0.03 < wrong.mean() < 0.14


@pytest.mark.parametrize(("metric", "perturb"), CASES)
def test_the_radius_approaches_the_true_one(metric, perturb):
    given = toy(seed=3)
    (radius,), (nearer,) = true_radius(metric, *given, perturb)
    shares = []
    for n in (100, 1000, 20_000):
        found = Certified(metric, radius, n=n, batch_size=500).decide(*given, perturb)
        assert (found.nearer, found.abstained) == (nearer, False)
        shares.append(float(found.radius[0] / radius))
    assert shares[0] < shares[1] < shares[2] < 1
    assert shares[2] > 0.95


def test_a_decision_that_no_noise_turns_has_the_largest_radius():
    ref, x0, _ = toy()
    certified = Certified(mse, 0.05, n=500)
    found = certified.decide(ref, ref + 0.01 * x0, -ref)
    assert (found.nearer, found.votes, found.abstained) == (0, 500, False)
    assert found.radius == certified.largest_radius
    assert certified.largest_radius == pytest.approx(0.05 * 2.2034, rel=1e-3)  # quantile(0.001 ** (1 / 500))


def test_it_abstains_where_the_noise_decides():
    ref, x0, _ = toy()
    found = Certified(mse, 0.1).decide(ref, x0, 2 * ref - x0)  # as far on the other side
    assert (found.abstained, found.radius) == (True, 0)
    assert 400 < found.votes < 600
    found = Certified(mse, 0.1).decide(ref, x0, x0)  # a tie for every noise: x0, as for the metric without
    assert (found.nearer, found.abstained) == (0, False)


@pytest.mark.parametrize(("perturb", "root"), [("x", 1), ("y", 1), ("both", math.sqrt(2))])
@pytest.mark.parametrize("radius", [0.0, 0.05, 0.15])
def test_bounds_hold_what_every_change_can_do(perturb, root, radius):
    x, y, _ = toy()
    slope = 2 * root * float(SLOPE.norm())  # of the distance, for a change of length 1 on the [0, 1] scale
    exact = float(linear(x, y))
    many = [image.expand(300, -1, -1, -1) for image in (x, y)]
    found = Certified(linear, 0.1, n=200, alpha=0.1, batch_size=256).bounds(*many, radius, perturb)
    wrong = (found.low > exact - radius * slope) | (found.high < exact + radius * slope)
    assert 0.01 < wrong.mean() < 0.16  # about 0.08 is expected, give or take 0.016
    assert ((found.low < found.median) & (found.median < found.high)).all()
    low, median, high = Certified(linear, 0.1, n=20_000, batch_size=500).bounds(x, y, radius, perturb)
    assert median == pytest.approx(exact, abs=0.02 * slope * 0.1)
    assert low == pytest.approx(exact - radius * slope, abs=0.08 * slope * 0.1)
    assert high == pytest.approx(exact + radius * slope, abs=0.08 * slope * 0.1)


def test_bounds_are_infinite_where_the_draws_are_too_few():
    x, y, _ = toy()
    certified = Certified(linear, 0.1)
    for radius, finite in ((0.24, True), (0.245, False), (10, False)):
        low, median, high = certified.bounds(x, y, radius)
        assert np.isfinite(median)
        assert (np.isfinite(low), np.isfinite(high)) == (finite, finite)
        assert low < median < high


def climb(value, sigma, x, length, steps=15, draws=16):
    """Move `x` by at most a length, so that a value is large in the noise around it (Salman et al. 2019)."""
    generator = torch.Generator().manual_seed(1)
    length = 2 * float(length)  # of images in [-1, 1]
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta.requires_grad_()
        noise = 2 * sigma * torch.randn((draws, *x.shape[1:]), generator=generator)
        (slope,) = torch.autograd.grad(value(x + delta + noise).sum(), delta)
        with torch.no_grad():
            delta = delta + length / 2 * slope / lengths(slope)
            delta = delta * (length / lengths(delta)).clamp(max=1)
    return x + delta


@pytest.fixture(scope="module")
def attackable():
    """A metric with a backbone, a triplet on which it decides clearly but not finally, and the certificate."""
    metric, certified = random_metric(), None
    ref, x0, x1, _ = (each[:1] for each in triplets(n=1, size=32))
    certified = Certified(metric, 0.05, n=1000, batch_size=100)
    return certified, ref, x0, x1


def test_attacks_on_a_decision_fail_inside_the_radius(attackable):
    certified, ref, x0, x1 = attackable
    found = certified.decide(ref, x0, x1)
    assert 0 < found.radius < certified.largest_radius
    metric, sigma, radius = certified.metric, certified.sigma, found.radius[0]
    fresh = Certified(metric, sigma, n=1000, seed=1, batch_size=100)
    sign = 1 if found.nearer == 0 else -1

    def wrong(moved):
        d0, d1 = (metric(x.expand_as(moved), moved) for x in (x0, x1))
        return sign * (d0 - d1)

    answers = [fresh.decide(climb(wrong, sigma, ref, length), x0, x1) for length in (radius, 4 * radius)]
    assert answers[0].nearer == found.nearer
    assert answers[0].votes > 500
    assert answers[1].nearer != found.nearer  # where nothing is promised, the attack succeeds
    assert answers[1].votes > 500


def test_attacks_on_a_distance_stay_within_the_bounds(attackable):
    certified, ref, x0, _ = attackable
    metric, sigma = certified.metric, certified.sigma
    radius = 1.5 * sigma
    low, median, high = certified.bounds(ref, x0, radius)
    fresh = Certified(metric, sigma, n=300, seed=1, batch_size=100)

    def distance(moved):
        return metric(x0.expand_as(moved), moved)

    def attacked(length, sign):
        return fresh.bounds(climb(lambda moved: sign * distance(moved), sigma, ref, length), x0, 0)

    larger, smaller = attacked(radius, 1), attacked(radius, -1)
    assert low < smaller.high < median < larger.low  # the attacks do move the distance
    assert larger.median < high
    assert attacked(8 * radius, 1).low > high  # where nothing is promised, they succeed


def test_results_depend_neither_on_batches_nor_on_other_images():
    ref, x0, x1, _ = triplets(n=3, size=32)
    for metric, batch_sizes in ((plain, (1, 7)), (random_metric(), (7,))):
        whole = Certified(metric, 0.05, n=20, n0=5, batch_size=25)
        decided = {perturb: whole.decide(ref, x0, x1, perturb) for perturb in ("ref", "x0", "all")}
        bounded = {perturb: whole.bounds(ref, x0, 0.01, perturb) for perturb in ("x", "y", "both")}
        for batch_size in batch_sizes:
            small = Certified(metric, 0.05, n=20, n0=5, batch_size=batch_size)
            for perturb, all_three in decided.items():
                one = small.decide(ref[1], x0[1], x1[1], perturb, image_ids=[1])
                assert [float(each[0]) for each in one] == [float(each[1]) for each in all_three]
            for perturb, all_three in bounded.items():
                one = small.bounds(ref[1], x0[1], 0.01, perturb, image_ids=[1])
                np.testing.assert_allclose([each[0] for each in one], [each[1] for each in all_three], 1e-4)


def test_the_seed_and_the_image_decide_the_draws():
    x, y = (each.expand(2, -1, -1, -1) for each in toy()[:2])
    first, again, other = (Certified(linear, 0.1, n=50, seed=seed).bounds(x, y, 0.0) for seed in (0, 0, 1))
    assert (first.low == again.low).all()
    assert len({*first.low, *other.low}) == 4


class Counting:
    """A metric with a backbone, the identity, that counts the images which run through it."""

    def __init__(self):
        self.count = 0

    def reference(self, images):
        self.count += len(images)
        return images

    def __call__(self, a, b):
        return mse(a, b)


@pytest.mark.parametrize(("perturb", "expected"), [("ref", 110 + 2), ("x0", 110 + 2), ("all", 3 * 110)])
def test_an_image_runs_once_for_each_noise_and_once_without(perturb, expected):
    metric = Counting()
    found = Certified(metric, 0.1, n=100, n0=10).decide(*toy(), perturb)
    assert metric.count == expected
    assert [*found] == [*Certified(mse, 0.1, n=100, n0=10).decide(*toy(), perturb)]


def test_noise_is_no_reason_to_warn_of_the_range_but_images_are():
    metric = rlpips.LPIPS(pnet_rand=True)
    ref, x0, x1 = (each[:1] for each in triplets(n=1)[:3])
    certified = Certified(metric, 0.5, n=3, n0=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certified.decide(ref, x0, x1)
        certified.bounds(ref, x0, 0.0, "both")
    assert metric.check_range
    with pytest.warns(UserWarning, match=r"must lie in \[-1, 1\]"):
        certified.bounds(ref, 127 * x0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"sigma": math.nan}, "sigma must be positive"),
        ({"sigma": math.inf}, "sigma must be positive"),
        ({"alpha": 0.0}, "alpha is a probability"),
        ({"alpha": 1.0}, "alpha is a probability"),
        ({"n": 0}, "n must be a positive number, got 0"),
        ({"n0": 0}, "n0 must be a positive number"),
        ({"batch_size": -1}, "batch_size must be a positive number"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Certified(plain, **{"sigma": 0.1, **arguments})


def test_wrong_arguments_are_refused():
    certified = Certified(plain, 0.1, n=5)
    ref, x0, x1 = toy(2)
    with pytest.raises(ValueError, match=r"perturb='x' is unknown; choose ref, x0, x1, all"):
        certified.decide(ref, x0, x1, "x")
    with pytest.raises(ValueError, match=r"perturb='ref' is unknown; choose x, y, both"):
        certified.bounds(ref, x0, 0.1, "ref")
    for radius in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="radius must be a length"):
            certified.bounds(ref, x0, radius)
    with pytest.raises(ValueError, match=r"one shape, \(N, 3, H, W\), got ref \(2, 3, 8, 8\), x0 \(1, 3, 8"):
        certified.decide(ref, x0[:1], x1)
    with pytest.raises(ValueError, match="image_ids has 1 numbers for 2 examples"):
        certified.bounds(ref, x0, 0.1, image_ids=[0])


def test_a_metric_that_gives_nan_is_named():
    ref, x0, x1 = toy(2)
    metric = Certified(lambda x, y: mse(x, y).log(), 0.1, n=5)
    assert np.isfinite(metric.bounds(ref, x0, 0.0).median).all()

    def broken(x, y):
        return torch.where(x.mean(dim=(1, 2, 3)) == x0[1].mean(), math.nan, mse(x, y))

    with pytest.raises(
        rlpips.errors.UndefinedDistanceError, match="gives NaN for a noisy version of image 8"
    ):
        Certified(broken, 0.1, n=5).decide(ref, x0, x1, image_ids=[7, 8])
