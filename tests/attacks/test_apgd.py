import pytest
import torch

from rlpips.attacks import APGD
from rlpips.attacks.objectives import Objective


class Peak(Objective):
    """Is highest at `top`, less steep along some axes than along others; keeps what it has seen."""

    def __init__(self, top):
        self.top, self.seen = top, []
        self.slopes = torch.linspace(0.5, 2.0, top[0].numel(), dtype=top.dtype).view(top[0].shape)

    def __call__(self, x, index):
        self.seen.append(x.detach().clone())
        return self.value(x, self.top[index])

    def value(self, x, top):
        return -(self.slopes * (x - top).abs() ** 1.5).sum(dim=(-3, -2, -1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("step_size", [None, 0.004])
def test_apgd_takes_the_steps_of_the_paper(norm, step_size):
    """Algorithm 1 of Croce & Hein 2020, and their code where it is more exact: `<=` for few rises."""
    eps, steps, size = 0.05, 100, (3, 2, 1)
    generator = torch.Generator().manual_seed(0)
    reach = 0.25 if norm == "linf" else 0.12
    top = reach * (torch.rand(5, *size, generator=generator, dtype=torch.float64) - 0.5)
    objective = Peak(top)
    found = APGD(norm, eps, steps, step_size, random_start=False)(objective, torch.zeros_like(top))
    assert len(objective.seen) == steps + 2
    share = [0.0, 0.22]
    while share[-1] < 1:
        share.append(share[-1] + max(share[-1] - share[-2] - 0.03, 0.06))
    checks = [round(each * steps) for each in share]

    def project(x):
        return x.clamp(-2 * eps, 2 * eps) if norm == "linf" else x * min(1, 2 * eps / x.norm().item())

    halvings = 0
    for i in range(5):
        seen = x = previous = best = torch.zeros(size, dtype=torch.float64)
        step = 2 * (2 * eps if step_size is None else step_size)
        value = best_value = checked = objective.value(x, top[i])
        rises, halved = 0, True
        for k in range(1, steps + 1):
            assert torch.allclose(objective.seen[k][i], seen, atol=1e-9)
            at = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(objective.value(at, top[i]), at)
            gradient = gradient.sign() if norm == "linf" else gradient / gradient.norm()
            z = project(x + step * gradient)
            alpha = 1.0 if k == 1 else 0.75
            x, previous = project(x + alpha * (z - x) + (1 - alpha) * (x - previous)), x
            seen = x
            last, value = value, objective.value(x, top[i])
            rises += bool(value > last)
            if value > best_value:
                best, best_value = x, value
            if k in checks:
                few = rises <= 0.75 * (k - checks[checks.index(k) - 1])
                if few or (not halved and best_value <= checked):
                    step, x, previous, value, halved = step / 2, best, best, best_value, True
                    halvings += 1
                else:
                    halved = False
                rises, checked = 0, best_value
        assert torch.allclose(objective.seen[-1][i], seen, atol=1e-9)
        assert torch.allclose(found[i], best, atol=1e-9)
    assert halvings > 10
