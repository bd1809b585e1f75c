import sys

import pytest
from commands import evaluate


def test_a_metric_of_ones_own_is_a_function_of_a_module(data, capsys, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def metric():\n    return lambda x, y: (x - y).square().mean(dim=(1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    status, out, _ = evaluate(
        "2afc", "--data", data, "--weights", "mine:metric", "--attack", "linf:4/255:2", capsys=capsys
    )
    assert status == 0
    assert len(out.splitlines()) == 5
    status, _, err = evaluate("2afc", "--data", data, "--weights", "mine:nothing", capsys=capsys)
    assert status == 1
    assert "'mine:nothing' is not a metric" in err


def test_modules_of_the_working_folder_come_last_and_only_for_factories(data, capsys, modules, monkeypatch):
    monkeypatch.setenv("RLPIPS_HOME", str(modules / "empty"))
    spy = "open('imported', 'a').write(__name__ + ' ')\ndef {}(): return lambda x, y: (x - y).square()\n"
    for name in ("vgg16", "alex", "colorsys", "own_metric"):
        (modules / f"{name}.py").write_text(spy.format("standard"))
    path = list(sys.path)
    sys.modules.pop("colorsys", None)
    for text, found in (
        ("vgg16:standard", ""),
        ("alex:nothing", ""),
        ("colorsys:standard", "has no standard"),
    ):
        status, _, err = evaluate("2afc", "--data", data, "--weights", text, capsys=capsys)
        assert status == 1
        assert found in err
        assert not (modules / "imported").exists()
        assert sys.path == path
    assert evaluate("2afc", "--data", data, "--weights", "own_metric:standard", capsys=capsys)[0] == 0
    assert (modules / "imported").read_text() == "own_metric "
    assert sys.path == path


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def make():\n    raise RuntimeError('no\\nluck')", "RuntimeError: no luck"),
        ("def make():\n    return {}.missing", "AttributeError: 'dict' object has no attribute 'missing'"),
        ("def make():\n    return None", "it returned None, which cannot be called"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("make = 5", "TypeError: 'int' object is not callable"),
        ("def make(", "SyntaxError"),
    ],
)
def test_a_factory_that_fails_is_named_in_one_line(data, capsys, modules, code, message):
    (modules / "failing_metric.py").write_text(code)
    status, out, err = evaluate("2afc", "--data", data, "--weights", "failing_metric:make", capsys=capsys)
    assert (status, out) == (1, "")
    assert err.startswith("rlpips: error: 'failing_metric:make' is not a metric: ")
    assert message in err
    assert len(err.splitlines()) == 1
