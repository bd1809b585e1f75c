import math

import pytest
import torch

import rlpips
from rlpips.errors import CheckpointError
from rlpips.hub.nested import load_nested, save_nested
from rlpips.hub.tensorfiles import read_metadata


def test_containers_come_back_as_they_were(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    shared = torch.arange(6.0)
    content = {
        "optimizer": optimizer.state_dict(),  # with whole numbers as keys, and pairs
        "views": [shared, shared[2:4], shared.view(2, 3).t(), torch.tensor(True), torch.empty(0, 3)],
        "kinds": [
            torch.ones(2).to(kind) for kind in (torch.float64, torch.bfloat16, torch.uint8, torch.int64)
        ],
        "plain": {
            "none": None,
            "nan": math.nan,
            "inf": -math.inf,
            "text": "é\x00",
            "dict": {"dict": []},
            7: 0.1,
        },
        "tensor": {"tensor": 3},
    }
    path = tmp_path / "state.safetensors"
    save_nested(path, content, {}, {})
    again = tmp_path / "again.safetensors"
    save_nested(again, load_nested(path), {}, {})
    assert again.read_bytes() == path.read_bytes()
    found = load_nested(path)
    assert repr(found["optimizer"]["param_groups"][0]["betas"]) == "[0.9, 0.999]"
    assert torch.equal(
        found["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )
    assert all(map(torch.equal, found["views"], content["views"]))
    assert [each.dtype for each in found["kinds"]] == [each.dtype for each in content["kinds"]]
    assert repr(found["plain"]) == repr(content["plain"])
    assert found["tensor"] == {"tensor": 3}
    torch.optim.Adam(model.parameters()).load_state_dict(found["optimizer"])


def test_the_file_is_a_checkpoint_too_and_stays_readable_when_it_is_replaced(tmp_path):
    metric = rlpips.LPIPS(pnet_rand=True)
    path = tmp_path / "state.safetensors"
    weights = metric.state_dict()
    save_nested(path, {"best": weights}, weights, {"version": "0.1"})
    assert read_metadata(path) == {"version": "0.1"}
    loaded = rlpips.LPIPS(weights=path).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in weights.items())
    found = load_nested(path)
    path.write_bytes(b"")
    assert all(torch.equal(value, found["best"][key]) for key, value in weights.items())


def test_what_is_no_state_is_refused(tmp_path):
    path = tmp_path / "metric.safetensors"
    rlpips.LPIPS(pnet_rand=True).save(path)
    with pytest.raises(CheckpointError, match=r"metric\.safetensors does not hold the state of a run"):
        load_nested(path)
    with pytest.raises(TypeError):
        save_nested(path, {"x": object()}, {}, {})
