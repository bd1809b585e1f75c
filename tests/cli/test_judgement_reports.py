import errno
import json
import shutil
import subprocess
import sys
import tempfile

import pytest
from commands import ENVIRONMENT, evaluate


def test_a_metric_that_gives_nan_leaves_the_others_their_report(data, capsys, modules):
    (modules / "nan_metric.py").write_text(
        "def fine(): return lambda x, y: (x - y).square().mean(dim=(1, 2, 3))\n"
        "def broken(): return lambda x, y: (x - y).square().mean(dim=(1, 2, 3)) * float('nan')\n"
    )
    status, out, err = evaluate(
        "2afc", "--data", data, "--weights", "nan_metric:broken", "nan_metric:fine", "--subsets", "val/one",
        "--attack", "linf:4/255:1", "-o", "r.json", "--plot", "p.png", "--save-images", "worst", capsys=capsys,
    )  # fmt: skip
    assert status == 1
    assert err.splitlines() == [
        "rlpips: nan_metric:broken: broken.<locals>.<lambda> gives NaN for val/one/0",
        "rlpips: nan_metric:broken: broken.<locals>.<lambda> gives NaN for val/one/0",
    ]
    assert out.count("not defined") == 4
    results = json.loads((modules / "r.json").read_text())["results"]
    by_metric = {
        name: [r for r in results if r["metric"] == f"nan_metric:{name}"] for name in ("fine", "broken")
    }
    assert all(len(record["d0"]) == 7 for record in by_metric["fine"])
    assert [record["2AFC"] for record in by_metric["broken"]] == [None, None]
    assert (modules / "p.png").exists()
    assert not (modules / "r.json.parts").exists()
    status, out, err = evaluate(
        "robustness", "--images", data / "2afc" / "val" / "one" / "ref", "--weights", "nan_metric:broken",
        "nan_metric:fine", "--size", 32, "--attack", "linf:4/255:1", "-o", "s.json", "--limit", 2, capsys=capsys,
    )  # fmt: skip
    assert status == 1
    assert err.startswith("rlpips: nan_metric:broken gives NaN for 0.png (")
    assert len(err.splitlines()) == 1
    assert "not defined" in out
    report = json.loads((modules / "s.json").read_text())
    assert report["metrics"]["nan_metric:broken"]["ordinary_median"] is None
    assert report["metrics"]["nan_metric:fine"]["ordinary_median"] > 0


def test_worst_of_is_not_defined_where_an_attack_met_nan(data, capsys, modules):
    (modules / "nan_metric.py").write_text(
        "def broken(): return lambda x, y: (x - y).square().mean(dim=(1, 2, 3)) * float('nan')\n"
    )
    status, out, _ = evaluate(
        "2afc", "--data", data, "--weights", "nan_metric:broken", "--subsets", "val/one", "--attack",
        "linf:4/255:1", "linf:4/255:2", "-o", "r.json", capsys=capsys,
    )  # fmt: skip
    assert status == 1
    worst = [line for line in out.splitlines() if "worst of linf:4/255" in line]
    assert [line.count("not defined") for line in worst] == [2]
    record = json.loads((modules / "r.json").read_text())["results"][-1]
    assert (record["attack"], record["2AFC"]) == ("worst of linf:4/255", None)


def test_the_table_is_printed_where_the_file_cannot_be_written(data, capsys, weights, tmp_path, monkeypatch):
    def full(prefix, dir):
        if prefix == ".r.json.":
            raise OSError(errno.ENOSPC, "No space left on device")
        return mkstemp(prefix=prefix, dir=dir)

    mkstemp = tempfile.mkstemp
    monkeypatch.setattr(tempfile, "mkstemp", full)
    status, out, err = evaluate(
        "jnd", "--data", data, "--weights", weights, "-o", tmp_path / "r.json", capsys=capsys
    )
    assert status == 1
    assert "mAP" in out
    assert "No space left" in err


def test_what_else_lies_in_the_folder_of_results_stays(data, capsys, weights, tmp_path):
    parts = tmp_path / "r.json.parts"
    (parts / "more").mkdir(parents=True)
    (parts / "notes.txt").write_text("mine")
    (parts / "results.npz").write_text("mine")
    (parts / ".0123456789abcdef.npz.abc_1").write_text("left by a run that was killed")
    arguments = ["jnd", "--data", data, "--weights", weights, "-o", tmp_path / "r.json"]
    assert evaluate(*arguments, capsys=capsys)[0] == 0
    assert {path.name for path in parts.iterdir()} == {"more", "notes.txt", "results.npz"}
    shutil.rmtree(parts)
    parts.write_text("a file")
    status, _, err = evaluate(*arguments, capsys=capsys)
    assert status == 1
    assert "r.json.parts is in the way" in err
    assert parts.read_text() == "a file"


def test_an_interrupted_report_goes_on_where_it_stopped(data, capsys, tmp_path, counting):
    output = tmp_path / "report.json"
    saved = tmp_path / "worst"
    arguments = ["2afc", "--data", data, "--weights", "counting:metric", "-o", output, "--save-images", saved]
    counting.begin(stop=3)  # in the second subset
    assert evaluate(*arguments, capsys=capsys)[0] == 130
    assert not output.exists()
    assert len(list((tmp_path / "report.json.parts").iterdir())) == 1
    counting.begin()
    assert evaluate(*arguments, capsys=capsys)[0] == 0
    assert len(counting.calls) == 2  # two distances of one subset; the other was done
    resumed = json.loads(output.read_text())
    output.unlink()
    evaluate(*arguments, capsys=capsys)
    assert json.loads(output.read_text()) == resumed


@pytest.mark.parametrize(
    ("attack", "other"),
    [("linf:4/255:1", ["linf:4/255:1x2"]), ("linf:4/255,8/255:1", ["linf:8/255:1"]),
     ("linf:4/255:1", ["linf:4/255:1", "--size", "48"])],
)  # fmt: skip
def test_kept_results_count_only_for_the_same_attack_and_size(
    data, capsys, tmp_path, counting, attack, other
):
    def run(name, *attack):
        output = tmp_path / name
        command = ["2afc", "--data", data, "--weights", "counting:metric", "-o", output, "--attack", *attack]
        status = evaluate(*command, capsys=capsys)[0]
        return status, {(r["subset"], r["attack"]): r for r in json.loads(output.read_text())["results"]}

    run("whole.json", attack)
    counting.begin(stop=len(counting.calls))  # in the last attack on the last subset
    with pytest.raises(FileNotFoundError):
        run("report.json", attack)
    assert len(list((tmp_path / "report.json.parts").iterdir())) >= 3
    counting.begin()
    assert run("report.json", *other) == run("fresh.json", *other)


def test_two_processes_write_the_report_of_one(data, weights, tmp_path):
    group = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    reports = []
    for launcher in ([], group):
        output = tmp_path / f"report{len(reports)}.json"
        command = [sys.executable, *launcher, "-m", "rlpips", "evaluate", "2afc", "--data", data, "--weights",
                   weights, "--attack", "linf:4/255:2", "--batch-size", "2", "-o", output]  # fmt: skip
        done = subprocess.run(
            [str(each) for each in command], capture_output=True, text=True, timeout=180, env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr
        reports.append((done.stdout, output.read_text()))
    assert reports[0] == reports[1]
