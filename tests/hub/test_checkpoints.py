import json
import os
import pickle
import re
import sys
import warnings
import zipfile
from pathlib import Path

import lpips
import pytest
import safetensors.torch
import torch
import torchvision
from peers import hushed, images, published

import rlpips
from rlpips.backbones import ARCHITECTURES
from rlpips.errors import CheckpointError
from rlpips.hub import checkpoints
from rlpips.hub.digests import tensors_digest
from rlpips.hub.tensorfiles import load_tensors, read_metadata


@pytest.fixture(scope="module")
def peer():
    """A metric of lpips with a random backbone and heads that differ from the published ones."""
    with hushed():
        theirs = lpips.LPIPS(pnet_rand=True)
    with torch.no_grad():
        for k, lin in enumerate(theirs.lins):
            lin.model[1].weight.mul_(0.5 + 0.1 * k)
    return theirs


def distance(metric):
    with torch.no_grad():
        return metric(images(2, 3, 64, 64), images(2, 3, 64, 64, seed=1))


@pytest.mark.parametrize("kind", ["full", "module", "no scaling", "no dropout", "half", "own", "cuda"])
def test_full_state_dicts_load_and_fetch_nothing(peer, tmp_path, kind):
    state = peer.state_dict()
    path = tmp_path / "metric.pth"
    if kind == "module":
        state = {f"module.{key}": value for key, value in state.items()}
    elif kind in ("no scaling", "cuda"):  # as R-LPIPS saves it
        state = {key: value for key, value in state.items() if not key.startswith("scaling")}
    elif kind == "no dropout":
        state = {key.replace("model.1.", "model.0."): value for key, value in state.items()}
    elif kind == "half":
        state = {key: value.half() for key, value in state.items()}
    if kind == "own":
        checkpoints.save(path, state, {"net": "alex", "version": "0.1", "made": "by a test"})
    else:
        torch.save(state, path)
    if kind == "cuda":
        saved_from_cuda(path)
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path, weights_only=True)
    for metric in (
        rlpips.LPIPS(weights=path),
        rlpips.LPIPS(weights=str(path)),
        rlpips.LPIPS(model_path=path),
    ):
        assert torch.allclose(distance(metric), distance(peer), atol=1e-3 if kind == "half" else 1e-6)
        assert not any(p.requires_grad for p in metric.parameters())


