import copy
from types import SimpleNamespace

import lpips
import numpy as np
import pytest
import torch
from peers import hushed, peers
from toys import Triplets

import rlpips

LOADED = {"pnet_rand": True, "use_gpu": False, "is_train": True, "lr": 1e-3}


def batch(size=32):
    items = Triplets(6, size=size)
    return {key: torch.stack([item[key] for item in items]) for key in ("ref", "p0", "p1", "judge")}


@pytest.fixture
def both():
    """Our trainer and that of lpips with the same weights, without dropout, which have seen a batch."""
    ours, theirs = rlpips.Trainer(), lpips.Trainer()
    ours.initialize(**LOADED)
    with hushed():
        theirs.initialize(**LOADED)
    for trainer in (ours, theirs):
        trainer.net.load_state_dict(peers("alex")[0].state_dict(), strict=True)
        trainer.net.eval()
        trainer.set_input(batch())
    theirs.rankLoss.load_state_dict(ours.rankLoss.state_dict(), strict=True)
    return ours, theirs


def test_steps_are_those_of_lpips(both):
    ours, theirs = both
    for trainer in both:  # in float64, as Adam makes much of the rounding of small gradients
        trainer.net.double()
        trainer.rankLoss.double()
        trainer.set_input({key: value.double() for key, value in batch().items()})
    for _ in range(2):
        for trainer in both:
            trainer.optimize_parameters()
        assert ours.get_current_errors().keys() == theirs.get_current_errors().keys()
        for key, value in theirs.get_current_errors().items():
            assert ours.get_current_errors()[key] == pytest.approx(value, abs=1e-5)
        with hushed():
            for trainer in both:
                trainer.update_learning_rate(5)
        assert ours.old_lr == pytest.approx(theirs.old_lr)
        assert ours.optimizer_net.param_groups[0]["lr"] == theirs.optimizer_net.param_groups[0]["lr"]
    for key, value in theirs.net.state_dict().items():
        torch.testing.assert_close(ours.net.state_dict()[key], value, atol=1e-9, rtol=0)
    assert ours.name() == theirs.name() == "lpips [alex]"


@pytest.mark.parametrize("size", [32, 64, 45])
def test_pictures_are_those_of_lpips(both, size):
    for trainer in both:
        trainer.set_input(batch(size))
    ours, theirs = (trainer.get_current_visuals() for trainer in both)
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value)


def test_files_are_those_of_lpips(both, tmp_path):
    for name, trainer in zip(("ours", "theirs"), both, strict=True):
        (tmp_path / name).mkdir()
        trainer.save(str(tmp_path / name), "latest")
        trainer.save_dir = str(tmp_path / name)
        trainer.save_done(True)
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("ours", "theirs")]
    assert names[0] == names[1] == ["done_flag", "done_flag.npy", "latest_net_.pth", "latest_net_rank.pth"]
    for name in names[0]:
        own, other = tmp_path / "ours" / name, tmp_path / "theirs" / name
        if own.suffix == ".pth":
            assert list(torch.load(own)) == list(torch.load(other))
        else:
            assert own.read_bytes() == other.read_bytes()
    ours, theirs = both
    with torch.no_grad():
        ours.net.lin0.model[-1].weight.zero_()
    ours.load_network(ours.net, "", "latest")
    assert torch.equal(ours.net.lin0.model[-1].weight, theirs.net.lin0.model[-1].weight)
    metric = rlpips.LPIPS(model_path=tmp_path / "ours" / "latest_net_.pth")
    assert torch.equal(metric.lin0.channel_weights, ours.net.lin0.channel_weights)
    ours.image_paths = ["a.png"]
    assert ours.get_image_paths() == ["a.png"]


def test_only_heads_are_kept_from_becoming_negative():
    trainer = rlpips.Trainer()
    trainer.initialize(net="squeeze", **LOADED, pnet_tune=True)
    squeeze = trainer.net.net.slice2[1].squeeze.weight
    before = squeeze.detach().clone()
    assert (before < 0).any()
    assert any((lin.channel_weights < 0).any() for lin in trainer.net.lins)
    trainer.clamp_weights()
    assert torch.equal(squeeze, before)
    assert all((lin.channel_weights >= 0).all() for lin in trainer.net.lins)
    assert squeeze.requires_grad


@pytest.mark.parametrize(
    ("model", "colorspace"), [("lpips", "Lab"), ("baseline", "Lab"), ("L2", "RGB"), ("l2", "Lab")]
)
def test_distances_of_every_model_are_those_of_lpips(model, colorspace):
    arguments = {"model": model, "colorspace": colorspace, "pnet_rand": True, "use_gpu": False}
    ours, theirs = rlpips.Trainer(), lpips.Trainer()
    ours.initialize(**arguments)
    with hushed():
        theirs.initialize(**arguments)
    ours.net.load_state_dict(theirs.net.state_dict(), strict=True)
    a, b = (batch()[key][:1] for key in ("ref", "p0"))
    assert torch.allclose(ours.forward(a, b).detach(), theirs.forward(a, b).detach(), atol=1e-6)
    assert ours.name() == theirs.name()
    assert not ours.net.training


def test_similarity_too():
    trainer = rlpips.Trainer()
    trainer.initialize("SSIM", colorspace="RGB", use_gpu=False)
    ref = batch()["ref"][:1]
    assert trainer.forward(ref, ref).item() == pytest.approx(0, abs=1e-6)
    assert trainer.name() == "SSIM"


def test_nothing_is_printed_and_unknown_models_are_refused(capsys, caplog):
    trainer = rlpips.Trainer()
    with caplog.at_level("INFO", logger="rlpips"):
        trainer.initialize(**LOADED, printNet=True)
    assert "lin0" in caplog.text
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="model='resnet' is unknown; choose 'lpips'"):
        trainer.initialize("resnet")


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_the_authors_own_clamp_takes_the_metric(net):
    ours, theirs = (copy.deepcopy(metric) for metric in peers(net))
    for metric in (ours, theirs):
        with torch.no_grad():
            for lin in metric.lins:
                lin.model[-1].weight.sub_(lin.model[-1].weight.mean())
        lpips.Trainer.clamp_weights(SimpleNamespace(net=metric))
    assert all(lin.channel_weights.min() == 0 for lin in ours.lins)
    for value, expected in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(value, expected)
