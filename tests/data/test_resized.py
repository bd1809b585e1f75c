import numpy as np
import pytest
import torch
from PIL import Image
from subsets import FOLDERS, make_subset

from rlpips import JND, TwoAFC
from rlpips.data import Resized


@pytest.mark.parametrize("kind", [TwoAFC, JND])
def test_images_of_all_sizes_become_one_and_the_rest_stays(tmp_path, kind):
    top = kind.layout.top
    make_subset(tmp_path / top / "val" / "cnn", FOLDERS[top], 3)
    for name in kind.layout.images:  # one example of another size, black and white, so that rounding shows
        pixels = 255 * np.random.default_rng(0).integers(0, 2, (23, 31, 1), dtype=np.uint8).repeat(3, axis=2)
        Image.fromarray(pixels).save(tmp_path / top / "val" / "cnn" / name / "000001.png")
    plain = kind(tmp_path)
    resized = Resized(plain, (40, 24))
    assert (len(resized), resized.subsets) == (3, ("val/cnn",))
    assert (resized.name_of(1), resized.subset_of(1)) == ("val/cnn/000001", "val/cnn")
    for before, after in zip(plain, resized, strict=True):
        assert list(after) == list(before)
        for name, value in before.items():
            if name in kind.layout.images:
                wanted = torch.nn.functional.interpolate(
                    value[None], (40, 24), mode="bilinear", align_corners=False, antialias=True
                )
                torch.testing.assert_close(after[name], wanted[0], atol=1e-6, rtol=0)
                assert after[name].abs().max() <= 1
            else:
                assert after[name] == value
    batch = next(iter(torch.utils.data.DataLoader(resized, batch_size=3)))
    assert batch[kind.layout.images[0]].shape == (3, 3, 40, 24)
