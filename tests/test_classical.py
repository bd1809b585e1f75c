"""Classical metrics by name, with `piq` itself as oracle."""

import sys

import piq
import pytest
import torch
from commands import CAT
from torch.testing import assert_close

import rlpips
from rlpips.attacks import PGD, Inflate, RankFlip
from rlpips.classical import CLASSICAL, ClassicalMetric
from rlpips.images import to_tensor

DIRECT = {
    "ssim": lambda x, y: 1 - piq.ssim(x, y, reduction="none"),
    "ms-ssim": lambda x, y: 1 - piq.multi_scale_ssim(x, y, reduction="none", scale_weights=scales(x)),
    "mse": lambda x, y: 10 ** (-piq.psnr(x, y, reduction="none") / 10) - 1e-8,
    "psnr": lambda x, y: 80 - piq.psnr(x, y, reduction="none"),
    "haarpsi": lambda x, y: 1 - piq.haarpsi(x, y, reduction="none"),
    "fsim": lambda x, y: 1 - piq.fsim(x, y, reduction="none"),
    "gmsd": lambda x, y: piq.gmsd(x, y, reduction="none"),
    "mdsi": lambda x, y: piq.mdsi(x, y, reduction="none"),
    "vsi": lambda x, y: 1 - piq.vsi(x, y, reduction="none"),
    "vif": lambda x, y: 1 - piq.vif_p(x, y, reduction="none"),
}


def scales(x):
    """The weights of MS-SSIM on images of 64 pixels, where three of the five scales fit."""
    return None if x.shape[-1] == 192 else torch.tensor([0.0448, 0.2856, 0.3001], dtype=x.dtype)


def crops(size=64, dtype=torch.float32):
    """Four squares of a photo, in [-1, 1]."""
    whole = to_tensor(rlpips.load_image(CAT))[0].to(dtype)
    if size == whole.shape[-1]:
        return whole
    return torch.cat([whole[..., k : k + size, 2 * k : 2 * k + size] for k in (0, 20, 40, 60)])


def noisy(x, size=8 / 255, seed=0):
    return (
        x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    ).clamp(-1, 1)


def flat(x):
    """The images with a grey, a white and a black quarter, and one that is grey, white or black as a whole."""
    x = x.clone()
    side = x.shape[-1] // 2
    for square, shade in (
        (x[0, :, :side, :side], 0.2),
        (x[0, :, side:, :side], 1),
        (x[0, :, :side, side:], -1),
    ):
        square.fill_(shade)
    for image, shade in zip(x[1:], (0.2, 1, -1), strict=True):
        image.fill_(shade)
    return x


@pytest.mark.parametrize("size", [64, 192])
@pytest.mark.parametrize("name", CLASSICAL)
def test_distances_are_those_of_piq(name, size):
    ref = crops(size)
    x = noisy(ref)
    found = ClassicalMetric(name)(x, ref)
    assert found.shape == (len(ref),)
    assert_close(found, DIRECT[name]((x + 1) / 2, (ref + 1) / 2), rtol=1e-5, atol=1e-6)


def test_every_metric_has_its_oracle():
    assert set(DIRECT) == set(CLASSICAL)


