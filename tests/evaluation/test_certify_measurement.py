import math

import numpy as np
import pytest
import torch
from attack_toys import plain
from toys import Triplets

import rlpips
from rlpips.evaluation import Certified, CertifiedTriplets, accuracy, certified_curve, measure_certified
from rlpips.images import resize


def columns(triplets):
    return list(vars(triplets).values())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return rlpips.TwoAFC(Triplets(6).write(tmp_path_factory.mktemp("data")), "train/toy")


CERTIFIED = Certified(plain, 0.05, n=50, n0=10)


@pytest.mark.parametrize("perturb", ["ref", "all"])
def test_each_triplet_is_measured_as_it_is_alone(dataset, perturb):
    done = []
    found = measure_certified(CERTIFIED, dataset, perturb, progress=done.append)
    assert done == [1] * 6
    for i, item in enumerate(dataset):
        ref, x0, x1 = (item[name][None] for name in ("ref", "p0", "p1"))
        decision = CERTIFIED.decide(ref, x0, x1, perturb, image_ids=[i])
        assert [column[i] for column in columns(found)[:3]] == [plain(x0, ref), plain(x1, ref), item["judge"]]
        answer = (decision.nearer[0], decision.votes[0], decision.radius[0])
        assert tuple(column[i] for column in columns(found)[3:]) == answer
    part = measure_certified(CERTIFIED, dataset, perturb, rows=range(2, 5))
    for one, all_six in zip(columns(part), columns(found), strict=True):
        np.testing.assert_array_equal(one, all_six[2:5])
    other = measure_certified(Certified(plain, 0.05, n=50, n0=10, seed=1), dataset, perturb)
    assert (other.votes != found.votes).any()


def test_images_are_resized_before_the_noise(dataset):
    found = measure_certified(CERTIFIED, dataset, size=48, rows=range(1))
    ref, x0, x1 = (resize(dataset[0][name][None], (48, 48)) for name in ("ref", "p0", "p1"))
    assert found.d0 == plain(x0, ref)
    assert found.votes == CERTIFIED.decide(ref, x0, x1).votes


def test_nan_is_told_with_the_name_of_the_triplet(dataset):
    marked = dataset[3]["ref"]

    def broken(x, y):  # does not know this reference, or its noisy versions
        close = (y - marked).square().mean(dim=(1, 2, 3)) < tolerance
        return torch.where(close, math.nan, plain(x, y))

    for tolerance, what in ((1e-6, "train/toy/000003"), (0.02, "a noisy version of train/toy/000003")):
        metric = broken if tolerance == 1e-6 else lambda x, y: broken(x, y) if len(x) > 1 else plain(x, y)
        certified = Certified(metric, 0.05, n=50)
        with pytest.raises(rlpips.errors.UndefinedDistanceError, match=f"gives NaN for {what}$") as caught:
            measure_certified(certified, dataset)
        assert caught.value.image_id == 3


#   people chose      x0   x0   x1   x1   x0   tied
JUDGE = np.array([0.0, 0.2, 0.8, 1.0, 0.1, 0.5])
NEARER = np.array([0.0, 1.0, 1.0, 1.0, 0.0, 0.0])
RADIUS = np.array([0.1, 0.3, 0.2, 0.4, 0.0, 0.5])
SIX = CertifiedTriplets(np.ones(6), np.full(6, 2.0), JUDGE, NEARER, np.full(6, 60.0), RADIUS)


def test_certified_triplets_count_if_people_agree_and_the_radius_is_larger():
    assert SIX.natural().tolist() == accuracy(SIX.d0, SIX.d1, JUDGE).tolist() == [1, 1, 0, 0, 1, 0.5]
    assert SIX.certified().tolist() == [1, 0, 1, 1, 0, 0.5]  # the fifth abstains
    assert SIX.certified(0.1).tolist() == [0, 0, 1, 1, 0, 0.5]
    assert SIX.certified(0.4).tolist() == [0, 0, 0, 0, 0, 0.5]


def test_the_curve_is_the_certified_accuracy_at_each_radius(tmp_path):
    none = CertifiedTriplets(*(np.zeros(4) for _ in range(6)))  # abstains everywhere
    path = tmp_path / "curve.png"
    figure = certified_curve({"one": {"a": SIX, "b": none}, "two": {"a": none}}, path, {"1/10": 0.1})
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert {"one, a", "one, b", "two, a"} <= lines.keys()
    x, y = lines["one, a"].get_data()
    assert lines["one, a"].get_drawstyle() == "steps-post"
    for radius in (0.0, 0.05, 0.1, 0.15, 0.39, 0.4, 0.6):
        assert y[np.searchsorted(x, radius, side="right") - 1] == SIX.certified(radius).mean()
    assert set(lines["one, b"].get_ydata()) == {0}
    assert lines["one, a"].get_color() == lines["one, b"].get_color() != lines["two, a"].get_color()
    assert (
        lines["one, a"].get_linestyle() == lines["two, a"].get_linestyle() != lines["one, b"].get_linestyle()
    )
    dots = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert dots == [SIX.natural().mean(), 0.5, 0.5]
    assert [text.get_text() for text in axes.texts] == ["1/10"]
    with pytest.raises(ValueError, match=r"written as .png or .pdf"):
        certified_curve({"one": {"a": SIX}}, tmp_path / "curve.jpg")
