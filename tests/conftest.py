"""What the tests share: the real `lpips` as oracle, real weights and photos, and a cache of their own."""

import functools
import os
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # workers share the cores; before torch reads it
    cores = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))

import hypothesis
import lpips
import pytest
import torch
from interrupted import Counting
from peers import WORST, hushed
from users import open_to_all

import rlpips
from rlpips.hub import registry, store

hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("no deadline")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Let no test touch the user's cache or the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLPIPS_HOME", str(tmp_path_factory.mktemp("rlpips-home")))
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch-home")))
        patch.setenv("RLPIPS_OFFLINE", "1")
        patch.delenv("RANK", raising=False)
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A checkpoint with a random backbone, for `--weights` of tests that do not need the real weights."""
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.manual_seed(0)
    torch.save(rlpips.LPIPS(pnet_rand=True).state_dict(), path)
    return str(path)


@pytest.fixture(scope="session")
def shared():
    """The folder of real weights and photos, which lies beside a checkout."""
    if not SHARED.is_dir():
        assert not os.environ.get("CI"), f"CI needs {SHARED}"
        pytest.skip(f"needs the real weights and photos in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def real_weights(shared, own_cache):
    """Import the real ImageNet weights of AlexNet and VGG16 into the tests' cache."""
    for name in ("alexnet", "vgg16"):
        store.import_file(registry.entry(name), shared / "weights" / f"{name}-imagenet-features.pth")


@pytest.fixture(scope="session")
def real_peers(real_weights, shared):
    """Make our metric and that of `lpips` with the real weights, `real_peers(net)`."""

    @functools.cache
    def make(net, dtype=torch.float32):
        with hushed():
            theirs = lpips.LPIPS(net=net, pnet_rand=True)
        ours = rlpips.LPIPS(net=net)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        return ours.to(dtype), theirs.to(dtype)

    return make


@pytest.fixture
def counting(monkeypatch):
    """A module `counting` with metrics that count their calls, for `--weights counting:metric`."""
    module = Counting()
    monkeypatch.setitem(sys.modules, "counting", module)
    return module


@pytest.fixture
def open_folder():
    """A folder that every user may enter and write."""
    with open_to_all() as folder:
        yield folder


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["worst"] = {str(dtype): worst for dtype, worst in WORST.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for dtype, worst in getattr(node, "workeroutput", {}).get("worst", {}).items():
        WORST[dtype] = max(WORST.get(dtype, 0), worst)


def pytest_terminal_summary(terminalreporter):
    for dtype, worst in WORST.items():
        terminalreporter.write_line(f"largest difference to lpips 0.1.4 in {dtype}: {worst:.2g}")