@pytest.mark.parametrize(
    ("size", "count"), [(20, 1), (21, 2), (40, 2), (41, 3), (80, 3), (81, 4), (160, 4), (161, 5)]
)
def test_small_images_have_as_many_scales_of_ms_ssim_as_fit(size, count):
    ref = crops(192)[..., :size, :size]
    x = noisy(ref)
    weights = torch.tensor([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:count]
    expected = 1 - piq.multi_scale_ssim((x + 1) / 2, (ref + 1) / 2, reduction="none", scale_weights=weights)
    assert_close(ClassicalMetric("ms-ssim")(x, ref), expected, rtol=1e-3, atol=0)
    if count == 1:
        assert_close(ClassicalMetric("ms-ssim")(x, ref), ClassicalMetric("ssim")(x, ref))


@pytest.mark.parametrize("name", CLASSICAL)
def test_gradients_are_finite_everywhere(name):
    photo = crops()
    metric = ClassicalMetric(name)
    for ref in (photo, flat(photo)):
        for x in (ref, noisy(ref), flat(photo), -photo):
            pair = [x.clone().requires_grad_(), ref.clone().requires_grad_()]
            found = metric(*pair)
            assert found.isfinite().all()
            for gradient in torch.autograd.grad(found.sum(), pair):
                assert gradient.isfinite().all()
    assert metric(photo, photo).abs().max() < 1e-5
    assert metric(flat(photo), flat(photo)).abs().max() < 1e-5


@pytest.mark.parametrize("name", CLASSICAL)
def test_gradients_beside_flat_regions_are_the_slopes_of_piq(name):
    ref = 0.8 * crops(dtype=torch.float64)  # no value leaves the range
    ref[:2, :, :, :32] = 0.4
    x = noisy(ref).requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    (gradient,) = torch.autograd.grad(ClassicalMetric(name)(x, ref).sum(), x)
    slope = (gradient * direction).sum((1, 2, 3))
    x, step = x.detach(), 1e-7
    ahead, behind = (DIRECT[name]((x + 1 + sign * step * direction) / 2, (ref + 1) / 2) for sign in (1, -1))
    assert_close(slope, (ahead - behind) / (2 * step), rtol=2e-3, atol=1e-5)


def test_values_that_rounding_moved_out_of_range_keep_their_gradients():
    ref = crops()
    x = noisy(ref)
    x[:, :, :8] = 1 + 3e-7
    x.requires_grad_()
    found = ClassicalMetric("ssim")(x, ref)
    assert torch.equal(found, ClassicalMetric("ssim")(x.detach().clamp(-1, 1), ref))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert (gradient[:, :, :8] != 0).float().mean() > 0.99
    with pytest.raises(
        ValueError, match=r"values are out of range: on the \[0, 1\] scale they go from 0\.5 to 1\.\d"
    ):
        ClassicalMetric("ssim")(crops() + 1, ref)


@pytest.mark.parametrize("name", CLASSICAL)
def test_an_image_with_nan_has_no_distance_and_spoils_no_other(name):
    ref = crops()
    x = noisy(ref)
    expected = ClassicalMetric(name)(x, ref)
    x[1, 0, 5, 5] = torch.nan
    found = ClassicalMetric(name)(x, ref)
    assert found.isnan().tolist() == [False, True, False, False]
    assert_close(found[[0, 2, 3]], expected[[0, 2, 3]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CLASSICAL)
def test_an_attack_moves_images_farther_than_noise_of_its_size(name):
    x = crops()
    metric = ClassicalMetric(name)
    attacked = PGD("linf", 4 / 255, 5)(Inflate(metric, x), x)
    budget = 8 / 255  # in [-1, 1]
    assert (attacked - x).abs().max() <= budget + 1e-6
    noise = budget * torch.empty_like(x).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    assert (metric(attacked, x) > 1.1 * metric((x + noise).clamp(-1, 1), x)).all()


@pytest.mark.parametrize("perturb", ["x0", "ref"])
def test_an_attack_flips_rankings_of_ssim(perturb):
    ref = crops()
    x0, x1 = noisy(ref, 12 / 255), noisy(ref, 14 / 255, seed=1)
    triplets = RankFlip(ClassicalMetric("ssim"), ref, x0, x1, torch.zeros(4), perturb)
    index = torch.arange(4)
    assert (triplets(triplets.x, index) < 0).all()  # without an attack x0 is nearer
    attacked = PGD("linf", 4 / 255, 10)(triplets, triplets.x)
    assert (triplets(attacked, index) > 0).all()


def test_a_name_that_is_unknown_names_all():
    with pytest.raises(ValueError, match=f"no classical metric 'sism'; the names are {', '.join(CLASSICAL)}"):
        ClassicalMetric("sism")


@pytest.mark.parametrize(
    ("name", "smallest"), [("ssim", 11), ("ms-ssim", 11), ("haarpsi", 16), ("vif", 41), ("fsim", 2)]
)
def test_images_that_are_too_small_are_told_what_they_need(name, smallest):
    x = torch.zeros(2, 3, smallest, smallest + 5)
    assert ClassicalMetric(name)(x, x).isfinite().all()
    message = (
        f"{name} needs images of at least {smallest} x {smallest} pixels, got {smallest - 1} x {smallest + 5}"
    )
    with pytest.raises(ValueError, match=message):
        ClassicalMetric(name)(x[:, :, 1:], x[:, :, 1:])


def test_other_shapes_are_refused():
    x = torch.zeros(2, 3, 64, 64)
    for other in (x[:1], x[:, :1], x[0]):
        with pytest.raises(ValueError, match="ssim compares two batches"):
            ClassicalMetric("ssim")(other, x)


def test_without_piq_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "piq", None)
    with pytest.raises(
        rlpips.MissingExtraError, match=r"'ms-ssim' needs .* pip install 'rlpips\[classical\]'"
    ):
        ClassicalMetric("ms-ssim")
    x = torch.zeros(2, 3, 64, 64)
    assert ClassicalMetric("mse")(x, x).tolist() == [0, 0]
