import json

from commands import BLURRED, CAT, run

import rlpips
from rlpips.hub import store


def test_weights_that_cannot_be_had_are_explained(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RLPIPS_HOME", str(tmp_path))
    status, _, err = run("distance", CAT, BLURRED, "--net", "squeeze", "--weights", "standard", capsys=capsys)
    assert status == 1
    assert "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth" in err
    assert "rlpips weights import squeezenet1_1 FILE" in err


def test_weights_are_listed(capsys):
    status, out, _ = run("weights", "list", capsys=capsys)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(rlpips.list_weights())
    assert "heads, adversarially, linf on x0+x1" in out
    _, out, _ = run("weights", "list", "--json", capsys=capsys)
    assert json.loads(out)[0]["digest"].startswith("sha256:7be5be79")


def test_weights_are_imported_found_and_verified(shared, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RLPIPS_HOME", str(tmp_path))
    source = shared / "weights" / "alexnet-imagenet-features.pth"
    status, out, _ = run("weights", "import", "alexnet", source, capsys=capsys)
    path = store.path_of(rlpips.list_weights()["alexnet"])
    assert (status, out) == (0, f"{path}\n")
    assert run("weights", "path", "alexnet", capsys=capsys) == (0, f"{path}\n", "")
    assert run("weights", "download", "alexnet", capsys=capsys) == (0, f"{path}\n", "")
    status, out, _ = run("weights", "verify", capsys=capsys)
    assert status == 0
    assert out.splitlines()[0] == "alexnet: OK"
    assert len(out.splitlines()) == 10
    path.write_bytes(path.read_bytes()[:-1000])
    status, out, err = run("weights", "verify", "alexnet", "lpips-vgg-v0.1", capsys=capsys)
    assert (status, out) == (1, "lpips-vgg-v0.1: OK\n")
    assert str(path) in err
    status, _, err = run("weights", "import", "vgg16", source, capsys=capsys)
    assert status == 1
    assert "not a checkpoint for net='vgg'; it looks like torchvision's weights for net='alex'" in err