def saved_from_cuda(path):
    """Turn a file's storages into ones that were saved from a CUDA device."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if name.endswith("data.pkl"):
                # every storage's location is the unicode string 'cpu', memoised once
                assert data.count(b"X\x03\x00\x00\x00cpu") == 1
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            archive.writestr(name, data)


def test_a_full_state_dict_wins_over_pnet_rand(peer, tmp_path):
    torch.save(peer.state_dict(), tmp_path / "metric.pth")
    assert torch.allclose(
        distance(rlpips.LPIPS(pnet_rand=True, weights=tmp_path / "metric.pth")), distance(peer)
    )


def test_heads_load_over_any_backbone(tmp_path):
    metric = rlpips.LPIPS(pnet_rand=True, model_path=published(version="0.0"))
    expected = torch.load(published(version="0.0"), map_location="cpu", weights_only=True)
    assert torch.equal(metric.lin3.channel_weights, expected["lin3.model.1.weight"])
    again = rlpips.LPIPS(pnet_rand=True, pretrained=False, model_path=published(version="0.0"))
    assert torch.equal(again.lin3.channel_weights, expected["lin3.model.1.weight"])


@pytest.mark.parametrize(
    ("net", "model"), [("alex", "alexnet"), ("vgg", "vgg16"), ("squeeze", "squeezenet1_1")], ids=str
)
def test_torchvision_models_bring_the_backbone(net, model, tmp_path):
    torch.manual_seed(3)
    source = getattr(torchvision.models, model)(weights=None)
    torch.save(source.state_dict(), tmp_path / "model.pth")
    metric = rlpips.LPIPS(net=net, weights=tmp_path / "model.pth")
    state = source.state_dict()
    for key, value in metric.net.state_dict().items():
        assert torch.equal(value, state["features." + key.split(".", 1)[1]])
    heads = torch.load(published(net), map_location="cpu", weights_only=True)
    assert torch.equal(metric.lin0.channel_weights, heads["lin0.model.1.weight"])
    features = {key: value for key, value in state.items() if key.startswith("features")}
    torch.save(features, tmp_path / "features.pth")
    assert torch.equal(
        distance(rlpips.LPIPS(net=net, weights=tmp_path / "features.pth", lpips=False)),
        distance(rlpips.LPIPS(net=net, weights=tmp_path / "model.pth", lpips=False)),
    )


def test_own_files_carry_their_metadata_and_are_held_to_it(peer, tmp_path):
    path = tmp_path / "metric.pth"
    metadata = {"version": "0.0", "recipe": {"eps": 4 / 255}}
    checkpoints.save(path, peer.state_dict(), metadata)
    assert checkpoints.read(path, ARCHITECTURES["alex"]).metadata == metadata
    with pytest.raises(ValueError, match="is for version='0.0', not '0.1'"):
        rlpips.LPIPS(weights=path)


def changed(state, **changes):
    state = dict(state)
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: changed(s, net__slice2__3__bias=None), "missing: features.3.bias"),
        (lambda s: changed(s, lin2__model__1__weight=None, lins__2__model__1__weight=None), "missing: lin2"),
        (lambda s: changed(s, extra__weight=torch.ones(1)), "unknown: extra.weight"),
        (lambda s: changed(s, net__slice7__3__bias=torch.ones(192)), "unknown: net.slice7.3.bias"),
        (lambda s: changed(s, net__slice1__0__bias=torch.ones(65)), r"features.0.bias has shape \(65,\), not \(64,\)"),
        (lambda s: changed(s, lin0__model__1__weight=torch.zeros(1, 64, 1, 1)), "lin0 and lins.0 differ"),
        (lambda s: changed(s, scaling_layer__shift=torch.ones(1, 3, 1, 1)), "scaling_layer.shift is not LPIPS'"),
        (lambda s: changed(s, net__slice1__0__bias=torch.full((64,), torch.nan)), "features.0.bias is not finite"),
        (lambda s: changed(s, net__slice1__0__bias=torch.zeros(64, dtype=torch.int32)), "is not finite floating point"),
        (lambda s: {}, "an empty state dict"),
        (lambda s: {"state_dict": dict(s)}, "training checkpoint, whose weights are under 'state_dict'"),
        (lambda s: {"state": {}, "param_groups": []}, "the state of an optimizer"),
        (lambda s: {"epoch": 3}, "a dictionary with 'epoch'$"),
        (lambda s: [1, 2], "a bare list"),
        (lambda s: torch.ones(3), "a bare Tensor"),
        (lambda s: torchvision.models.resnet18().state_dict(), "it looks like a ResNet"),
        (lambda s: torchvision.models.vgg16().features.state_dict(prefix="features."), "torchvision's weights for net='vgg'"),
        (lambda s: torchvision.models.vgg11().features.state_dict(prefix="features."), "torchvision model of another arch"),
        (lambda s: rlpips.LPIPS(net="squeeze", pnet_rand=True).state_dict(), "an LPIPS state dict for net='squeeze'"),
        (lambda s: torch.load(published("vgg"), map_location="cpu"), "LPIPS heads for net='vgg'"),
        (lambda s: rlpips.Dist2LogitLayer().state_dict(), "ranking network"),
        (lambda s: torch.nn.Linear(2, 2).state_dict(), "something else. unknown: weight, bias"),
        (lambda s: {"model.0.weight": torch.ones(8, 16, 3, 3)}, "something else. unknown: model.0.weight"),
        (lambda s: {f"key{k}": 1 for k in range(8)}, "a dictionary with 'key0', .*'key7'$"),
        (lambda s: {f"key{k}": 1 for k in range(20)}, "a dictionary with 'key0', .*'key7' and 12 more$"),
        (lambda s: {"lin0.model.1.weight": torch.ones(1, 7, 1, 1)}, "LPIPS heads for another backbone"),
        (lambda s: {f"features.{k}": v for k, v in torchvision.models.alexnet().features[:5].state_dict().items()},
         "a torchvision model of another architecture"),  # less than half of the backbone
        (lambda s: {f"module.{k}" if "lin0" in k else k: v for k, v in s.items()}, "unknown: module.lin0.model.1.weight"),
        (lambda s: changed(s, lin0__model__1__weight=torch.ones(3).to_sparse()),
         "'lin0.model.1.weight' is not a plain tensor, but torch._utils._rebuild_sparse_tensor"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_and_described(peer, tmp_path, make, message):
    path = tmp_path / "wrong.pth"
    with hushed():
        torch.save(make(peer.state_dict()), path)
    with pytest.raises(CheckpointError, match=message) as caught:
        rlpips.LPIPS(weights=path)
    assert str(path) in str(caught.value)


def test_lpips_ignores_a_torchvision_file_given_as_model_path_silently(tmp_path):
    """What this package takes as a backbone, and any other network as an error, lpips loads nothing of."""
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet.pth")
    with hushed():
        lpips.LPIPS(pnet_rand=True, model_path=str(tmp_path / "resnet.pth"))
    with pytest.raises(CheckpointError):
        rlpips.LPIPS(pnet_rand=True, model_path=str(tmp_path / "resnet.pth"))


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path(Hostile.target),))


def test_code_in_a_file_is_never_run(tmp_path):
    Hostile.target = str(tmp_path / "run")
    for name, write in (("torch", torch.save), ("pickle", lambda o, p: Path(p).write_bytes(pickle.dumps(o)))):
        path = tmp_path / f"{name}.pth"
        write({"lin0.model.1.weight": Hostile()}, path)
        with pytest.raises(CheckpointError, match="was not loaded: .*could run code"):
            rlpips.LPIPS(pnet_rand=True, weights=path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cut", [0, 1, 100, 5000, -1, -2000])
def test_truncated_files_are_refused(peer, tmp_path, cut):
    path = tmp_path / "metric.pth"
    torch.save(peer.state_dict(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="metric.pth"):
        rlpips.LPIPS(weights=path)


def test_text_and_folders_are_refused(tmp_path):
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"page\.pth .* not a PyTorch or safetensors file"):
        rlpips.LPIPS(pnet_rand=True, weights=tmp_path / "page.pth")
    with pytest.raises(
        FileNotFoundError, match=r"holds no metric\.safetensors: it is not the folder of a run"
    ):
        rlpips.LPIPS(pnet_rand=True, weights=tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*nothing.pth"):
        rlpips.LPIPS(pnet_rand=True, model_path=tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="neither a file nor a name"):
        rlpips.LPIPS(pnet_rand=True, weights="nothing.pth")


def test_loading_says_nothing(peer, tmp_path, capsys):
    torch.save(peer.state_dict(), tmp_path / "metric.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rlpips.LPIPS(weights=tmp_path / "metric.pth")
    assert capsys.readouterr() == ("", "")


def test_tensor_digests_name_the_numbers_not_the_file():
    state = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
    digest = tensors_digest(state)
    assert digest == tensors_digest(dict(reversed(state.items())))
    assert digest == tensors_digest({"b": torch.arange(3.0), "a": torch.ones(2, 4)[:, ::2]})
    for other in (
        {**state, "a": torch.ones(4, 1)},
        {**state, "a": torch.ones(2, 2).double()},
        {**state, "a": torch.tensor([[1.0, 1.0], [1.0, 1.0000001]])},
        {"b": state["b"], "c": state["a"]},
    ):
        assert tensors_digest(other) != digest


def test_every_flipped_bit_of_an_archives_members_is_noticed(tmp_path):
    """Where bytes carry no meaning, such as padding, the numbers are the same."""
    path = tmp_path / "heads.pth"
    state = torch.load(published(), map_location="cpu", weights_only=True)
    torch.save(state, path)
    good = path.read_bytes()
    refused = 0
    for place in range(0, len(good), 19):
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        try:
            contents = checkpoints.read(path, ARCHITECTURES["alex"])
        except CheckpointError:
            refused += 1
        else:
            assert all(map(torch.equal, contents.heads, state.values()))
    assert refused > len(good) / 19 / 2


def with_header(data, change):
    """Return a safetensors file with another header: `change` gets the JSON and returns what replaces it."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


