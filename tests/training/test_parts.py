import dataclasses

import pytest
import torch
from toys import Triplets, random_metric
from trained import changed, tensors

from rlpips.training import Recipe, train
from rlpips.training.parts import add_parts


def medians(metric, data):
    _, shares = metric(data.p0, data.ref, retPerLayer=True)
    return torch.stack([share.median() for share in shares])


def test_parts_keep_the_size_of_distances_and_share_them():
    metric, data = random_metric(), Triplets(8)
    before = metric(data.p0, data.ref)
    lengths = [length.mean() for length in metric.reference(data.ref).lengths]
    add_parts(metric, 2, 0.5, data.ref, data.p0)
    assert torch.allclose(metric.floors[:5], torch.stack(lengths) / 2)
    assert (before / metric(data.p0, data.ref)).median() == pytest.approx(1, rel=1e-4)
    shares = medians(metric, data)
    assert shares[5].item() == pytest.approx(shares[6].item(), rel=1e-4)
    assert shares[5:].sum().item() == pytest.approx(shares[:5].sum().item(), rel=1e-4)


def test_a_run_makes_a_metric_with_parts_and_goes_on_to_the_same_bytes(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, pixels=2, floors=0.5, train="all", mode="adversarial", epochs=2)
    path = train(recipe, Triplets(), tmp_path / "run")
    state = tensors(path)
    assert state["floors"].shape == (7,)
    assert (state["floors"] > 0).all()
    assert state["lin6.model.0.weight"].std() > 0  # the layers of pixels were trained

    class Stopped(Triplets):
        def __getitem__(self, i):
            self.left = getattr(self, "left", 40) - 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().__getitem__(i)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, Stopped(), tmp_path / "other")
    again = train(recipe, Triplets(), tmp_path / "other")
    assert again.read_bytes() == path.read_bytes()
    further = dataclasses.replace(recipe, weights=str(path), pixels=0, floors=0.0)
    assert "floors" not in changed(state, tensors(train(further, Triplets(), tmp_path / "further")))
    with pytest.raises(ValueError, match="pixels=1, but the weights to start from have 2"):
        train(dataclasses.replace(further, pixels=1), Triplets(), tmp_path / "refused")


def test_more_scales_than_two_are_refused():
    with pytest.raises(ValueError, match="pixels=3 must be at most 2"):
        Recipe(pixels=3)
