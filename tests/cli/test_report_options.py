import pytest
from commands import evaluate
from tables import scored_pairs, write_table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "linf:4/255"], "'linf:4/255' is not an attack"),
        (["--attack", "linf:1/0:3"], "'linf:1/0:3' is not an attack"),
        (["--attack", "linf:1e999:3"], "EPS must lie in 0 ... 1e6"),
        (["--attack", "linf:1e99999999:3"], "EPS must lie in 0 ... 1e6"),
        (["-o", "nowhere/report.json"], "its folder does not exist"),
        (["--plot", "figure.jpg"], "must end in .png or .pdf"),
        (["--save-images", "nowhere/images"], "its folder does not exist"),
        (["--seed", "-1"], "-1 is negative"),
        (["--limit", "0"], "0 is not a positive number"),
    ],
)
def test_wrong_usage_ends_with_2(data, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        evaluate("2afc", "--data", data, *arguments, capsys=capsys)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("report", ["2afc", "jnd", "mos", "certified", "robustness"])
def test_a_wrong_metric_is_told_before_another_is_measured(data, weights, counting, modules, capsys, report):
    source = {
        "mos": ["--data", write_table(modules / "pairs.csv", scored_pairs(modules))],
        "robustness": ["--images", data / "2afc" / "val" / "one" / "ref"],
    }.get(report, ["--data", data])
    (modules / "damaged.safetensors").write_bytes(b"no checkpoint")
    (modules / "run").mkdir()
    for wrong, message in (
        ("robsut", "did you mean 'robust'"),
        ("nothing.pth", "'nothing.pth' is neither a file nor a name"),
        ("damaged.safetensors", "damaged.safetensors"),
        ("run", "run holds no metric.safetensors"),
        (f"vgg:{weights}", "not a checkpoint for net='vgg'"),
        ("squeeze:robust", "there are no robust weights for net='squeeze'"),
        ("piq:sism", "there is no classical metric 'sism'"),
        ("counting:nothing", "counting has no nothing"),
        ("no_module:metric", "No module named 'no_module'"),
    ):
        metrics = ["--weights", "counting:metric", weights, wrong]
        status, out, err = evaluate(report, *source, *metrics, capsys=capsys)
        assert (status, out) == (1, "")
        assert message in err
        assert len(err.splitlines()) == 1
    assert counting.calls == []