@pytest.mark.parametrize("part", ["a weight", "the version", "a word of the metadata", "no digest", "a name"])
def test_own_files_are_held_to_the_digest_in_them(tmp_path, part):
    path = tmp_path / "metric.safetensors"
    heads = torch.load(published(), map_location="cpu", weights_only=True)
    checkpoints.save(path, heads, {"version": "0.1", "made": "by a test"})
    assert len(checkpoints.read(path, ARCHITECTURES["alex"]).heads) == 5

    def change(header):
        own = header["__metadata__"]["rlpips"]
        if part == "the version":
            own = own.replace('"0.1"', '"0.0"')
        elif part == "a word of the metadata":
            own = own.replace("by a test", "by a pest")
        elif part == "no digest":
            own = own.replace("digest", "tsegid")
        elif part == "a name":  # heads with and without the place of dropout are the same
            header["lin0.model.0.weight"] = header.pop("lin0.model.1.weight")
        header["__metadata__"]["rlpips"] = own
        return header

    data = with_header(path.read_bytes(), change)
    if part == "a weight":
        data = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    path.write_bytes(data)
    for read in (load_tensors, read_metadata, lambda p: checkpoints.read(p, ARCHITECTURES["alex"])):
        with pytest.raises(CheckpointError, match=r"metric\.safetensors is damaged: .* digest"):
            read(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_own_files_of_any_precision_load(peer, tmp_path, dtype):
    path = tmp_path / "metric.pth"
    checkpoints.save(path, {key: value.to(dtype) for key, value in peer.state_dict().items()}, {})
    expected = peer.state_dict()["lin0.model.1.weight"].to(dtype).float()
    assert torch.equal(rlpips.LPIPS(weights=path).state_dict()["lin0.model.1.weight"], expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "do not say of which format"),
        ("{", "are not JSON"),
        ("[" * 100_000, "are not JSON"),
        ('{"format": 1, "metadata": [1]}', "are not a JSON object"),
        ('{"format": 99, "metadata": {}}', "of format 99, this version of rlpips reads format 1"),
        ('{"format": true, "metadata": {}}', "do not say of which format"),
        (" " * 5_000_000, r"header claims 500\d{4} bytes"),
        ('{"format": 1, "metadata": {}}', "is damaged: .* digest"),
    ],
    ids=range(8),
)
def test_metadata_that_rlpips_did_not_write_are_refused(tmp_path, text, message):
    path = tmp_path / "metric.safetensors"
    heads = torch.load(published(), map_location="cpu", weights_only=True)
    safetensors.torch.save_file(heads, path, {"rlpips": text})
    with pytest.raises(CheckpointError, match=rf"metric\.safetensors.*{message}"):
        rlpips.LPIPS(pnet_rand=True, weights=path)


