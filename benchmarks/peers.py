"""Metrics of other packages, for the speed benchmarks and for `rlpips evaluate`.

`--weights benchmarks.peers:stlpips_alex` names a metric there.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import rlpips

Metric = Callable[[Tensor, Tensor], Tensor]


def stlpips_alex() -> torch.nn.Module:
    """ST-LPIPS with AlexNet (Ghildyal & Liu 2022): `pip install stlpips_pytorch ipython torchsummary`."""
    return _stlpips("alex")


def stlpips_vgg() -> torch.nn.Module:
    """ST-LPIPS with VGG16."""
    return _stlpips("vgg")


def _stlpips(net: str) -> torch.nn.Module:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from stlpips_pytorch import stlpips

        metric: torch.nn.Module = stlpips.LPIPS(net=net, variant="shift_tolerant")
    return metric


def metrics(net: str, device: str = "cpu") -> dict[str, Metric]:
    """Return every implementation of LPIPS with the same random weights, for images in [-1, 1], ours first.

    `lpips` is second. torchmetrics, piqa and piq (VGG16 only) follow if they are installed.
    """
    import lpips

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net=net, pnet_rand=True).to(device)
    ours = rlpips.LPIPS(net=net, pnet_rand=True).to(device)
    ours.load_state_dict(theirs.state_dict())
    made: dict[str, Metric] = {"rlpips": ours, "lpips": theirs}
    with no_downloads(ours), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(ImportError):
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            kind: Any = net  # one of three literals
            made["torchmetrics"] = LearnedPerceptualImagePatchSimilarity(net_type=kind).net.to(device)
        with contextlib.suppress(ImportError):
            import piqa

            made["piqa"] = _in_unit_range(piqa.LPIPS(network=net, reduction="none").to(device))
        if net == "vgg":
            with contextlib.suppress(ImportError):
                import piq

                made["piq"] = _in_unit_range(piq.LPIPS(reduction="none").to(device))
    x, y = torch.rand(2, 1, 3, 64, 64, device=device) * 2 - 1
    with torch.no_grad():
        expected = ours(x, y)
        for name, metric in made.items():
            if not torch.allclose(metric(x, y).flatten(), expected.flatten(), rtol=1e-3):
                raise RuntimeError(f"{name} measures something else")
    return made


def _in_unit_range(metric: Metric) -> Metric:
    return lambda x, y: metric((x + 1) / 2, (y + 1) / 2)


@contextlib.contextmanager
def no_downloads(metric: rlpips.LPIPS) -> Iterator[None]:
    """Let constructors that would fetch weights find the weights of `metric` instead."""
    import torchvision
    from torchvision.models._api import WeightsEnum

    lins: Iterable[Any] = metric.lins
    heads = [lin.channel_weights.detach().cpu().clone() for lin in lins]

    def fetch(url: str, *_: object, **__: object) -> object:
        return heads if "lpips_weights" in url else dict(enumerate(heads))

    def backbone(self: WeightsEnum, *_: object, **__: object) -> dict[str, Tensor]:
        name = type(self).__name__.removesuffix("_Weights").lower()
        features = {
            "features." + key.split(".", 1)[1]: value.cpu() for key, value in metric.net.state_dict().items()
        }
        return {**torchvision.models.get_model(name).state_dict(), **features}

    with (
        mock.patch("torch.hub.load_state_dict_from_url", fetch),
        mock.patch.object(WeightsEnum, "get_state_dict", backbone),
    ):
        yield
