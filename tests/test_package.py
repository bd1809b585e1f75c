"""What is installed, what it contains, and what importing it costs."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import rlpips
from rlpips.hub import registry

ROOT = Path(rlpips.__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the source tree")


def python(*arguments, path="", folder=None):
    """Run Python with these arguments, in a folder, finding packages in `path` too, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(path), "MYPYPATH": str(path)}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, random\n"
        "before = set(sys.modules)\n"
        "import rlpips\n"
        "assert rlpips.__version__\n"
        "dir(rlpips)\n"
        "print(*(set(sys.modules) - before))\n"
    )
    modules = python("-c", code, path=ROOT).split()
    heavy = ("torch", "torchvision", "numpy", "PIL", "requests", "matplotlib", "tqdm", "filelock")
    assert not [module for module in modules if module.split(".")[0] in heavy]


def test_using_the_metric_needs_no_torchvision_and_opens_no_connection_library():
    code = (
        "import sys\n"
        "import rlpips\n"
        "rlpips.LPIPS(pnet_rand=True)\n"
        "rlpips.list_weights()\n"
        "print(*sys.modules)\n"
    )
    modules = python("-c", code, path=ROOT).split()
    assert not {"torchvision", "matplotlib", "requests", "skimage"} & set(modules)


def test_every_public_name_resolves():
    assert {"LPIPS", "Trainer", "distance", "attacks", "training", "__version__"} <= set(rlpips.__all__)
    for name in rlpips.__all__:
        assert getattr(rlpips, name) is not None
    assert dir(rlpips) == sorted(rlpips.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        rlpips.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "path",
    ["attacks.PGD", "attacks.Inflate", "data.TwoAFC", "evaluation.robustness", "training.train",
     "plots.heatmap", "pairwise.pdist", "metric.LPIPS", "scoring.distance", "hub.list_weights",
     "compat.Trainer", "functional.lpips", "torchmetrics.LearnedPerceptualImagePatchSimilarity"],
)  # fmt: skip
def test_public_paths_work_after_importing_the_package_alone(path):
    assert python("-c", f"import rlpips; print(callable(rlpips.{path}))", path=ROOT).split() == ["True"]


def test_mypy_sees_the_types_of_lazy_names(tmp_path):
    (tmp_path / "user.py").write_text(
        "import torch\nimport rlpips\n"
        "reveal_type(rlpips.LPIPS()(torch.zeros(1), torch.zeros(1)))\n"
        "reveal_type(rlpips.LPIPS()(torch.zeros(1), torch.zeros(1), retPerLayer=True))\n"
        "reveal_type(rlpips.distance)\n"
        "from PIL import Image\n"
        "one: float = rlpips.distance('a.png', Image.new('RGB', (64, 64)))\n"
        "reveal_type(rlpips.distance(torch.zeros(1), 'b.png'))\n"
    )
    cache = ("--cache-dir", ROOT / ".mypy_cache")  # with what mypy found of torch before
    out = python("-m", "mypy", "--strict", *cache, tmp_path / "user.py", path=ROOT, folder=tmp_path)
    assert 'Revealed type is "torch._tensor.Tensor"' in out
    assert re.search(
        r'"(builtins\.)?tuple\[torch._tensor.Tensor, (builtins\.)?list\[torch._tensor.Tensor\]\]"', out
    )
    assert "resize:" in out
    assert re.search(r"float \| .*ndarray|Union\[(builtins\.)?float, .*ndarray", out)


def test_pyright_sees_what_a_call_returns(tmp_path):
    (tmp_path / "user.py").write_text(
        "import torch\nimport rlpips\nx = torch.zeros(1)\nm = rlpips.LPIPS()\n"
        "a: str = m(x, x)\nb: str = m(x, x, retPerLayer=True)\n"
    )
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    command = ["-m", "basedpyright", "--pythonpath", sys.executable, "--project", tmp_path]
    out = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path).stdout
    assert '"Tensor" is not assignable to "str"' in out
    assert '"tuple[Tensor, list[Tensor]]" is not assignable to "str"' in out


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the sdist, and from it the wheel, unless CI has built them already."""
    folder = Path(os.environ.get("RLPIPS_DIST") or tmp_path_factory.mktemp("dist"))
    if "RLPIPS_DIST" not in os.environ:
        python("-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_the_wheel_and_the_sdist_hold_what_they_must_and_nothing_else(built):
    sdist, wheel = built
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rlpips").rglob("*")
        if path.suffix in (".py", ".pyi", ".typed")
    }
    data = {path.name for path in registry.data_dir().iterdir()}
    assert data == {
        "registry.json",
        "README.md",
        "lpips-heads.safetensors",
        "rlpips-alex.safetensors",
        "rlpips-heads.safetensors",
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in names if not name.startswith(f"rlpips-{rlpips.__version__}.dist-info/")}
    assert package == modules | {f"rlpips/weights/{name}" for name in data}
    licences = {name.rpartition("/")[2] for name in names - package}
    assert {"METADATA", "LICENSE", "NOTICE", "entry_points.txt"} <= licences
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    wanted = modules | {f"weights/{name}" for name in data}
    wanted |= {"LICENSE", "NOTICE", "README.md", "pyproject.toml", "PKG-INFO", "CHANGELOG.md", "CITATION.cff"}
    for folder in ("tests", "examples", "benchmarks", "docs"):  # with which the tests run
        paths = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        wanted |= {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}
    assert files - {".gitignore"} == wanted | {"CONTRIBUTING.md", "mkdocs.yml"}
    assert wheel.stat().st_size < 10_000_000


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_an_installation_finds_its_weights(built, tmp_path, kind):
    sdist, wheel = built
    source = {"wheel": [wheel], "sdist": [sdist], "editable": ["-e", ROOT]}[kind]
    site = tmp_path / "site"
    python("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site, *source)
    code = (
        "import site, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "site.addsitedir(sys.argv[1])\n"  # where an editable installation is found
        "import rlpips\n"
        "from rlpips.hub import registry\n"
        "assert len(rlpips.list_weights()) == 18\n"
        "assert rlpips.LPIPS(weights='robust').lin0.channel_weights.min() >= 0\n"
        "print(rlpips.__file__)\n"
        "print(registry.data_dir())\n"
    )
    file, data = python("-c", code, site, folder=tmp_path).split()
    home, weights = (ROOT, ROOT / "weights") if kind == "editable" else (site, site / "rlpips" / "weights")
    assert Path(file) == home / "rlpips" / "__init__.py"
    assert Path(data) == weights
