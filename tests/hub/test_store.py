import dataclasses
import hashlib
import io
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import safetensors.torch
import torch
import torchvision
from peers import images
from server import Server
from users import as_nobody, needs_root

import rlpips
from rlpips.errors import CheckpointError, WeightsUnavailableError
from rlpips.hub import checkpoints, downloads, registry, store
from rlpips.hub.digests import tensors_digest
from rlpips.hub.tensorfiles import load_tensors, read_metadata
from rlpips.system import shared_folders


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_BACK_OFF", 0.01)
    monkeypatch.delenv("RLPIPS_OFFLINE")
    monkeypatch.setenv("RLPIPS_HOME", str(tmp_path / "new" / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "new" / "home"


def saved(obj):
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def alexnet_file():
    """A file such as torchvision publishes, with its classifier, and the convolutions in it."""
    torch.manual_seed(5)
    features = torchvision.models.alexnet(weights=None).features.state_dict(prefix="features.")
    return saved({**features, "classifier.1.weight": torch.zeros(4096, 1000)}), features


@pytest.fixture(scope="module")
def r_lpips_file():
    """A file such as R-LPIPS publishes: with dropout, without the constants of the scaling layer."""
    torch.manual_seed(6)
    metric = rlpips.LPIPS(pnet_rand=True)
    return saved({k: v for k, v in metric.state_dict().items() if not k.startswith("scaling_layer")}), metric


@pytest.fixture
def serve(monkeypatch):
    """Serve content as the file of a registered checkpoint: `serve(name, content, ways)`."""
    running = []

    def start(name, content, ways=("good",), **changes):
        server = Server(content).__enter__()
        running.append(server)
        entry = registry.entry(name)
        if entry.digest.startswith("git"):
            digest = "git-blob-sha1:" + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        else:
            digest = "sha256:" + hashlib.sha256(content).hexdigest()
        file = urlsplit(entry.urls[0]).path[1:]
        own = digest.partition(":")[2][:8]  # torchvision's names end in the first digits of the file's digest
        named = {text: re.sub(r"-[0-9a-f]{8}(?=\.pth$)", f"-{own}", text) for text in (file, entry.file)}
        urls = tuple(server.url(way, named[file]) for way in ways)
        changes = {"file": named[entry.file], "digest": digest, "size": len(content), **changes}
        entry = dataclasses.replace(entry, urls=urls, **changes)
        monkeypatch.setitem(registry.list_weights(), name, entry)
        return server, entry

    yield start
    for server in running:
        server.__exit__()


def distance(metric):
    with torch.no_grad():
        return metric(images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1))


@pytest.mark.parametrize("pinned", [True, False])
def test_a_backbone_is_fetched_on_first_use_and_only_its_convolutions_are_kept(
    serve, alexnet_file, empty_home, pinned
):
    content, features = alexnet_file
    tensors = tensors_digest(features) if pinned else None
    server, entry = serve("alexnet", content, ["missing", "cut"], tensors=tensors)
    assert not server.requests
    assert not empty_home.exists()
    metric = rlpips.LPIPS()
    assert torch.equal(metric.net.slice5[0].weight, features["features.10.weight"])
    asked = len(server.requests)
    assert asked >= 2
    (kept,) = empty_home.glob("*.safetensors")
    assert kept == store.path_of(entry)
    assert kept.stat().st_size < 9.95e6 < len(content)
    assert not list(empty_home.glob("*.part"))
    assert torch.equal(distance(rlpips.LPIPS()), distance(metric))
    assert len(server.requests) == asked


def test_r_lpips_checkpoints_are_fetched_and_bring_everything(serve, r_lpips_file, empty_home):
    content, source = r_lpips_file
    server, _ = serve("r-lpips-alex-linf-x0", content)
    metric = rlpips.LPIPS(weights="r-lpips-alex-linf-x0")
    assert torch.equal(distance(metric), distance(source))
    assert len(server.requests) == 1


FETCHED = [name for name, entry in rlpips.list_weights().items() if entry.urls]


@pytest.fixture
def published(r_lpips_file, request):
    """Return what stands for the published file of a checkpoint: `published(name)`."""

    def content(name):
        entry = registry.entry(name)
        if entry.kind == "metric":
            return r_lpips_file[0]
        if entry.tensors is None:
            torch.manual_seed(1)
            return saved(getattr(torchvision.models, name)(weights=None).state_dict())
        return (request.getfixturevalue("shared") / "weights" / f"{name}-imagenet-features.pth").read_bytes()

    return content


def build(name):
    entry = registry.entry(name)
    return rlpips.LPIPS(net=entry.net, weights=name if entry.kind == "metric" else "standard")


@pytest.mark.parametrize("name", FETCHED)
def test_the_name_that_is_kept_is_not_that_of_the_file_at_its_source(name):
    entry = registry.entry(name)
    if entry.kind == "backbone":
        assert entry.file.endswith(f"-{entry.digest[7:15]}.pth")  # as the served ones of these tests
    assert store.path_of(entry).name != entry.file


@pytest.mark.parametrize("name", FETCHED)
def test_every_registered_file_is_fetched_once_and_kept(serve, published, empty_home, name):
    server, entry = serve(name, published(name))
    assert {entry.file} == {Path(urlsplit(url).path).name for url in entry.urls}
    first = build(name).state_dict()
    assert len(server.requests) == 1
    second = build(name).state_dict()
    assert len(server.requests) == 1
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert {path.name for path in empty_home.iterdir()} == {store.path_of(entry).name, f"{name}.lock"}
    store.verify(entry)


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1"])
def test_torchvisions_file_in_the_cache_s_folder_stays_as_it_is(
    serve, published, tmp_path, monkeypatch, name
):
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setenv("RLPIPS_HOME", str(folder))
    content = published(name)
    server, entry = serve(name, content)
    (folder / entry.file).write_bytes(content)
    build(name)
    store.import_file(entry, folder / entry.file)
    build(name)
    assert (folder / entry.file).read_bytes() == content
    assert not server.requests


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1"])
def test_a_file_whose_convolutions_could_not_be_kept_is_not_fetched_again(
    serve, published, empty_home, monkeypatch, name
):
    server, _ = serve(name, published(name))
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save", lambda *_: Path("/dev/full").write_text("x"))
        with pytest.raises(WeightsUnavailableError, match="No space left"):
            build(name)
    monkeypatch.setenv("RLPIPS_OFFLINE", "1")
    build(name)
    monkeypatch.delenv("RLPIPS_OFFLINE")
    assert len(server.requests) == 1
    assert len(list(empty_home.iterdir())) == 2  # the lock, and what is kept


def test_what_is_left_of_a_file_is_used_only_if_it_is_the_file(serve, published, empty_home):
    server, entry = serve("squeezenet1_1", published("squeezenet1_1"))
    empty_home.mkdir(parents=True)
    store._original(entry).write_bytes(b"something else")
    build("squeezenet1_1")
    assert len(server.requests) == 1
    assert len(list(empty_home.iterdir())) == 2


def test_what_earlier_processes_left_is_removed_once_it_is_old(serve, alexnet_file, empty_home):
    content, features = alexnet_file
    _, entry = serve("alexnet", content, tensors=tensors_digest(features))
    kept = store.ensure(entry).name
    left = [f".{kept}.new.x7f", f"{kept}.new", f"{kept}.fetched", f"{kept}.fetched.part"]
    for name in left:
        (empty_home / name).write_bytes(b"left")
    store.ensure(entry)
    assert all((empty_home / name).exists() for name in left)
    for path in empty_home.iterdir():
        os.utime(path, (time.time() - shared_folders.ABANDONED - 60,) * 2)
    store.ensure(entry)
    assert {path.name for path in empty_home.iterdir()} == {kept, "alexnet.lock"}


@pytest.mark.parametrize("way", ["fetched", "imported"])
@pytest.mark.parametrize("name", ["squeezenet1_1", "r-lpips-alex-linf-x0"])
def test_kept_files_are_for_all_who_may_read_the_folder(serve, published, empty_home, tmp_path, name, way):
    _, entry = serve(name, published(name))
    (tmp_path / "brought.pth").write_bytes(published(name))
    empty_home.mkdir(mode=0o755, parents=True)
    umask = os.umask(0o077)
    try:
        path = store.ensure(entry) if way == "fetched" else store.import_file(entry, tmp_path / "brought.pth")
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o644


@needs_root
def test_another_user_s_cache_is_read_or_the_error_says_why_not(serve, published, monkeypatch, open_folder):
    _, entry = serve("squeezenet1_1", published("squeezenet1_1"))
    content = store.ensure(entry).read_bytes()
    build("squeezenet1_1")
    name = store.path_of(entry).name

    def home(mode):
        folder = open_folder / mode
        folder.mkdir()
        (folder / name).write_bytes(content)
        monkeypatch.setenv("RLPIPS_HOME", str(folder))
        return folder

    home("read-only").chmod(0o555)
    with as_nobody():
        build("squeezenet1_1")
    assert [path.name for path in (open_folder / "read-only").iterdir()] == [name]
    file = home("unreadable") / name
    file.chmod(0o600)
    with as_nobody(), pytest.raises(WeightsUnavailableError) as caught:
        build("squeezenet1_1")
    assert str(caught.value) == (
        f"the weights 'squeezenet1_1' cannot be read: permission denied for {file} (it belongs to root); "
        "let its owner run 'chmod a+r', or set RLPIPS_HOME to a folder of your own"
    )
    home("closed").chmod(0o700)
    with as_nobody(), pytest.raises(WeightsUnavailableError, match=f"(?i)permission denied.*{open_folder}"):
        build("squeezenet1_1")


def test_nothing_is_fetched_that_a_local_file_provides(serve, alexnet_file, r_lpips_file, tmp_path):
    server, _ = serve("alexnet", alexnet_file[0], tensors=tensors_digest(alexnet_file[1]))
    (tmp_path / "metric.pth").write_bytes(r_lpips_file[0])
    rlpips.LPIPS(weights=tmp_path / "metric.pth")
    rlpips.LPIPS(pnet_rand=True)
    assert not server.requests


@pytest.mark.parametrize("pinned", [True, False])
def test_torchvisions_own_file_is_used_where_it_lies(serve, alexnet_file, empty_home, pinned):
    content, features = alexnet_file
    server, entry = serve("alexnet", content, tensors=tensors_digest(features) if pinned else None)
    path = Path(torch.hub.get_dir()) / "checkpoints" / entry.file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    metric = rlpips.LPIPS()
    assert torch.equal(metric.net.slice5[0].weight, features["features.10.weight"])
    assert store.path_of(entry) == path
    assert not server.requests
    assert not empty_home.exists()
    path.write_bytes(saved({key: value + 1 for key, value in features.items()}))
    with pytest.raises(CheckpointError, match=f"{entry.file} is not the checkpoint 'alexnet'"):
        rlpips.LPIPS()


def test_eight_processes_that_start_at_once_fetch_once(serve, alexnet_file):
    server, entry = serve("alexnet", alexnet_file[0], ["slow"], tensors=tensors_digest(alexnet_file[1]))
    script = (
        "import sys, time\n"
        "from rlpips.hub import store\n"
        "from rlpips.hub import WeightsEntry\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        f"entry = {entry!r}\n"
        "store.ensure(entry)\n"
        "store.verify(entry)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rlpips.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    ranks = [subprocess.Popen(command, **pipes) for _ in range(8)]
    try:
        for rank in ranks:
            assert rank.stdout.readline() == "ready\n"
        for rank in ranks:
            rank.stdin.write("go\n")
            rank.stdin.flush()
        assert [rank.wait(60) for rank in ranks] == [0] * 8
    finally:
        for rank in ranks:
            rank.kill()
    assert len(server.requests) == 1


@pytest.mark.parametrize("offline", [True, False])
def test_when_weights_cannot_be_had_the_error_says_what_to_do(
    serve, alexnet_file, empty_home, offline, monkeypatch
):
    server, entry = serve("alexnet", alexnet_file[0], ["missing", "page"])
    if offline:
        monkeypatch.setenv("RLPIPS_OFFLINE", "1")
    with pytest.raises(WeightsUnavailableError) as caught:
        rlpips.LPIPS()
    message = str(caught.value)
    assert "'alexnet'" in message
    assert all(url in message for url in entry.urls)
    assert str(store.path_of(entry)) in message
    assert "rlpips weights import alexnet FILE" in message
    assert ("RLPIPS_OFFLINE" if offline else "404") in message
    assert bool(server.requests) != offline
    assert not list(empty_home.glob("*.safetensors"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")  # noqa: PTH110
def test_a_full_disk_is_reported_as_such(serve, alexnet_file, monkeypatch):
    serve("alexnet", alexnet_file[0])
    monkeypatch.setattr(os, "fsync", lambda handle: Path("/dev/full").write_text("x"))
    with pytest.raises(WeightsUnavailableError, match="the disk is full"):
        rlpips.LPIPS()


def test_a_cache_that_cannot_be_made_is_reported(serve, alexnet_file, tmp_path, monkeypatch):
    serve("alexnet", alexnet_file[0])
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("RLPIPS_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(WeightsUnavailableError, match="Not a directory|File exists"):
        rlpips.LPIPS()


@pytest.mark.parametrize("kind", ["features", "torchvision", "lpips", "module", "safetensors"])
def test_a_backbone_is_imported_from_any_file_with_its_tensors(alexnet_file, tmp_path, monkeypatch, kind):
    content, features = alexnet_file
    entry = dataclasses.replace(registry.entry("alexnet"), tensors=tensors_digest(features))
    monkeypatch.setitem(registry.list_weights(), "alexnet", entry)
    monkeypatch.setenv("RLPIPS_OFFLINE", "1")
    path = tmp_path / "brought.pth"
    if kind == "torchvision":
        path.write_bytes(content)
    elif kind == "safetensors":
        safetensors.torch.save_file(features, path)
    elif kind == "lpips":
        metric = rlpips.LPIPS(pnet_rand=True)
        metric.net.load_features(features)
        torch.save(metric.state_dict(), path)
    else:
        torch.save(
            {("module." if kind == "module" else "") + key: value for key, value in features.items()}, path
        )
    assert store.import_file(entry, path) == store.path_of(entry)
    assert torch.equal(rlpips.LPIPS().net.slice1[0].bias, features["features.0.bias"])


def test_other_tensors_are_not_imported(tmp_path, empty_home):
    torch.save(torchvision.models.alexnet().features.state_dict(prefix="features."), tmp_path / "other.pth")
    torch.save(rlpips.BCERankingLoss().state_dict(), tmp_path / "wrong.pth")
    for name, file in (
        ("alexnet", "other.pth"),
        ("alexnet", "wrong.pth"),
        ("vgg16", "other.pth"),
        ("r-lpips-alex-linf-x0", "other.pth"),
    ):
        with pytest.raises(CheckpointError, match=f"{file}.* Bring another copy"):
            store.import_file(registry.entry(name), tmp_path / file)
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        store.import_file(registry.entry("alexnet"), tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        store.import_file(registry.entry("r-lpips-alex-linf-x0"), tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="ships with rlpips"):
        store.import_file(registry.entry("lpips-alex-v0.1"), tmp_path / "other.pth")
    assert not empty_home.exists()


def test_a_backbone_whose_tensors_are_not_pinned_moves_between_machines(serve, tmp_path, monkeypatch):
    torch.manual_seed(1)
    content = saved(torchvision.models.squeezenet1_1(weights=None).state_dict())
    _, entry = serve("squeezenet1_1", content)
    copy = tmp_path / "copy.pth"
    copy.write_bytes(store.ensure(entry).read_bytes())
    monkeypatch.setenv("RLPIPS_HOME", str(tmp_path / "elsewhere"))
    store.import_file(entry, copy)
    store.verify(entry)
    (tmp_path / "published.pth").write_bytes(content)
    store.import_file(entry, tmp_path / "published.pth")
    store.verify(entry)
    state, metadata = load_tensors(copy), read_metadata(copy)
    state["features.0.bias"] += 1
    checkpoints.save(copy, state, metadata)
    with pytest.raises(CheckpointError, match="copy.pth"):
        store.import_file(entry, copy)


@pytest.mark.parametrize("name", ["alexnet", "r-lpips-alex-linf-x0"])
def test_damage_in_the_cache_is_found(serve, alexnet_file, r_lpips_file, name):
    content = (alexnet_file if name == "alexnet" else r_lpips_file)[0]
    _, entry = serve(name, content, tensors=tensors_digest(alexnet_file[1]) if name == "alexnet" else None)
    path = store.ensure(entry)
    store.verify(entry)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=f"{path}.* Delete it to download it again"):
        store.verify(entry)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=f"{path}.* Delete it to download it again"):
        rlpips.LPIPS(weights=name if name != "alexnet" else "standard")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        store.verify(entry)


def test_the_cache_lies_beside_torch_hubs(monkeypatch, tmp_path):
    monkeypatch.delenv("RLPIPS_HOME")
    assert store.cache_folder() == tmp_path / "torch" / "rlpips"
    monkeypatch.setenv("RLPIPS_HOME", "~/weights")
    assert store.cache_folder() == Path.home() / "weights"


def test_the_folder_of_a_run_stands_for_its_metric(r_lpips_file, tmp_path):
    content, metric = r_lpips_file
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    for weights in (run, str(run)):
        with pytest.raises(
            FileNotFoundError, match=f"{run} holds no metric.safetensors: the run has not finished"
        ):
            rlpips.LPIPS(weights=weights)
    (run / "metric.safetensors").write_bytes(content)
    for weights in (run, str(run), run / "metric.safetensors"):
        assert torch.equal(distance(rlpips.LPIPS(weights=weights)), distance(metric))


def test_names_are_compared_by_their_letters():
    """The shell's arguments are other strings than those in the code."""
    metric = rlpips.LPIPS(weights="".join("robust"))
    assert torch.equal(metric.lin0.channel_weights, rlpips.LPIPS(weights="robust").lin0.channel_weights)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("alexnet", "alexnet-16f46804.safetensors"),
        ("squeezenet1_1", "squeezenet1_1-b8a52dc0.safetensors"),
        ("r-lpips-alex-linf-x0", "r-lpips-alex-linf-x0-f1435696.pth"),
    ],
)
def test_kept_files_have_names_that_stay(empty_home, name, file):
    assert store.path_of(registry.entry(name)) == empty_home / file


@pytest.mark.parametrize(("value", "expected"), [("", False), ("0", False), ("1", True), ("yes", True)])
def test_offline(monkeypatch, value, expected):
    monkeypatch.setenv("RLPIPS_OFFLINE", value)
    assert downloads.offline() is expected


def test_fetching_is_logged(serve, alexnet_file, caplog):
    serve("alexnet", alexnet_file[0], tensors=tensors_digest(alexnet_file[1]))
    with caplog.at_level(logging.INFO, logger="rlpips"):
        rlpips.LPIPS()
    assert "downloading alexnet from http://127.0.0.1" in caplog.text


def test_the_pinned_digests_are_those_of_the_real_weights(shared):
    for name in ("alexnet", "vgg16"):
        path = shared / "weights" / f"{name}-imagenet-features.pth"
        assert tensors_digest(load_tensors(path)) == registry.entry(name).tensors
