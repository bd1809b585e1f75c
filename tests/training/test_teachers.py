import numpy as np
import pytest
import torch
from toys import Triplets, random_metric

import rlpips
from rlpips.training.teachers import choices, measure_teachers


class Counting(torch.nn.Module):
    """A metric that counts what it is asked."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))
        self.calls = 0

    def forward(self, a, b):
        self.calls += 1
        return self.factor * (a - b).square().mean(dim=(1, 2, 3))


def logs(metric, data):
    with torch.no_grad():
        return torch.stack([metric(p, data.ref).flatten().log() for p in (data.p0, data.p1)], dim=1)


def test_every_teacher_is_asked_and_all_choose_together(tmp_path):
    data, perceptual, plain = Triplets(9), random_metric(), Counting()
    found = measure_teachers({"one": perceptual, "other": plain}, data, tmp_path, {}, batch_size=4)
    expected = torch.stack([logs(perceptual, data), logs(plain, data)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    means = found.exp().prod(dim=0).sqrt()
    assert torch.equal(choices(found), (means[:, 1] < means[:, 0]).float())
    assert 0 < choices(found).sum() < 9


def test_distances_are_kept_and_found_again(tmp_path):
    data, teacher = Triplets(9), Counting()
    first = measure_teachers({"mine": teacher}, data, tmp_path, {"seed": 0}, batch_size=4)
    assert teacher.calls == 6
    again = measure_teachers({"mine": teacher}, data, tmp_path, {"seed": 0}, batch_size=4)
    assert teacher.calls == 6
    assert torch.equal(first, again)
    measure_teachers({"mine": teacher}, data, tmp_path, {"seed": 1}, batch_size=4)
    assert teacher.calls == 12
    others = Counting(2.0)
    measure_teachers(
        {"mine": others}, data, tmp_path, {"seed": 0}, batch_size=4
    )  # other weights under the same name
    assert others.calls == 6


def test_an_interrupted_measurement_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("rlpips.training.teachers._BLOCK", 4)
    data, teacher = Triplets(9), Counting()
    whole = measure_teachers({"mine": teacher}, data, tmp_path, {})
    sorted(tmp_path.iterdir())[1].unlink()
    teacher.calls = 0
    assert torch.equal(measure_teachers({"mine": teacher}, data, tmp_path, {}), whole)
    assert teacher.calls == 2


def test_bfloat16_measures_about_the_same(tmp_path):
    data, teacher = Triplets(4), random_metric()
    exact = measure_teachers({"mine": teacher}, data, tmp_path, {})
    rough = measure_teachers({"mine": teacher}, data, tmp_path, {}, precision="bfloat16")
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.1, rtol=0)


def test_a_teacher_without_a_distance_is_named(tmp_path):
    with pytest.raises(rlpips.DatasetError, match="the teacher broken gives distances that are not finite"):
        measure_teachers({"broken": Counting(np.nan)}, Triplets(2), tmp_path, {})


@pytest.mark.parametrize("damage", ["flipped", "cut", "another's"])
def test_damage_in_kept_distances_is_found(tmp_path, damage):
    data, teacher = Triplets(9), Counting()
    measure_teachers({"mine": teacher}, data, tmp_path, {})
    (path,) = tmp_path.iterdir()
    assert np.load(path).shape == (9, 2)
    kept = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(kept[:140] + bytes([kept[140] ^ 1]) + kept[141:])
    elif damage == "cut":
        path.write_bytes(kept[:-1])
    else:
        measure_teachers({"mine": teacher}, Triplets(4), tmp_path / "other", {})
        path.write_bytes(next((tmp_path / "other").iterdir()).read_bytes())
    with pytest.raises(rlpips.CheckpointError, match=rf"{path} is damaged; delete it to measure .* again"):
        measure_teachers({"mine": teacher}, data, tmp_path, {})
    path.unlink()
    assert measure_teachers({"mine": teacher}, data, tmp_path, {}).shape == (1, 9, 2)
