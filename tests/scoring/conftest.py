"""What the tests of scoring share."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    for i, size in enumerate([(64, 64), (64, 64), (80, 64), (64, 64), (20, 20)]):
        data = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(data).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_text("not an image")
    return tmp_path