def test_metadata_that_cannot_be_read_again_are_not_written(peer, tmp_path):
    path = tmp_path / "metric.safetensors"
    for metadata, error in (({"x": torch.ones(2)}, TypeError), ({"x": "." * 5_000_000}, ValueError)):
        with pytest.raises(error):
            checkpoints.save(path, peer.state_dict(), metadata)
    assert not path.exists()


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


HEADS = {f"lin{k}.model.1.weight": torch.zeros(1, c, 1, 1) for k, c in enumerate((64, 192, 384, 256, 256))}
PLACE = {"dtype": "F32", "shape": [1, 64, 1, 1], "data_offsets": [0, 256]}
HOSTILE = {
    "a header of exabytes": (2**63 - 1).to_bytes(8, "little") + b"{}",
    "a header longer than the file": (1000).to_bytes(8, "little") + b"{}",
    "a header of 100 MB": (10**8).to_bytes(8, "little") + b"{" + bytes(100),
    "no JSON": (8).to_bytes(8, "little") + b"{nothing",
    "nothing": (2).to_bytes(8, "little") + b"{}",
    "overlap": header(a=PLACE, b=PLACE) + bytes(256),
    "a gap": header(a=PLACE, b={**PLACE, "data_offsets": [300, 556]}) + bytes(556),
    "a size that is wrong": header(a={**PLACE, "shape": [1, 65, 1, 1]}) + bytes(256),
    "a size that overflows": header(a={**PLACE, "shape": [2**40, 2**40]}) + bytes(256),
    "backwards": header(a={**PLACE, "data_offsets": [256, 0]}) + bytes(256),
    "negative": header(a={**PLACE, "shape": [-1, -64, 1, 1]}) + bytes(256),
    "outside": header(a={**PLACE, "data_offsets": [0, 2**60]}) + bytes(256),
    "cut": header(a=PLACE) + bytes(255),
    "something behind": header(a=PLACE) + bytes(257),
    "a dtype that nobody knows": header(a={**PLACE, "dtype": "F33"}) + bytes(256),
    "metadata that are no texts": header(__metadata__={"rlpips": {"format": 1}}, a=PLACE) + bytes(256),
    "deep": (100_005).to_bytes(8, "little") + b'{"a":' + b"[" * 100_000,
    "other names": safetensors.torch.save({"weight": torch.ones(3)}),
    "integers": safetensors.torch.save({k: v.int() for k, v in HEADS.items()}),
    "eight bits": header(a={**PLACE, "dtype": "F8_E4M3", "data_offsets": [0, 64]}) + bytes(64),
    "complex": header(a={**PLACE, "dtype": "C64", "data_offsets": [0, 512]}) + bytes(512),
    "another shape": safetensors.torch.save({k: v.flatten() for k, v in HEADS.items()}),
    "one is missing": safetensors.torch.save(dict(list(HEADS.items())[1:])),
    "not finite": safetensors.torch.save({k: v * torch.nan for k, v in HEADS.items()}),
    "negative weights": safetensors.torch.save({k: v - 1 for k, v in HEADS.items()}),
    "a name that steers a terminal": safetensors.torch.save({**HEADS, "\x1b[2J": torch.ones(1)}),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_safetensors_files_are_refused_at_once(tmp_path, data):
    resource = pytest.importorskip("resource")
    path = tmp_path / "hostile.pth"  # the content tells the format
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(CheckpointError, match=r"hostile\.pth") as caught:
        rlpips.LPIPS(pnet_rand=True, weights=path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
    assert after.ru_utime - before.ru_utime < 5
    assert after.ru_maxrss - before.ru_maxrss < 200_000  # kB


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin"])
def test_the_content_of_a_file_tells_its_format(peer, tmp_path, suffix):
    path = tmp_path / f"metric.{suffix}"
    for write in (torch.save, safetensors.torch.save_file):
        write({key: value.clone() for key, value in peer.state_dict().items()}, path)
        found = rlpips.LPIPS(weights=path).state_dict()
        assert all(torch.equal(value, found[key]) for key, value in peer.state_dict().items())


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names that are no text")
def test_a_name_that_is_no_text_is_a_name(peer, tmp_path):
    path = tmp_path / os.fsdecode(b"m\xe9tric.safetensors")
    checkpoints.save(path, peer.state_dict(), {"version": "0.1"})
    assert read_metadata(path) == {"version": "0.1"}
    found = rlpips.LPIPS(weights=path).state_dict()
    assert all(torch.equal(value, found[key]) for key, value in peer.state_dict().items())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"m\\udce9tric\.safetensors"):
        rlpips.LPIPS(weights=path)


def test_own_files_are_what_other_tools_read(peer, tmp_path):
    checkpoints.save(tmp_path / "metric.safetensors", peer.state_dict(), {"version": "0.1"})
    found = safetensors.torch.load_file(tmp_path / "metric.safetensors")
    with hushed():
        theirs = lpips.LPIPS(pnet_rand=True)
    theirs.load_state_dict(found, strict=True)
    assert torch.equal(distance(theirs), distance(peer))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: -w, "lin1 has negative weights, which would make distances negative"),
        (lambda w: torch.where(torch.arange(192).view(w.shape) == 7, -1e-8, w), "lin1 has negative weights"),
        (lambda w: w * torch.nan, "lin1 is not finite in float32"),
        (lambda w: w.double() + 1e300, "lin1 is not finite in float32"),
    ],
)
def test_heads_that_no_metric_can_have_are_refused(peer, tmp_path, make, message):
    heads = {key: value for key, value in peer.state_dict().items() if re.match(r"lin\d", key)}
    heads["lin1.model.1.weight"] = make(heads["lin1.model.1.weight"])
    torch.save(heads, tmp_path / "heads.pth")
    with pytest.raises(CheckpointError, match=rf"heads\.pth .*{message}"):
        rlpips.LPIPS(pnet_rand=True, weights=tmp_path / "heads.pth")


