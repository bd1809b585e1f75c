"""The notebooks in `examples/`: they run from top to bottom, and what is committed is what they showed.

After a change, `jupyter nbconvert --execute --inplace examples/NAME.ipynb` runs one where LPIPS' weights are.
"""

import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

import rlpips

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


class ThisPython(AsyncKernelManager):
    """Starts kernels of the Python that runs the tests, whatever `python3` is on this machine."""

    kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
    )


@pytest.fixture
def own_jupyter(tmp_path, monkeypatch):
    """Let kernels read no settings of the user, and import this tree."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def execute(own_jupyter):
    """Run a notebook in a fresh kernel, and return what it printed."""

    def run(path):
        notebook = nbformat.read(path, 4)
        notebook.cells.append(nbformat.v4.new_code_cell("print(rlpips.__file__)"))
        resources = {"metadata": {"path": str(path.parent)}}
        # An assertion of the notebook that fails, or anything else that it raises, is raised here.
        NotebookClient(notebook, km=ThisPython(), timeout=120, resources=resources).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        assert not [output.text for output in outputs if output.get("name") == "stderr"]
        printed = "".join(output.text for output in outputs if output.output_type == "stream")
        assert printed.endswith(f"{rlpips.__file__}\n")
        return printed

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_keeps_its_promises(path, execute, real_weights):
    assert "LPIPS and robust" in execute(path)


def test_runs_without_the_weights_of_lpips(execute, monkeypatch, tmp_path):
    monkeypatch.setenv("RLPIPS_HOME", str(tmp_path / "empty"))
    assert "random AlexNet and robust" in execute(ROOT / "examples" / "compare.ipynb")


def test_a_cell_shows_its_heatmap_once_and_bars_without_warnings(own_jupyter):
    draw = "heatmap(torch.zeros(3, 64, 64), 2 * torch.rand(3, 64, 64) - 1)"
    cells = [
        f"import torch\nfrom rlpips.plots import heatmap\n{draw}",
        f"import matplotlib.pyplot as plt\n{draw}",  # which makes IPython show figures itself
        f"{draw};",
        "from rlpips.system.progress import progress\n"
        "with progress('work', unit='step', total=3) as bar:\n"
        "    bar.update(3)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, km=ThisPython(), timeout=120).execute()
    shown = [cell.outputs for cell in notebook.cells]
    for outputs in shown[:2]:
        assert [list(output.get("data", {})).count("image/png") for output in outputs] == [1]
    assert shown[2] == []
    everything = "".join(str(output) for output in shown[3])
    assert "3/3" in everything
    assert "Warning" not in everything


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_with_clean_outputs(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 600_000
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [each for each in outputs if each.output_type == "error" or each.get("name") == "stderr"]
    printed = "".join(each.get("text", "") + each.get("data", {}).get("text/plain", "") for each in outputs)
    assert "LPIPS and robust" in printed  # not what stands in for LPIPS
    assert "/" not in printed  # no path of the machine where it ran
