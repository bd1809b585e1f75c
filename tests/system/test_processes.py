import subprocess
import sys
from pathlib import Path

import pytest
from commands import ENVIRONMENT

SCRIPT = """
import torch
from pathlib import Path
from rlpips.system.processes import torchrun_group

def threads():
    return [name for each in Path("/proc/self/task").iterdir() if "gloo" in (name := (each / "comm").read_text())]

with torchrun_group("cpu") as (processes, device):
    import torch._dynamo  # as optimizers and torchvision do
    assert processes.gather({processes.rank: processes.rank}) == [0, 1]
    assert processes.first(lambda: device.type) == "cpu"
    assert threads()
assert not threads()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs a list of this process's threads")
def test_no_thread_of_the_group_outlives_it(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path / "script.py"]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=180, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
