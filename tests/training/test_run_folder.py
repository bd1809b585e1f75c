import dataclasses
import shutil

import pytest
import torch
from toys import Triplets, random_metric
from trained import changed, tensors

import rlpips
from rlpips.hub.nested import save_nested
from rlpips.hub.tensorfiles import read_metadata
from rlpips.training import train
from rlpips.training.run_folder import RunFolder


def test_a_folder_goes_with_one_run(recipe, tmp_path):
    run = tmp_path / "run"
    path = train(recipe, Triplets(), run, description={"subsets": ["one"]})
    written = path.read_bytes()
    with pytest.raises(ValueError, match=r"recipe\.lr was 0\.0001 and is now 0\.5.*or another folder"):
        train(dataclasses.replace(recipe, lr=0.5), Triplets(), run, description={"subsets": ["one"]})
    with pytest.raises(ValueError, match=r"data\.subsets was \['one'\] and is now \['two'\]"):
        train(recipe, Triplets(), run, description={"subsets": ["two"]})
    with pytest.raises(ValueError, match=r"data\.subsets was \['one'\] and is now None"):
        train(recipe, Triplets(), run)
    with pytest.raises(ValueError, match=r"data\.count was 16 and is now 12"):
        train(recipe, Triplets(12), run, description={"subsets": ["one"]})
    with pytest.raises(ValueError, match=r"teachers\.mine was None and is now 'sha256:"):
        train(recipe, Triplets(), run, description={"subsets": ["one"]}, teachers={"mine": random_metric()})
    assert path.read_bytes() == written
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").touch()
    with pytest.raises(ValueError, match="mine is not empty, and holds no run"):
        train(recipe, Triplets(), tmp_path / "mine", teachers={"mine": random_metric()})
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["letters.txt"]


def test_damaged_files_of_a_run_are_named(recipe, tmp_path):
    run = tmp_path / "run"
    train(recipe, Triplets(), run)
    state = run / "state.safetensors"
    good = state.read_bytes()
    advice = r"state\.safetensors is damaged; delete it to start the run from its beginning"
    for damage in (good[: len(good) // 2], b"", b"nonsense"):
        state.write_bytes(damage)
        with pytest.raises(rlpips.CheckpointError, match=advice):
            train(recipe, Triplets(), run)
    for write in (
        lambda: torch.save([1], state),
        lambda: save_nested(state, {"step": 3}, {}, {}),
        lambda: shutil.copy(state.with_name("metric.safetensors"), state),
    ):
        write()
        with pytest.raises(rlpips.CheckpointError, match=advice):
            train(recipe, Triplets(), run)
    (run / "run.json").write_text("{")
    with pytest.raises(rlpips.CheckpointError, match=r"run\.json is damaged"):
        train(recipe, Triplets(), run)


def test_a_state_is_held_to_its_digest_and_has_finite_weights(tmp_path):
    run = RunFolder(tmp_path, {})
    state = {
        "step": 3,
        "loss": {"lin0": torch.rand(4)},
        "rows": [{"loss": 0.5, "note": torch.nan}],
        "best": None,
    }
    run.save_state(state, {})
    found = run.load_state()
    assert torch.equal(found["loss"]["lin0"], state["loss"]["lin0"])
    assert found["step"] == 3
    run.state_file.write_bytes(run.state_file.read_bytes().replace(b'["step", 3]', b'["step", 4]'))
    with pytest.raises(rlpips.CheckpointError, match=r"state\.safetensors is damaged; delete it"):
        run.load_state()
    run.save_state({**state, "optimizer": {"state": {0: {"exp_avg": torch.tensor([1.0, torch.nan])}}}}, {})
    with pytest.raises(rlpips.CheckpointError, match=r"state\.safetensors has weights that are not finite"):
        run.load_state()


def test_what_a_killed_run_left_of_its_first_file_is_no_hindrance(tmp_path):
    (tmp_path / ".run.json.abc").touch()
    with RunFolder(tmp_path, {"recipe": {}, "data": {}, "teachers": {}}).opened():
        assert (tmp_path / "run.json").exists()


def test_two_runs_in_one_folder_at_once_are_refused(recipe, tmp_path):
    class Meddling(Triplets):
        refused = None

        def __getitem__(self, i):
            if self.refused is None:
                self.refused = pytest.raises(
                    ValueError, match="another process trains in .*run; wait until it"
                )
                with self.refused:
                    train(recipe, Triplets(), tmp_path / "run")
            return super().__getitem__(i)

    data = Meddling()
    path = train(recipe, data, tmp_path / "run")
    assert data.refused is not None
    assert path.exists()
    train(recipe, Triplets(), tmp_path / "run")  # it is free again


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_state_is_a_checkpoint_of_the_metric(recipe, tmp_path, ema):
    recipe = dataclasses.replace(recipe, epochs=3, lr=0.1, ema=ema)
    path = train(recipe, Triplets(), tmp_path / "run", validation=Triplets(8, 1))
    state = path.with_name("state.safetensors")
    assert not changed(tensors(path), tensors(state))
    metadata = read_metadata(state)
    assert metadata["recipe"] == recipe.to_json()
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has not finished; its metric so far is in .*run/state\.safetensors"
    ):
        rlpips.LPIPS(weights=path.parent)
