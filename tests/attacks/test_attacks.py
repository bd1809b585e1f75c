import dataclasses

import pytest
import torch
from attack_toys import EPS, lengths, plain, triplets
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import peers

import rlpips
from rlpips.attacks import APGD, PGD, SSA, StAdv
from rlpips.attacks.metrics import distances
from rlpips.attacks.objectives import PERTURB, Inflate, Objective, RankFlip

attacks = st.one_of(
    st.builds(
        PGD,
        st.sampled_from(["linf", "l2"]),
        st.floats(0, 0.5),
        st.integers(1, 4),
        random_start=st.booleans(),
        restarts=st.integers(1, 2),
        momentum=st.sampled_from([0.0, 1.0]),
        seed=st.integers(0, 100),
    ),
    st.builds(
        APGD,
        st.sampled_from(["linf", "l2"]),
        st.floats(0, 0.5),
        st.integers(1, 6),
        restarts=st.integers(1, 2),
    ),
    st.builds(SSA, st.sampled_from(["linf", "l2"]), st.floats(0, 0.5), st.integers(1, 3)),
    st.builds(StAdv, st.floats(0, 3), st.integers(1, 3)),
)


@settings(max_examples=80)
@given(
    attack=attacks,
    perturb=st.sampled_from(PERTURB),
    unit=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_results_stay_within_budget_and_range(attack, perturb, unit, dtype, seed):
    if isinstance(attack, SSA) and perturb not in ("x0", "x1"):
        perturb = "x0"
    ref, x0, x1, judge = triplets(3, seed, 12, dtype)
    if unit:
        ref, x0, x1 = ((each + 1) / 2 for each in (ref, x0, x1))
        attack = dataclasses.replace(attack, bounds=(0.0, 1.0))
    objective = RankFlip(plain, ref, x0, x1, judge, perturb)
    before = objective.x.clone()
    found = attack(objective, objective.x)
    assert torch.equal(before, objective.x)
    assert found.shape == before.shape
    assert found.dtype == dtype
    assert not found.requires_grad
    low, high = attack.bounds
    assert found.min() >= low
    assert found.max() <= high
    delta = (found - before) / (high - low)
    if isinstance(attack, StAdv):
        assert delta.isfinite().all()
    elif attack.norm == "linf":
        assert delta.abs().max() <= attack.eps + 1e-6
    else:
        assert lengths(delta).max() <= attack.eps * (1 + 1e-5) + 1e-6
    index = torch.arange(3)
    if not isinstance(attack, SSA):  # which pursues something else than the objective
        assert (objective(found, index) >= objective(before, index)).all()


@pytest.mark.parametrize("perturb", PERTURB)
@pytest.mark.parametrize(
    "attack", [PGD("linf", EPS, 10), PGD("l2", 1.0, 10), PGD("linf", EPS, 10, momentum=1.0), APGD("linf", EPS, 10),
               APGD("l2", 1.0, 10), StAdv(1.0, 10)]
)  # fmt: skip
def test_judgements_are_broken(attack, perturb):
    metric, _ = peers("alex")
    objective = RankFlip(metric, *triplets(8), perturb)
    index = torch.arange(8)
    with torch.no_grad():
        before, after = objective(objective.x, index), objective(attack(objective, objective.x), index)
    assert (after >= before).all()
    assert (after > 0).sum() > (before > 0).sum()


EVERY_ATTACK = [PGD("linf", EPS, 4), PGD("l2", 0.5, 4), APGD("linf", EPS, 4), StAdv(1.0, 4)]


@pytest.mark.parametrize("attack", EVERY_ATTACK)
@pytest.mark.parametrize("later", [False, True])
def test_nan_is_an_error_that_names_metric_and_image(attack, later):
    x = triplets(3)[0]
    calls = []

    def broken(a, b):
        calls.append(len(a))
        bad = (b - x[1]).abs().amax(dim=(1, 2, 3)) == 0
        return plain(a, b).masked_fill(bad & torch.tensor(not later or len(calls) == 2), torch.nan)

    with pytest.raises(rlpips.UndefinedDistanceError, match="broken gives NaN for image 11") as raised:
        attack(Inflate(broken, x), x, image_ids=range(10, 13))
    assert raised.value.image_id == 11


class Counted(Objective):
    """Counts how many images are looked at; the images numbered in `done` are finished from the second look on."""

    def __init__(self, metric, x, done):
        self.metric, self.x, self.done, self.looks, self.goal = metric, x, done, [], 10.0

    def __call__(self, x, index):
        self.looks.append(len(index))
        value = distances(self.metric, x, self.x[index])
        finished = torch.isin(index, torch.tensor(self.done)) & torch.tensor(len(self.looks) > 1)
        return value + 100 * finished


@pytest.mark.parametrize("attack", [PGD("linf", EPS, 5, restarts=2), APGD("linf", EPS, 5), StAdv(1.0, 5)])
def test_finished_images_cost_nothing_more(attack):
    x = triplets(6)[0]
    objective = Counted(plain, x, done=[0, 2, 3, 5])
    attack(objective, x)
    assert objective.looks[:2] == [6, 6]
    assert set(objective.looks[2:]) == {2}
    everything = Counted(plain, x, done=[0, 1, 2, 3, 4, 5])
    attack(everything, x)
    assert everything.looks == [6, 6]


class Spike(Objective):
    """Is large on the third look only."""

    def __init__(self):
        self.seen = []

    def __call__(self, x, index):
        self.seen.append(x.detach().clone())
        return x.mean(dim=(1, 2, 3)) * 0 + (1.0 if len(self.seen) == 3 else 0.0)


def test_the_best_candidate_is_kept_not_the_last():
    x = triplets(1)[0]
    for attack in (PGD("linf", EPS, 6), APGD("linf", EPS, 6), StAdv(1.0, 6)):
        spike = Spike()
        found = attack(spike, x)
        assert torch.equal(found, spike.seen[2])
        assert not torch.equal(found, spike.seen[-1])


@pytest.mark.parametrize("attack", [PGD("linf", EPS, 3, restarts=2), APGD("l2", 1.0, 4), StAdv(1.0, 3)])
def test_results_repeat_and_do_not_depend_on_batches(attack):
    x = triplets(5)[0]
    whole = attack(Inflate(plain, x), x)
    assert torch.equal(attack(Inflate(plain, x), x), whole)
    parts = [attack(Inflate(plain, x[i : i + 2]), x[i : i + 2], range(i, min(i + 2, 5))) for i in (0, 2, 4)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)
    assert not torch.equal(dataclasses.replace(attack, seed=1)(Inflate(plain, x), x), whole)


def test_global_randomness_is_left_alone():
    x = triplets(2)[0]
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    PGD("linf", EPS, 2)(Inflate(plain, x), x)
    assert torch.equal(torch.rand(1), expected)


def test_half_images_stay_half():
    metric, _ = peers("alex")
    x = triplets(2, size=40)[0].half()
    found = PGD("linf", EPS, 3)(Inflate(metric, x.float()), x)
    assert found.dtype == torch.float16
    assert found.abs().max() <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD("l1", EPS, 3), "norm='l1'"),
        (lambda: PGD("linf", -1, 3), "eps=-1 must be"),
        (lambda: PGD("linf", float("nan"), 3), "eps=nan must be"),
        (lambda: APGD("linf", EPS, 0), "steps=0 must be at least 1"),
        (lambda: PGD("linf", EPS, 3, restarts=0), "restarts=0"),
        (lambda: StAdv(float("inf"), 3), "eps=inf must be finite"),
        (lambda: PGD("linf", EPS, 3, step_size=float("nan")), "step_size=nan must be finite and at least 0"),
        (lambda: APGD("linf", EPS, 3, step_size=-1), "step_size=-1 must be"),
        (lambda: PGD("linf", EPS, 3, momentum=float("nan")), "momentum=nan must be"),
        (lambda: StAdv(1, 3, step_size=float("inf")), "step_size=inf must be"),
        (lambda: StAdv(1, 3, smoothness=float("nan")), "smoothness=nan must be"),
        (lambda: RankFlip(plain, *triplets(3)[:3], torch.tensor([0, 1, float("nan")])), r"judge\[2\] is NaN"),
        (lambda: PGD("linf", EPS, 3)(Inflate(plain, torch.zeros(1, 3, 8, 8)), torch.full((1, 3, 8, 8), 1.5)),
         r"must lie in \[-1.0, 1.0\], got \[1.5, 1.5\]"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
