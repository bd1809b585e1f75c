"""The modules of `lpips` that compute a distance without a backbone, and its training loss."""

import numpy as np
import torch
from torch import Tensor, nn

from rlpips.compat.arrays import Array, Scalar, dssim, l2, tensor2im, tensor2np, tensor2tensorlab
from rlpips.training.ranking import Dist2LogitLayer


class BCERankingLoss(nn.Module):
    """LPIPS' training loss: the cross entropy between the ranking network's prediction and the judgement.

    `forward(d0, d1, judge)` takes distances `(N, 1, H, W)` and judgements of the same shape in [-1, 1], and
    returns a scalar. A judgement of -1 means that everybody chose the first image, 1 the second. The
    prediction is kept as `self.logit`; as in `lpips`, it is a share in [0, 1].
    """

    def __init__(self, chn_mid: int = 32) -> None:
        super().__init__()
        self.net = Dist2LogitLayer(chn_mid=chn_mid)
        self.loss = nn.BCELoss()

    def forward(self, d0: Tensor, d1: Tensor, judge: Tensor) -> Tensor:
        """Return the loss."""
        self.logit = self.net(d0, d1)
        loss: Tensor = self.loss(self.logit, (judge + 1) / 2)
        return loss


class FakeNet(nn.Module):
    """The base of the classical distances. They are called like a network.

    Args:
        use_gpu: return the result on the GPU, if there is one.
        colorspace: 'Lab' or 'RGB'.

    Raises:
        ValueError: the colour space is another one.
    """

    def __init__(self, use_gpu: bool = True, colorspace: str = "Lab") -> None:
        super().__init__()
        if colorspace not in ("Lab", "RGB"):
            raise ValueError(f"colorspace={colorspace!r} is unknown; choose 'Lab' or 'RGB'")
        self.use_gpu = use_gpu
        self.colorspace = colorspace

    def _images(self, in0: Tensor, in1: Tensor) -> tuple[Array, Array]:
        """Convert to arrays `(H, W, 3)`, in Lab or in RGB from 0 to 255."""
        if self.colorspace == "Lab":
            in0, in1 = tensor2tensorlab(in0, to_norm=False), tensor2tensorlab(in1, to_norm=False)
            return tensor2np(in0), tensor2np(in1)
        return tensor2im(in0).astype(np.float64), tensor2im(in1).astype(np.float64)

    def _result(self, value: Scalar) -> Tensor:
        return torch.tensor(
            [float(value)], device="cuda" if self.use_gpu and torch.cuda.is_available() else "cpu"
        )

    @staticmethod
    def _check_single(in0: Tensor) -> None:
        if in0.shape[0] != 1:
            raise ValueError(
                f"this distance takes one image at a time, shape (1, 3, H, W), got {tuple(in0.shape)}"
            )


class L2(FakeNet):
    """The mean squared difference of two images `(1, 3, H, W)` in [-1, 1], as a tensor `(1,)`.

    In RGB it is differentiable, and computed on values in [-1, 1]. In Lab it is half the mean squared
    difference, in units of 100, and has no gradient.
    """

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool | None = None) -> Tensor:  # noqa: ARG002
        """Return the distance. `retPerLayer` has no effect; `lpips` passes it to every metric."""
        self._check_single(in0)
        if self.colorspace == "RGB":
            return (in0 - in1).square().mean(dim=(1, 2, 3))
        return self._result(l2(*self._images(in0, in1), range=100.0))


class DSSIM(FakeNet):
    """The structural dissimilarity of two images `(1, 3, H, W)` in [-1, 1], as a tensor `(1,)`.

    It is `(1 - SSIM) / 2`, and has no gradient. It needs scikit-image (extra 'classical').
    """

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool | None = None) -> Tensor:  # noqa: ARG002
        """Return the distance. `retPerLayer` has no effect; `lpips` passes it to every metric."""
        self._check_single(in0)
        return self._result(
            dssim(*self._images(in0, in1), range=100.0 if self.colorspace == "Lab" else 255.0)
        )


def print_network(net: nn.Module) -> None:
    """Print a network with all its modules, and the number of its parameters."""
    print("Network", nn.Module.__repr__(net))  # noqa: T201  because LPIPS' own repr is one line
    print(f"Total number of parameters: {sum(p.numel() for p in net.parameters())}")  # noqa: T201
