import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from children import interruptible
from commands import BLURRED, CAT, ENVIRONMENT
from PIL import Image

from rlpips.cli import main


def shell(command, **environment):
    """Run `rlpips` in a line of shell, such as 'rlpips weights list >&-'."""
    command = command.replace("rlpips", f"'{sys.executable}' -m rlpips", 1)
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **environment},
        timeout=60,
    )


def test_with_stderr_closed_no_complaint_goes_to_stdout(weights, tmp_path):
    done = shell(f"rlpips compare {CAT.parent} {tmp_path} --weights {weights} --csv 2>&-")
    assert (done.returncode, done.stdout) == (1, "a,b,distance\n")


@pytest.mark.parametrize("command", ["weights list", "--help"])
def test_with_stdout_closed_an_error_says_so(command):
    done = shell(f"rlpips {command} >&-")
    assert done.returncode == 1
    assert done.stderr == "rlpips: error: cannot write to standard output: Bad file descriptor\n"


def test_with_stdout_closed_the_report_is_written(weights, tmp_path):
    report = tmp_path / "report.csv"
    done = shell(f"rlpips pairs {CAT.parent} --weights {weights} -o {report} >&-")
    assert done.returncode == 1
    assert "cannot write to standard output" in done.stderr
    assert report.read_text().startswith("a,b,distance\n")


def test_names_that_cannot_be_encoded_are_escaped(weights, tmp_path):
    folder = os.fsencode(tmp_path)
    for name in (b"a-\xff.png", "b-\u00e9.png".encode()):
        with open(folder + b"/" + name, "wb") as file:  # noqa: PTH123  # of bytes
            file.write(CAT.read_bytes())
    for form in ("", "--csv"):
        done = shell(f"rlpips pairs {tmp_path} --weights {weights} {form}", PYTHONIOENCODING="ascii")
        assert (done.returncode, done.stderr) == (0, "")
        assert "a-\\udcff.png" in done.stdout
        assert "b-\\xe9.png" in done.stdout
    done = shell(f"rlpips pairs {tmp_path} --weights {weights} -o {tmp_path}/.table", LC_ALL="C.UTF-8")
    assert done.returncode == 0
    assert "b-\u00e9.png" in (tmp_path / ".table").read_text(encoding="utf-8")
    done = shell(
        f"rlpips compare {tmp_path} {tmp_path} --weights {weights} --plot {tmp_path}/.sheet.png",
        LC_ALL="C.UTF-8",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_output_name_that_is_too_long_is_wrong_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["distance", str(CAT), str(BLURRED), "-o", "x" * 300])
    assert "cannot be written: File name too long" in capsys.readouterr().err


def test_sigterm_ends_with_143_and_leaves_no_half_of_a_file(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from rlpips.hub import registry\n"
        "from rlpips.cli import main\n"
        "from rlpips.system.files import write_atomically\n"
        "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGTERM)\n"
        "registry.list_weights = lambda: write_atomically(Path(sys.argv[1]), b'data')\n"
        "sys.exit(main(['weights', 'list']))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, b"", b"")
    assert not list(tmp_path.iterdir())


def test_the_callers_signals_and_streams_stay(capsys):
    before = signal.getsignal(signal.SIGTERM), sys.stdout.errors
    assert main(["weights", "list"]) == 0
    assert (signal.getsignal(signal.SIGTERM), sys.stdout.errors) == before
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(main(["weights", "list"])))
    thread.start()
    thread.join()
    assert statuses == [0]


@pytest.mark.parametrize(
    ("given", "policy"), [("unset OMP_WAIT_POLICY;", "PASSIVE"), ("OMP_WAIT_POLICY=ACTIVE", "ACTIVE")]
)
def test_threads_with_nothing_to_do_sleep_unless_asked_to_wait_busily(weights, given, policy):
    done = shell(f"{given} rlpips distance {CAT} {BLURRED} --weights {weights}", OMP_DISPLAY_ENV="TRUE")
    assert done.returncode == 0
    assert re.search(rf"OMP_WAIT_POLICY ?= ?'{policy}'", done.stderr)


def test_ctrl_c_ends_quietly_with_130(weights, tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(data).save(tmp_path / "0.png")
    for i in range(1, 2000):
        (tmp_path / f"{i}.png").hardlink_to(tmp_path / "0.png")
    code = (  # it tells when images are read and PyTorch has been loaded
        "import sys\n"
        "from rlpips.cli import main\n"
        "def tell(event, details):\n"
        "    if event == 'open' and str(details[0]).endswith('/100.png') and 'torch.nn' in sys.modules:\n"
        "        print('ready', flush=True)\n"
        "sys.addaudithook(tell)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "pairs", "--all", str(tmp_path), "--weights", weights]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        preexec_fn=interruptible,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out.replace("ready\n", ""), err) == ("", "")


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m rlpips weights list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT)
    assert "Traceback" not in done.stderr
    assert done.stderr == ""