def test_a_backbone_that_overflows_is_refused_and_a_negative_zero_is_none(peer, tmp_path):
    state = peer.state_dict()
    path = tmp_path / "metric.pth"
    torch.save({key: value * -0.0 if key.startswith("lin") else value for key, value in state.items()}, path)
    assert not rlpips.LPIPS(weights=path).lins[0].model[1].weight.any()
    torch.save({**state, "net.slice1.0.bias": state["net.slice1.0.bias"].double() * 1e300}, path)
    with pytest.raises(CheckpointError, match="features.0.bias is not finite in float32"):
        rlpips.LPIPS(weights=path)


ODD = {
    "sparse": lambda w: w.flatten().to_sparse(),
    "quantised": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "float8": lambda w: w.to(torch.float8_e4m3fn),
    "nested": lambda w: torch.nested.nested_tensor([w[0], w[0]]),
    "meta": lambda w: w.to("meta"),
    "complex": lambda w: w.to(torch.complex64),
    "conjugated": lambda w: w.to(torch.complex64).conj(),
    "expanded": lambda w: w[:, :1].expand(1, 10**6, 10**6, 1),
    "expanded to its shape": lambda w: w[:, :1].clone().expand(1, 64, 1, 1),
    "a list": lambda w: w.tolist(),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_are_refused_and_the_file_is_named(tmp_path, kind, zipped):
    heads = torch.load(published(), map_location="cpu", weights_only=True)
    heads["lin0.model.1.weight"] = ODD[kind](heads["lin0.model.1.weight"])
    path = tmp_path / "odd.pth"
    try:
        torch.save(heads, path, _use_new_zipfile_serialization=zipped)
    except (NotImplementedError, AttributeError, RuntimeError):
        pytest.skip(f"torch cannot save this: {kind}")
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        rlpips.LPIPS(pnet_rand=True, weights=path)


@pytest.mark.parametrize(
    "key",
    [
        "9" * 5000,
        f"lin{'9' * 5000}.model.1.weight",
        f"features.{'9' * 5000}.weight",
        f"net.slice1.{'9' * 5000}.weight",
        f"net.slice{'9' * 5000}.0.weight",
        "\x1b[2J\x07",
        "\udc80",
    ],
    ids=range(7),
)
def test_what_a_file_calls_its_tensors_reaches_messages_escaped_and_cut(tmp_path, key):
    heads = torch.load(published(), map_location="cpu", weights_only=True)
    path = tmp_path / "\x1b[31mred.pth"
    for content in (
        {**heads, key: torch.ones(1)},
        {key: torch.ones(1)},
        {key: 1},
        {key: torch.ones(1).to_sparse()},
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError) as caught:
            rlpips.LPIPS(pnet_rand=True, weights=path)
        assert r"\x1b[31mred.pth" in str(caught.value)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 2000 + len(str(path))


def test_shapes_are_compared_before_anything_is_read(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # in a storage
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="it looks like a ResNet"):
        rlpips.LPIPS(weights=path)


def test_a_classifiers_damage_is_none_of_the_backbones(tmp_path):
    path = tmp_path / "model.pth"
    state = torchvision.models.alexnet(weights=None).state_dict()
    torch.save(state, path)
    data = path.read_bytes()
    for key, refused in (("classifier.1.bias", False), ("features.3.bias", True)):
        place = data.index(state[key].numpy().tobytes())
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        if refused:
            with pytest.raises(CheckpointError, match=r"model\.pth .*CRC"):
                checkpoints.read(path, ARCHITECTURES["alex"])
        else:
            assert checkpoints.read(path, ARCHITECTURES["alex"]).backbone.keys() >= {"features.3.bias"}


@pytest.mark.parametrize("version", ["0.0", "0.1"])
@pytest.mark.parametrize("net", ["alex", "vgg", "vgg16", "squeeze"])
def test_a_metric_that_was_saved_is_loaded_again(tmp_path, net, version):
    torch.manual_seed(1)
    metric = rlpips.LPIPS(net=net, version=version, pnet_rand=True, pnet_tune=True, eval_mode=False)
    optimizer = torch.optim.SGD(metric.parameters(), lr=1e-3)
    metric(images(1, 3, 48, 48), images(1, 3, 48, 48, seed=1)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for lin in metric.lins:
            lin.channel_weights.clamp_(min=0)
    path = tmp_path / "mine.safetensors"
    metric.save(path)
    again = rlpips.LPIPS(net=net, version=version, weights=path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in metric.state_dict().items())
    assert torch.equal(distance(again), distance(metric.eval()))
    other = {"0.0": "0.1", "0.1": "0.0"}[version]
    with pytest.raises(ValueError, match=rf"mine\.safetensors is for version='{version}', not '{other}'"):
        rlpips.LPIPS(net=net, version=other, weights=path)
    with pytest.raises(CheckpointError, match=f"it looks like an LPIPS state dict for net='{net[:3]}"):
        rlpips.LPIPS(net="squeeze" if net == "alex" else "alex", version=version, weights=str(path))


def test_a_metric_without_heads_is_saved_as_a_backbone(tmp_path):
    metric = rlpips.LPIPS(lpips=False, pnet_rand=True, version="0.0")
    metric.save(str(tmp_path / "backbone.safetensors"))
    again = rlpips.LPIPS(lpips=False, version="0.0", weights=tmp_path / "backbone.safetensors")
    assert torch.equal(distance(again), distance(metric))
    full = rlpips.LPIPS(weights=tmp_path / "backbone.safetensors")
    heads = torch.load(published(), map_location="cpu", weights_only=True)
    assert torch.equal(full.lin0.channel_weights, heads["lin0.model.1.weight"])


@pytest.mark.parametrize("part", ["whole", "heads", "backbone"])
@pytest.mark.parametrize("form", ["torch", "safetensors", "own"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_files_of_16_bits_load_as_metrics_of_32(peer, tmp_path, dtype, form, part):
    state = {key: value.to(dtype) for key, value in peer.state_dict().items()}
    start = {"whole": "", "heads": "lin", "backbone": "net."}[part]
    state = {key: value for key, value in state.items() if key.startswith(start)}
    path = tmp_path / "short"
    if form == "own":
        checkpoints.save(path, state, {})
    else:
        (torch.save if form == "torch" else safetensors.torch.save_file)(state, path)
    short = rlpips.LPIPS(weights=path, pnet_rand=True)
    assert {value.dtype for value in short.state_dict().values()} == {torch.float32}
    for key, value in state.items():
        if not key.startswith("scaling"):
            assert torch.equal(short.state_dict()[key], value.float())
    torch.save({key: value.float() for key, value in state.items()}, tmp_path / "long")
    if part != "heads":  # the backbone would be random
        assert torch.equal(distance(short), distance(rlpips.LPIPS(weights=tmp_path / "long")))


def test_a_half_precision_metric_is_saved_as_it_is(peer, tmp_path):
    metric = rlpips.LPIPS(pnet_rand=True).half()
    metric.save(tmp_path / "half.safetensors")
    assert load_tensors(tmp_path / "half.safetensors")["net.slice1.0.weight"].dtype == torch.float16
    again = rlpips.LPIPS(weights=tmp_path / "half.safetensors").half()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in metric.state_dict().items())
