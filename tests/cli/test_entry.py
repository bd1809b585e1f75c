import pytest
from commands import BLURRED, CAT, run

from rlpips.cli import main
from rlpips.system import processes


def test_errors_are_one_line_and_end_with_1(weights, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (
            ["distance", "nothing.png", CAT, "--weights", weights],
            "rlpips: nothing.png: there is no such file",
        ),
        (
            ["distance", CAT, BLURRED, "--weights", "nothing.pth"],
            "rlpips: error: 'nothing.pth' is neither a file",
        ),
        (["distance", CAT, BLURRED, "--weights", weights, "--device", "nonsense"], "rlpips: error: "),
        (["compare", tmp_path / "a", tmp_path], "there is no such folder"),
        (["pairs", CAT], "not a folder"),
        (["pairs", tmp_path / "empty"], "there are no two images to compare"),
        (["weights", "path", "alexnett"], "did you mean 'alexnet'?"),
        (["weights", "path", "squeezenet1_1"], "rlpips weights download squeezenet1_1"),
    ):
        status, _, err = run(*arguments, capsys=capsys)
        assert status == 1
        assert message in err
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1


def test_what_nobody_foresaw_is_one_line_and_the_rest_is_asked_for(monkeypatch, capsys):
    def fail():
        raise KeyError("digest")

    monkeypatch.setattr("rlpips.hub.registry.list_weights", fail)
    assert main(["weights", "list"]) == 1
    assert capsys.readouterr().err == (
        "rlpips: error: KeyError: 'digest'; run again with --traceback for details\n"
    )
    for arguments in (["--traceback", "weights", "list"], ["weights", "list", "--traceback"]):
        assert main(arguments) == 1
        err = capsys.readouterr().err
        assert err.startswith("Traceback (most recent call last):")
        assert "in fail" in err


@pytest.mark.parametrize(("cuda", "mps", "device"), [(1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_the_best_device_is_a_gpu_if_there_is_one(monkeypatch, cuda, mps, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(cuda))
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: bool(mps))
    assert processes.best_device() == device


def test_every_command_that_computes_takes_the_best_device(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    seen = []
    monkeypatch.setattr(
        "rlpips.scoring.metric_cache.cached_metric", lambda *given: seen.append(str(given[3])) or 1 / 0
    )
    monkeypatch.setattr("rlpips.system.processes.torchrun_group", lambda device: seen.append(device) or 1 / 0)
    for command in (
        ["distance", CAT, BLURRED],
        ["pairs", CAT.parent],
        ["compare", CAT.parent, CAT.parent],
        ["heatmap", CAT, BLURRED, "-o", tmp_path / "x.png"],
        ["evaluate", "robustness", "--images", CAT.parent],
    ):
        assert main([str(each) for each in command]) == 1
    assert seen == ["mps"] * 5
    assert main(["distance", str(CAT), str(BLURRED), "--device", "cpu"]) == 1
    assert seen[-1] == "cpu"
