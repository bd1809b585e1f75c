import pytest
import torch
from attack_toys import EPS, Slopes, lengths, plain, slopes, triplets

from rlpips.attacks import PGD
from rlpips.attacks.objectives import Inflate


def test_fgsm_is_one_step_along_the_sign():
    x, y = triplets(2)[:2]
    objective = Inflate(plain, y)
    found = PGD("linf", EPS, 1, step_size=EPS, random_start=False)(objective, x)
    start = x.clone().requires_grad_()
    plain(start, y).sum().backward()
    expected = (x + 2 * EPS * start.grad.sign()).clamp(-1, 1)
    better = plain(expected, y) > plain(x, y)
    assert better.any()
    assert torch.allclose(found[better], expected[better], atol=1e-6)


def test_l2_steps_follow_the_gradient_not_its_sign():
    x, y = triplets(2)[:2]
    found = PGD("l2", 0.1, 1, step_size=0.1, random_start=False)(Inflate(plain, y), x)
    start = x.clone().requires_grad_()
    plain(start, y).sum().backward()
    cosine = torch.nn.functional.cosine_similarity((found - x).flatten(1), start.grad.flatten(1))
    assert (cosine > 0.99).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("step_size", [None, 0.01])
def test_pgd_takes_the_steps_of_the_papers(norm, momentum, step_size):
    """Madry et al. 2018 and, with momentum, Dong et al. 2018; the steps' sizes are as documented."""
    x = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    eps, steps = 0.05, 6
    objective = Slopes(slopes(steps + 2, x.shape))
    PGD(norm, eps, steps, step_size, random_start=False, momentum=momentum)(objective, x)
    candidate, velocity = x, torch.zeros_like(x)
    assert len(objective.seen) == steps + 2
    assert torch.equal(objective.seen[0], x)
    for k in range(steps):
        assert torch.allclose(objective.seen[k + 1], candidate, atol=1e-9)
        gradient = objective.slopes[k + 1]
        velocity = momentum * velocity + gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
        size = 2 * (eps * (steps - k) / steps if step_size is None else step_size)  # the range is two units
        if norm == "linf":
            candidate = (candidate + size * velocity.sign()).clamp(-2 * eps, 2 * eps)
        else:
            candidate = candidate + size * velocity / lengths(velocity).view(-1, 1, 1, 1)
            candidate = candidate * (2 * eps / lengths(candidate)).clamp(max=1).view(-1, 1, 1, 1)
    assert torch.allclose(objective.seen[-1], candidate, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_are_uniform_in_the_ball(norm):
    x = torch.zeros(4000, 3, 1, 1)
    objective = Slopes(torch.zeros(3, 1))
    PGD(norm, 0.2, 1)(objective, x)
    start = objective.seen[1].flatten(1) / 0.4  # in units of the ball's radius
    if norm == "linf":
        uniform = (start + 1) / 2
    else:
        length = start.norm(dim=1, keepdim=True)
        # of three dimensions: a sphere's share of the ball's volume, and where one axis cuts it
        uniform = torch.cat([length**3, (start / length + 1) / 2], dim=1)
    ordered = uniform.double().sort(dim=0).values
    expected = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    distance = (ordered - expected.view(-1, 1)).abs().max()  # Kolmogorov and Smirnov's
    assert distance < 1.95 / 4000**0.5  # one in a thousand is larger by chance
