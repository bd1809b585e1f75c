"""`lpips.Trainer`, for scripts that call it, such as PerceptualSimilarity's `train.py`.

New code should call `rlpips.training.train` or `rlpips train`, which can resume a run and attack the metric.
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

from rlpips.compat.arrays import tensor2im
from rlpips.compat.modules import DSSIM, L2, BCERankingLoss
from rlpips.hub.tensorfiles import load_tensors
from rlpips.metric.lpips import LPIPS
from rlpips.training.optimisation import clamp_heads

logger = logging.getLogger("rlpips")

_PICTURE_HEIGHT = 256  # pixels


class Trainer:
    """Trains a distance, or only computes it, like `lpips.Trainer`. Call `initialize` first.

    Attributes:
        net: the distance.
        rankLoss: the loss and its ranking network; only for training.
        optimizer_net: Adam; only for training.
        save_dir: the folder that `load_network` reads from and `save_done` writes to.
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
        """Return the name of the model, such as 'lpips [alex]'."""
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
        """Build the distance, and for training its loss and optimizer.

        Args:
            model: 'lpips'; 'baseline', which has no heads; or a classical distance, 'L2' or 'SSIM'.
            net: the backbone of 'lpips' and 'baseline': 'alex', 'vgg' or 'squeeze'.
            colorspace: the colour space of 'L2' and 'SSIM': 'Lab' or 'RGB'.
            pnet_rand: use a random backbone.
            pnet_tune: train the backbone, too.
            model_path: a checkpoint file to load.
            use_gpu: compute on CUDA devices.
            printNet: log the network, at level INFO.
            spatial: return a map of distances instead of one number.
            is_train: start with random heads, and train them.
            lr: learning rate of Adam.
            beta1: beta1 of Adam.
            version: version of LPIPS, '0.1' or '0.0'.
            gpu_ids: the CUDA devices. With several, each batch is split over them.

        Raises:
            ValueError: an argument has an unknown value.
            CheckpointError: `model_path` is not a checkpoint of this network, or is damaged.
            WeightsUnavailableError: weights are not on this machine and cannot be fetched.
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
            logger.info("%s", nn.Module.__repr__(self._bare_net))  # with all its modules, as in lpips

    @property
    def _bare_net(self) -> Any:
        """The distance, without `DataParallel` around it."""
        return self.net.module if isinstance(self.net, nn.DataParallel) else self.net

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool = False) -> Any:
        """Measure the distances between two batches `(N, 3, H, W)` in [-1, 1]."""
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
        """Clamp the weights of the heads at 0, so that distances cannot become negative.

        `lpips` also clamps the 1x1 convolutions of SqueezeNet; this does not.
        """
        if getattr(self._bare_net, "lpips", False):
            clamp_heads(self._bare_net)

    def compute_accuracy(self, d0: Tensor, d1: Tensor, judge: Tensor) -> npt.NDArray[Any]:
        """Return the share of people who chose as the distances do, `(N,)`; a tie chooses the first."""
        second = (d1 < d0).flatten().cpu().numpy()
        share = judge.flatten().cpu().numpy()
        return np.where(second, share, 1 - share)

    def get_current_errors(self) -> "OrderedDict[str, Any]":
        """Return the loss and the accuracy of the latest batch, as `loss_total` and `acc_r`."""
        return OrderedDict(loss_total=np.float32(self.loss_total.item()), acc_r=np.mean(self.acc_r))

    def get_current_visuals(self) -> "OrderedDict[str, npt.NDArray[np.uint8]]":
        """Return the first `ref`, `p0` and `p1` of the latest batch as uint8 arrays of height 256."""
        images = {"ref": self.var_ref, "p0": self.var_p0, "p1": self.var_p1}
        return OrderedDict((name, _enlarged(tensor2im(image))) for name, image in images.items())

    def save(self, path: str | PathLike[str], label: str | int) -> None:
        """Write `PATH/LABEL_net_.pth`, and in training the ranking network, `PATH/LABEL_net_rank.pth`."""
        self.save_network(self._bare_net, path, "", label)
        if self.is_train:
            self.save_network(self.rankLoss.net, path, "rank", label)

    def save_network(
        self, network: nn.Module, path: str | PathLike[str], network_label: str, epoch_label: str | int
    ) -> None:
        """Write a state dict to `PATH/EPOCH_net_NETWORK.pth`."""
        torch.save(network.state_dict(), Path(path) / f"{epoch_label}_net_{network_label}.pth")

    def load_network(self, network: nn.Module, network_label: str, epoch_label: str | int) -> None:
        """Read a network that `save_network` wrote to the folder `save_dir`.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is not a PyTorch file, or it is damaged.
        """
        path = Path(self.save_dir) / f"{epoch_label}_net_{network_label}.pth"
        logger.info("loading %s", path)
        network.load_state_dict(load_tensors(path))

    def update_learning_rate(self, nepoch_decay: float) -> None:
        """Lower the learning rate by `lr / nepoch_decay`, with the `lr` given to `initialize`."""
        lr = self.old_lr - self.lr / nepoch_decay
        for group in self.optimizer_net.param_groups:
            group["lr"] = lr
        logger.info("learning rate: %g -> %g", self.old_lr, lr)
        self.old_lr = lr

    def get_image_paths(self) -> Sequence[str]:
        """Return `image_paths`."""
        return self.image_paths

    def save_done(self, flag: bool = False) -> None:
        """Write a flag to the folder `save_dir`: to `done_flag.npy`, and as text to `done_flag`."""
        path = Path(self.save_dir) / "done_flag"
        np.save(path, flag)
        path.write_text(f"{int(flag)}\n")


def _enlarged(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Enlarge an image `(H, W, 3)` by repeating pixels, as SciPy's `zoom` with order 0 does in `lpips`."""
    places = []
    for length in image.shape[:2]:
        count = round(length * _PICTURE_HEIGHT / image.shape[0])
        places.append(np.floor(np.linspace(0, length - 1, count) + 0.5).astype(int))
    enlarged: npt.NDArray[Any] = image[np.ix_(*places)]
    return enlarged
