import pytest
import torch
from attack_toys import Slopes, plain, slopes
from peers import images

from rlpips.attacks import StAdv
from rlpips.attacks.objectives import Inflate


def test_flows_take_the_steps_of_adam():
    """Where images are ramps along x and y, they tell by how much each pixel was moved."""
    slope, eps, steps = 0.01, 1.5, 6
    x = torch.zeros(2, 3, 12, 12, dtype=torch.float64)
    x[:, 0] += slope * torch.arange(12)
    x[:, 1] += slope * torch.arange(12).view(-1, 1)
    objective = Slopes(slopes(steps + 2, x.shape))
    StAdv(eps, steps, smoothness=0.0)(objective, x)
    assert torch.equal(objective.seen[0], x)
    inner = (..., slice(3, -3), slice(3, -3))  # nothing moves there from beyond the border
    flows = [((seen - x)[:, :2] / slope)[inner] for seen in objective.seen[1:]]
    assert flows[0].abs().max() <= 0.1 * eps
    assert flows[0].min() < -0.08 * eps
    assert flows[0].max() > 0.08 * eps
    flow = flows[0].clone().requires_grad_()
    adam = torch.optim.Adam([flow], lr=2.5 * eps / steps, maximize=True, eps=1e-12)
    for k in range(steps):
        flow.grad = (slope * objective.slopes[k + 1][:, :2])[inner]
        adam.step()
        flow.data.clamp_(-eps, eps)
        assert torch.allclose(flows[k + 1], flow, atol=1e-6)
    assert flows[-1].abs().max() > 0.99 * eps


@pytest.mark.parametrize("images_at_once", [1, 2])
def test_smoothness_brings_flows_towards_their_neighbours(images_at_once):
    slope = 0.01
    x = torch.zeros(1, images_at_once, 3, 12, 12, dtype=torch.float64)
    x[:, :, 0] += slope * torch.arange(12)
    x[:, :, 1] += slope * torch.arange(12).view(-1, 1)
    x = x if images_at_once == 2 else x[0]  # as of `x0+x1`
    objective = Slopes(torch.zeros(3, 1))
    StAdv(0.5, 1, step_size=0.001, smoothness=1.0)(objective, x)
    first, second = (((seen - x)[..., :2, :, :] / slope)[..., 1:-1, 1:-1] for seen in objective.seen[1:])
    around = first[..., :-2, 1:-1] + first[..., 2:, 1:-1] + first[..., 1:-1, :-2] + first[..., 1:-1, 2:]
    moved, inner = (each[..., 1:-1, 1:-1] for each in (second - first, first))
    assert torch.allclose(moved, 0.001 * (around / 4 - inner).sign(), atol=1e-6)


def test_a_smooth_flow_finds_less():
    ref = images(4, 3, 32, 32)
    x = (ref + 0.2 * images(4, 3, 32, 32, seed=1)).clamp(-1, 1)
    index = torch.arange(4)
    found = []
    for smoothness in (0.0, 100.0):
        objective = Inflate(plain, x)
        found.append(objective(StAdv(1.0, 10, smoothness=smoothness)(objective, x), index))
    assert (found[1] < 0.9 * found[0]).all()
