from pathlib import Path

import pytest
import torch
from peers import images

import rlpips
from rlpips.cli import main
from rlpips.scoring import cached_metric

EXAMPLES = Path(__file__).parents[2] / "examples"


def random_metric(path, seed):
    torch.manual_seed(seed)
    metric = rlpips.LPIPS(pnet_rand=True)
    torch.save(metric.state_dict(), path)
    return metric


def test_the_model_is_built_once_and_anew_when_its_file_is_written_again(tmp_path, monkeypatch):
    x, y = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    file, cpu = tmp_path / "metric.safetensors", torch.device("cpu")
    for seed in range(2):
        metric = random_metric(file, seed)
        assert rlpips.distance(x, y, weights=file) == pytest.approx(metric(x, y).item(), rel=1e-6)
        built = cached_metric("alex", file, "0.1", cpu)
        monkeypatch.chdir(tmp_path)
        for same in (str(file), "metric.safetensors", Path("metric.safetensors")):
            assert cached_metric("alex", same, "0.1", cpu) is built
    file.unlink()
    with pytest.raises(FileNotFoundError, match="metric.safetensors"):
        rlpips.distance(x, y, weights=file)


def test_weights_may_be_a_runs_folder_or_lie_at_home(tmp_path, monkeypatch, capsys):
    x, y = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = tmp_path / "run"
    run.mkdir()
    for command in (rlpips.LPIPS, lambda weights: rlpips.distance(x, y, weights=weights)):
        with pytest.raises(
            FileNotFoundError, match="run holds no metric.safetensors: it is not the folder of a run"
        ):
            command(weights=str(run))
    (run / "run.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="run holds no metric.safetensors: the run has not finished"):
        rlpips.LPIPS(weights=run)
    expected = random_metric(run / "metric.safetensors", 1)(x, y).item()
    for weights in (run, str(run), "~/run", "~/run/metric.safetensors", Path("~/run")):
        assert rlpips.LPIPS(weights=weights)(x, y).item() == pytest.approx(expected, rel=1e-6)
        assert rlpips.distance(x, y, weights=weights) == pytest.approx(expected, rel=1e-6)
    files = [str(EXAMPLES / name) for name in ("cat.png", "cat-blurred.png")]
    assert main(["distance", *files, "--weights", str(run)]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(rlpips.distance(*files, weights=run), abs=1e-4)
