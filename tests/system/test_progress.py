import io
import re
import sys
import types

import pytest

from rlpips.system.progress import progress


class Log(io.StringIO):
    terminal = False

    def isatty(self):
        return self.terminal


def replace_stderr(monkeypatch):
    """Do it within the test, as pytest sets its own when the test begins."""
    log = Log()
    monkeypatch.setattr(sys, "stderr", log)
    return log


def test_a_log_gets_a_plain_line_at_most_every_30_seconds(monkeypatch):
    stderr = replace_stderr(monkeypatch)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with progress("work", unit="step", total=100) as bar:
        for _ in range(100):
            now[0] += 1
            bar.update()
    lines = stderr.getvalue().splitlines()
    assert [re.match(r"rlpips: work: +(\d+)% ", line)[1] for line in lines] == ["30", "60", "90"]
    assert "30/100 [00:30<01:10," in lines[0]
    assert not set(stderr.getvalue()) & set("\r\x1b█")


def test_quick_or_hidden_work_writes_nothing_to_a_log(monkeypatch):
    stderr = replace_stderr(monkeypatch)
    with progress("work", unit="step", total=2) as bar:
        bar.update(2)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with progress("work", unit="step", total=2, hidden=True) as bar:
        now[0] = 100
        bar.update()
    assert stderr.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    stderr = replace_stderr(monkeypatch)
    stderr.terminal = True
    with progress("work", unit="step", total=2) as bar:
        bar.update()
    assert "\rwork:" in stderr.getvalue()
    assert "1/2" in stderr.getvalue()


@pytest.mark.parametrize("closed", [True, False])
def test_work_goes_on_without_stderr(monkeypatch, closed, capsys):
    stderr = replace_stderr(monkeypatch)
    stderr.close() if closed else monkeypatch.setattr(sys, "stderr", None)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with progress("work", unit="step", total=2) as bar:
        now[0] = 100
        bar.update()
    assert bar.n == 1
    assert capsys.readouterr().out == ""


def test_a_notebook_gets_a_bar_though_its_stderr_is_no_terminal(monkeypatch, recwarn):
    stderr = replace_stderr(monkeypatch)
    kernel = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: kernel))
    for name in [name for name in sys.modules if name in ("tqdm.auto", "tqdm.autonotebook", "tqdm.notebook")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # not installed
    with progress("work", unit="step", total=2) as bar:
        bar.update()
    assert "1/2" in stderr.getvalue()
    assert not recwarn.list
