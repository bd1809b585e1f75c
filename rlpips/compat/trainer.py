"""`lpips.Trainer`, for scripts that call it, such as PerceptualSimilarity's `train.py`.

New code is better off with `rlpips train`, or `rlpips.training.train`, which resume and attack.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rlpips.compat.names import DSSIM, L2, BCERankingLoss, tensor2im
from rlpips.hub.tensorfiles import load_tensors
from rlpips.metric.lpips import LPIPS
from rlpips.training.optimisation import clamp_heads

logger = logging.getLogger("rlpips")

_SHOWN = 256  # pixels to which pictures are enlarged


class Trainer:
    """Trains or only holds a distance, with the interface of `lpips.Trainer`; `initialize` comes first.

    Attributes:
        net: the distance.
        rankLoss: the loss with its ranking network, in training.
        optimizer_net: Adam, in training.
        save_dir: the folder of `load_network` and `save_done`.
        image_paths: what `get_image_paths` returns.
    """

    net: Any
    rankLoss: BCERankingLoss  # noqa: N815
    optimizer_net: torch.optim.Adam
    loss_total: Tensor
    d0: Tensor
    d1: Tensor
    save_dir: str | PathLike[str] = "."
    image_paths: Sequence[str] = ()

    def name(self) -> str:
        """Return what the model calls itself, such as 'lpips [alex]'."""
        return self.model_name

    def initialize(
        self,
        model: str = "lpips",
        net: str = "alex",
        colorspace: str = "Lab",
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        model_path: str | PathLike[str] | None = None,
        use_gpu: bool = True,
        printNet: bool = False,
        spatial: bool = False,
        is_train: bool = False,
        lr: float = 0.0001,
        beta1: float = 0.5,
        version: str = "0.1",
        gpu_ids: Sequence[int] = (0,),
    ) -> None:
        """Build the distance, and in training its loss and optimizer.

        Args:
            model: 'lpips'; 'baseline', without heads; 'L2' or 'SSIM', which are classical.
            net: the backbone of the first two, 'alex', 'vgg' or 'squeeze'.
            colorspace: of the classical ones, 'Lab' or 'RGB'.
            pnet_rand: a random backbone.
            pnet_tune: train the backbone, too.
            model_path: a checkpoint file.
            use_gpu: compute on CUDA devices.
            printNet: log the network, at level INFO.
            spatial: maps of distances.
            is_train: start with random heads, to train them.
            lr: learning rate of Adam.
            beta1: of Adam.
            version: of LPIPS, '0.1' or '0.0'.
            gpu_ids: which devices; a batch is split over several.

        Raises:
            ValueError: an argument is unknown.
            CheckpointError, WeightsUnavailableError: as from `rlpips.LPIPS`.
        """
        self.use_gpu, self.gpu_ids = use_gpu, list(gpu_ids)
        self.device = torch.device("cuda", self.gpu_ids[0]) if use_gpu else torch.device("cpu")
        self.model, self.is_train, self.spatial = model, is_train, spatial
        self.model_name = f"{model} [{net}]"
        if model == "lpips":
            self.net = LPIPS(
                not is_train,
                net,
                version,
                spatial=spatial,
                pnet_rand=pnet_rand,
                pnet_tune=pnet_tune,
                model_path=model_path,
                eval_mode=False,
            )
        elif model == "baseline":
            self.net = LPIPS(net=net, pnet_rand=pnet_rand, lpips=False)
        elif model in ("L2", "l2"):
            self.net, self.model_name = L2(use_gpu, colorspace), "L2"
        elif model in ("DSSIM", "dssim", "SSIM", "ssim"):
            self.net, self.model_name = DSSIM(use_gpu, colorspace), "SSIM"
        else:
            raise ValueError(f"model={model!r} is unknown; choose 'lpips', 'baseline', 'L2' or 'SSIM'")
        self.net.to(self.device)
        self.parameters = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        if is_train:
            self.rankLoss = BCERankingLoss().to(self.device)
            self.parameters += self.rankLoss.net.parameters()
            self.lr = self.old_lr = lr
            self.optimizer_net = torch.optim.Adam(self.parameters, lr=lr, betas=(beta1, 0.999))
        else:
            self.net.eval()
        if use_gpu and len(self.gpu_ids) > 1:
            self.net = nn.DataParallel(self.net, device_ids=self.gpu_ids)
        if printNet:
            logger.info("%s", nn.Module.__repr__(self._bare))  # with all its parts, as in lpips

    @property
    def _bare(self) -> Any:
        """The distance, without what splits batches."""
        return self.net.module if isinstance(self.net, nn.DataParallel) else self.net

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool = False) -> Any:
        """Measure the distances between two batches `(N, 3, H, W)` in [-1, 1], as the model does."""
        return self.net(in0, in1, retPerLayer=retPerLayer)

    def set_input(self, data: Mapping[str, Any]) -> None:
        """Take a batch: `ref`, `p0` and `p1` `(N, 3, H, W)` in [-1, 1], and N judgements, `judge`."""
        self.input_ref, self.input_p0, self.input_p1, self.input_judge = (
            data[name].to(self.device) for name in ("ref", "p0", "p1", "judge")
        )
        self.var_ref, self.var_p0, self.var_p1 = self.input_ref, self.input_p0, self.input_p1

    def optimize_parameters(self) -> None:
        """Take one step on the batch."""
        self.forward_train()
        self.optimizer_net.zero_grad()
        self.backward_train()
        self.optimizer_net.step()
        self.clamp_weights()

    def forward_train(self) -> Tensor:
        """Measure the batch, and return the loss."""
        self.d0 = self.forward(self.var_ref, self.var_p0)
        self.d1 = self.forward(self.var_ref, self.var_p1)
        self.acc_r = self.compute_accuracy(self.d0, self.d1, self.input_judge)
        self.var_judge = self.input_judge.to(self.d0.dtype).view(self.d0.shape)
        self.loss_total = self.rankLoss(self.d0, self.d1, 2 * self.var_judge - 1)
        return self.loss_total

    def backward_train(self) -> None:
        """Compute the gradients of the loss."""
        self.loss_total.mean().backward()  # type: ignore[no-untyped-call]

    def clamp_weights(self) -> None:
        """Keep the heads from becoming negative.

        Unlike in `lpips`, SqueezeNet's own 1x1 convolutions are left alone.
        """
        if getattr(self._bare, "lpips", False):
            clamp_heads(self._bare)

    def compute_accuracy(self, d0: Tensor, d1: Tensor, judge: Tensor) -> npt.NDArray[Any]:
        """Return the share of judges who chose as the distances do, `(N,)`; ties count for the first."""
        second = (d1 < d0).flatten().cpu().numpy()
        share = judge.flatten().cpu().numpy()
        return np.where(second, share, 1 - share)

    def get_current_errors(self) -> "OrderedDict[str, Any]":
        """Return the loss and the accuracy of the latest batch, `loss_total` and `acc_r`."""
        return OrderedDict(loss_total=np.float32(self.loss_total.item()), acc_r=np.mean(self.acc_r))

    def get_current_visuals(self) -> "OrderedDict[str, npt.NDArray[np.uint8]]":
        """Return the latest batch's first `ref`, `p0` and `p1`, enlarged to a height of 256, as bytes."""
        images = {"ref": self.var_ref, "p0": self.var_p0, "p1": self.var_p1}
        return OrderedDict((name, _enlarged(tensor2im(image))) for name, image in images.items())

    def save(self, path: str | PathLike[str], label: str | int) -> None:
        """Write `PATH/LABEL_net_.pth`, and in training `PATH/LABEL_net_rank.pth` for the ranking network."""
        self.save_network(self._bare, path, "", label)
        if self.is_train:
            self.save_network(self.rankLoss.net, path, "rank", label)

    def save_network(
        self, network: nn.Module, path: str | PathLike[str], network_label: str, epoch_label: str | int
    ) -> None:
        """Write a state dict to `PATH/EPOCH_net_NETWORK.pth`."""
        torch.save(network.state_dict(), Path(path) / f"{epoch_label}_net_{network_label}.pth")

    def load_network(self, network: nn.Module, network_label: str, epoch_label: str | int) -> None:
        """Read what `save_network` wrote to the folder `save_dir`.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is not a PyTorch file, or is damaged.
        """
        path = Path(self.save_dir) / f"{epoch_label}_net_{network_label}.pth"
        logger.info("loading %s", path)
        network.load_state_dict(load_tensors(path))

    def update_learning_rate(self, nepoch_decay: float) -> None:
        """Lower the learning rate by its first value's `nepoch_decay`-th part."""
        lr = self.old_lr - self.lr / nepoch_decay
        for group in self.optimizer_net.param_groups:
            group["lr"] = lr
        logger.info("learning rate: %g -> %g", self.old_lr, lr)
        self.old_lr = lr

    def get_image_paths(self) -> Sequence[str]:
        """Return `image_paths`."""
        return self.image_paths

    def save_done(self, flag: bool = False) -> None:
        """Write a flag to `done_flag.npy` and, as text, to `done_flag` in the folder `save_dir`."""
        path = Path(self.save_dir) / "done_flag"
        np.save(path, flag)
        path.write_text(f"{int(flag)}\n")


def _enlarged(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Repeat pixels of `(H, W, 3)` as SciPy's `zoom` does, whose first and last are those of the image."""
    places = []
    for length in image.shape[:2]:
        count = round(length * _SHOWN / image.shape[0])
        places.append(np.floor(np.linspace(0, length - 1, count) + 0.5).astype(int))
    enlarged: npt.NDArray[Any] = image[np.ix_(*places)]
    return enlarged
