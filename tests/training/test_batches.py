import dataclasses

import pytest
import torch
from toys import Triplets
from trained import changed, tensors

from rlpips.training import Settings, train


def turned_like(image, original):
    """Tell in which of the eight ways an image is turned."""
    ways = [torch.rot90(original, turn, (-2, -1)) for turn in range(4)]
    ways += [way.flip(-1) for way in ways]
    return next(k for k, way in enumerate(ways) if torch.equal(image, way))


@pytest.mark.parametrize("taught", [False, True])
def test_symmetries_turn_each_triplet_and_teachers_see_them_so(recipe, tmp_path, taught):
    data = Triplets(32, judge=None if taught else "random")
    seen, shown = [], {}

    def find(images, names):
        for image in images:
            for i, item in enumerate(data):
                if any(abs(image.mean() - item[name].mean()) < 1e-7 for name in names):
                    yield (
                        i,
                        next(
                            turned_like(image, item[n])
                            for n in names
                            if abs(image.mean() - item[n].mean()) < 1e-7
                        ),
                    )

    def teacher(a, b):
        shown.update(find(b, ["ref"]))
        return (a - b).square().mean(dim=(1, 2, 3))

    from rlpips.training import loop

    take = loop.take_step

    def watched(recipe, model, state, triplets, parts):
        ways = [
            list(find(each, [name]))
            for name, each in (("ref", triplets.ref), ("p0", triplets.x0), ("p1", triplets.x1))
        ]
        assert ways[0] == ways[1] == ways[2]
        seen.append(dict(ways[0]))
        return take(recipe, model, state, triplets, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", watched)
        recipe = dataclasses.replace(recipe, symmetries=True, batch=32, epochs=2)
        train(recipe, data, tmp_path / "run", teachers={"plain": teacher} if taught else None)
    first, second = seen
    assert len(first) == 32
    assert set(first.values()) == set(range(8))
    if taught:
        assert first == second == shown
    else:
        assert first != second


def test_workers_read_the_same(recipe, tmp_path):
    alone, helped = (
        tensors(train(recipe, Triplets(), tmp_path / str(n), settings=Settings(workers=n))) for n in (0, 1)
    )
    assert not changed(alone, helped)
