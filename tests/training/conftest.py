"""A short recipe for the tests of training, and the random metric that it starts from."""

import pytest
from toys import saved_metric

from rlpips.training import Recipe


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The file of a random metric to start from."""
    return saved_metric(tmp_path_factory.mktemp("start") / "random.pth")


@pytest.fixture
def recipe(start):
    """Two steps on 16 triplets."""
    return Recipe(weights=start, batch=8, epochs=1, decay_epochs=0, steps=2, dropout=False)
