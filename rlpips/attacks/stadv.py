"""StAdv, the attack that moves pixels instead of changing their colours."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from rlpips.attacks.base import Attack, Search


@dataclass(frozen=True)
class StAdv(Attack):
    """Spatial attack: a smooth flow field moves pixels (Xiao et al. 2018, arXiv 1801.02612).

    Args:
        eps: the most that a pixel moves, in pixels, in each direction.
        steps: gradient steps.
        step_size: step of Adam, in pixels. By default `2.5 * eps / steps`.
        smoothness: weight of the flow's mean squared difference between neighbours, in pixels squared.
        bounds: the range of images.
        seed: seed of all randomness. The same seed gives the same result.

    Raises:
        ValueError: an argument is out of range.
    """

    eps: float
    steps: int
    step_size: float | None = None
    smoothness: float = 0.05
    bounds: tuple[float, float] = field(default=(-1.0, 1.0), kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def _run(self, search: Search) -> None:
        index = search.unfinished()
        if not len(index):
            return
        step = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        x0 = search.start[index]
        blank = x0.new_empty(*x0.shape[:-3], 2, *x0.shape[-2:])
        flow = self.eps * 0.1 * (2 * search.random.uniform(blank, index) - 1)
        mean, square = torch.zeros_like(flow), torch.zeros_like(flow)  # the two moments of Adam
        for k in range(1, self.steps + 1):
            with torch.enable_grad():
                flow = flow.detach().requires_grad_()
                x = self._warp(x0, flow)
                value = search.objective(x, index)
                (gradient,) = torch.autograd.grad((value - self.smoothness * _roughness(flow)).sum(), flow)
            search.keep_best(x, value.detach(), index)
            rows = search.is_unfinished(index)
            index, x0, flow, gradient, mean, square = (
                t[rows] for t in (index, x0, flow.detach(), gradient.nan_to_num(0, 0, 0), mean, square)
            )
            if not len(index):
                return
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
            adam = (mean / (1 - 0.9**k)) / ((square / (1 - 0.999**k)).sqrt() + 1e-12)
            flow = (flow + step * adam).clamp(-self.eps, self.eps)
        search.value(self._warp(x0, flow), index)

    def _warp(self, images: Tensor, flow: Tensor) -> Tensor:
        """Sample images `(..., 3, H, W)` where the flow `(..., 2, H, W)`, in pixels (x, y), points to."""
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=flow.device, dtype=flow.dtype).view(-1, 1)
        columns = torch.arange(width, device=flow.device, dtype=flow.dtype)
        flows = flow.reshape(-1, 2, height, width)
        grid = torch.stack(
            [(2 * (columns + flows[:, 0]) + 1) / width - 1, (2 * (rows + flows[:, 1]) + 1) / height - 1],
            dim=-1,
        )
        flat = images.reshape(-1, *images.shape[-3:])
        moved = F.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return moved.reshape(images.shape).clamp(*self.bounds)


def _roughness(flow: Tensor) -> Tensor:
    """Return each flow's mean squared difference between neighbours, along x plus along y, `(N,)`."""
    return torch.stack([flow.diff(dim=d).square().flatten(1).mean(dim=1) for d in (-1, -2)]).sum(0)
