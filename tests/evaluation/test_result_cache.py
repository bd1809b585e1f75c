import os
from pathlib import Path

import numpy as np
import pytest

from rlpips.evaluation.result_cache import Measurements, ResultCache


def test_no_results_are_kept_beside_a_device_and_those_of_a_link_beside_its_file(tmp_path):
    assert ResultCache(Path(os.devnull))._folder is None
    (tmp_path / "real.json").write_text("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link.json").symlink_to(tmp_path / "real.json")
    assert ResultCache(tmp_path / "sub" / "link.json")._folder == tmp_path.resolve() / "real.json.parts"


@pytest.mark.parametrize("way", ["flipped", "name", "cut", "empty"])
def test_what_a_damaged_part_held_is_measured_again(tmp_path, caplog, way):
    truth = Measurements({"d0": np.arange(9.0)}, {4: np.ones((3, 2, 2), np.float32)})
    cache = ResultCache(tmp_path / "report.json")
    assert cache.get({"seed": 0}, lambda: truth) is truth
    (path,) = (tmp_path / "report.json.parts").iterdir()
    whole = path.read_bytes()
    for damaged, warnings in (
        (
            {
                "flipped": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
                "name": whole.replace(b"column:d0", b"column:d1"),  # zips have no checksum of names
                "cut": whole[:-1],
                "empty": b"",
            }[way],
            1,
        ),
        (whole, 0),
    ):
        path.write_bytes(damaged)
        caplog.clear()
        found = cache.get({"seed": 0}, lambda: truth)
        assert np.array_equal(found.columns["d0"], truth.columns["d0"])
        assert np.array_equal(found.images[4], truth.images[4])
        assert path.read_bytes() == whole
        assert [record.getMessage() for record in caplog.records] == [
            f"{path} is damaged; its results are measured again"
        ] * warnings
