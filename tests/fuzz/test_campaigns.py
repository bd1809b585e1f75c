"""A short run of each campaign; `PYTHONPATH=tests python -m fuzz` is the long one."""

import pytest

from fuzz.campaign import CAMPAIGNS, run

COUNTS = {"checkpoints": 150, "images": 400, "states": 150, "arguments": 150, "reports": 200, "servers": 200}


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_nothing_damaged_is_taken_and_every_error_is_the_promised_one(name, tmp_path):
    counts = run(name, tmp_path, seed=0, count=COUNTS[name])
    assert counts["refused"] > COUNTS[name] // 4
