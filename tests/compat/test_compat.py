import sys

import lpips
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from peers import hushed, images

import rlpips


def bytes_image(seed=0, size=(24, 31)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_every_name_of_lpips_that_scripts_call_is_here():
    own = {n for n, value in vars(lpips).items() if getattr(value, "__module__", "").startswith("lpips")}
    assert {"LPIPS", "rgb2lab", "Trainer", "score_jnd_dataset"} <= own
    assert own <= set(rlpips.__all__)
    for name in own:
        assert isinstance(getattr(rlpips, name), type) == isinstance(getattr(lpips, name), type)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_numbers_are_numpys_of_the_type_that_lpips_returns(dtype):
    a, b = bytes_image(0).astype(dtype), bytes_image(1).astype(dtype)
    for name in ("l2", "psnr"):
        with np.errstate(all="ignore"):  # squares beyond float16
            found, expected = getattr(rlpips, name)(a, b), getattr(lpips, name)(a, b)
        assert type(found) is type(expected)
        assert found == expected or found == pytest.approx(expected, rel=1e-6)
    assert isinstance(rlpips.dssim(a.astype(float), b.astype(float)), np.float64)
    for old in (False, True):
        found, expected = (
            library.voc_ap(*np.array([[0.5, 1.0], [1.0, 0.5]]), old) for library in (rlpips, lpips)
        )
        assert type(found) is type(expected)
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", ["l2", "psnr"])
def test_l2_and_psnr(name):
    a, b = bytes_image(0), bytes_image(1)
    for p, q in ((a, b), (a.astype(float), b.astype(float))):
        expected = getattr(lpips, name)(p, q)
        assert getattr(rlpips, name)(p, q) == pytest.approx(expected, rel=1e-12)
    assert rlpips.psnr(a, a) == np.inf


def test_dssim_works_where_that_of_lpips_no_longer_does():
    from skimage.metrics import structural_similarity

    a, b = bytes_image(0).astype(float), bytes_image(1).astype(float)
    with pytest.raises(ImportError):
        lpips.dssim(a, b)
    each = [structural_similarity(a[..., c], b[..., c], data_range=255.0) for c in range(3)]
    assert rlpips.dssim(a, b) == pytest.approx((1 - np.mean(each)) / 2)
    assert rlpips.dssim(a, a) == pytest.approx(0)


def test_conversions_between_arrays_and_tensors():
    x = images(2, 3, 12, 17)
    image = bytes_image()
    np.testing.assert_array_equal(rlpips.tensor2np(x), lpips.tensor2np(x))
    np.testing.assert_array_equal(rlpips.tensor2im(x), lpips.tensor2im(x))
    np.testing.assert_array_equal(rlpips.tensor2im(x, float, 0.0, 2.0), lpips.tensor2im(x, float, 0.0, 2.0))
    assert rlpips.tensor2im(x).dtype == np.uint8
    for array in (image, image[:, ::-1], image.astype(np.float32) / 3):
        assert torch.equal(rlpips.im2tensor(array), lpips.im2tensor(array))
        assert torch.equal(rlpips.np2tensor(array), lpips.np2tensor(array.copy()))
    assert torch.equal(
        rlpips.im2tensor(image, cent=0.5, factor=255.0), lpips.im2tensor(image, cent=0.5, factor=255.0)
    )
    vector = torch.rand(3, 5, 1, 1)
    np.testing.assert_array_equal(rlpips.tensor2vec(vector), lpips.tensor2vec(vector))


def test_im2tensor_undoes_tensor2im():
    image = bytes_image()
    np.testing.assert_array_equal(np.rint(rlpips.tensor2im(rlpips.im2tensor(image), float)), image)


@pytest.mark.parametrize(
    "options", [{}, {"to_norm": False}, {"mc_only": True}, {"to_norm": False, "mc_only": True}]
)
def test_lab(options):
    x = images(1, 3, 12, 17)
    assert torch.allclose(
        rlpips.tensor2tensorlab(x, **options), lpips.tensor2tensorlab(x, **options), atol=1e-5
    )


def test_rgb2lab():
    for array in (bytes_image(), bytes_image().astype(np.float32)):
        found, expected = rlpips.rgb2lab(array), lpips.rgb2lab(array)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_lab_and_back():
    lab = rlpips.tensor2tensorlab(images(1, 3, 12, 17))
    lab[0, :, 0, 0] = torch.tensor([0.4, 1.0, -1.0])  # a colour that RGB does not have
    found, mask = rlpips.tensorlab2tensor(lab, return_inbnd=True)
    with hushed():
        expected, expected_mask = lpips.tensorlab2tensor(lab, return_inbnd=True)
        assert torch.allclose(rlpips.tensorlab2tensor(lab), lpips.tensorlab2tensor(lab), atol=1e-5)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(mask, expected_mask)
    assert mask[0, 0, 0, 0] == 0
    assert mask.mean() > 0.9


@given(st.data())
def test_average_precision(data):
    n = data.draw(st.integers(1, 20))
    unit = st.floats(0, 1, width=32)
    recall = np.sort(data.draw(npst.arrays(float, n, elements=unit)))
    precision = data.draw(npst.arrays(float, n, elements=unit))
    for old in (False, True):
        expected = lpips.voc_ap(recall, precision, use_07_metric=old)
        assert rlpips.voc_ap(recall, precision, use_07_metric=old) == pytest.approx(expected, abs=1e-9)


def test_functions_of_the_metric():
    x = images(2, 3, 12, 17)
    assert torch.allclose(rlpips.normalize_tensor(x), lpips.normalize_tensor(x), atol=1e-7)
    assert torch.equal(rlpips.spatial_average(x), lpips.spatial_average(x))
    assert torch.equal(rlpips.spatial_average(x, keepdim=False), lpips.spatial_average(x, keepdim=False))
    assert torch.equal(rlpips.upsample(x), lpips.upsample(x))
    assert torch.equal(rlpips.upsample(x, (40, 50)), lpips.upsample(x, (40, 50)))
    assert torch.equal(rlpips.upsample(x, 12), lpips.upsample(x, 12))
    assert torch.equal(rlpips.ScalingLayer()(x), lpips.ScalingLayer()(x))


@pytest.mark.parametrize(
    ("name", "arguments", "inputs"),
    [
        ("NetLinLayer", {"chn_in": 3, "chn_out": 2}, 1),
        ("NetLinLayer", {"chn_in": 3, "use_dropout": True}, 1),
        ("Dist2LogitLayer", {}, 2),
        ("Dist2LogitLayer", {"chn_mid": 8, "use_sigmoid": False}, 2),
        ("BCERankingLoss", {}, 3),
    ],
)
def test_layers_compute_and_save_alike(name, arguments, inputs):
    ours, theirs = getattr(rlpips, name)(**arguments).eval(), getattr(lpips, name)(**arguments).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    channels = arguments.get("chn_in", 1)
    batches = [torch.rand(4, channels, 1, 1) for _ in range(inputs)]
    assert torch.allclose(ours(*batches), theirs(*batches), atol=1e-6)
    if name == "BCERankingLoss":
        assert torch.allclose(ours.logit, theirs.logit, atol=1e-6)


def test_classical_distances():
    a, b = images(1, 3, 24, 31), images(1, 3, 24, 31, seed=1)
    for colorspace in ("RGB", "Lab"):
        ours = rlpips.L2(use_gpu=False, colorspace=colorspace)
        theirs = lpips.L2(use_gpu=False, colorspace=colorspace)
        assert isinstance(ours, rlpips.FakeNet)
        assert torch.allclose(ours(a, b), theirs(a, b), rtol=1e-5)
        assert ours(a, b).shape == (1,)
        similar = rlpips.DSSIM(colorspace=colorspace)
        assert similar(a, a).item() == pytest.approx(0, abs=1e-6)
        assert 0 < similar(a, b).item() <= 1
    x = a.clone().requires_grad_()
    rlpips.L2(colorspace="RGB")(x, b).backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="one image at a time"):
        rlpips.L2()(images(2, 3, 24, 31), b)
    with pytest.raises(ValueError, match="colorspace='HSV'"):
        rlpips.DSSIM(colorspace="HSV")


def test_print_network(capsys):
    layer = torch.nn.Linear(3, 2)
    rlpips.print_network(layer)
    ours = capsys.readouterr().out
    lpips.print_network(layer)
    assert ours == capsys.readouterr().out
    rlpips.print_network(rlpips.LPIPS(pnet_rand=True))
    assert "(lin0): NetLinLayer(" in capsys.readouterr().out


def test_a_missing_extra_is_named(monkeypatch):
    for module in ("skimage", "skimage.metrics", "skimage.color"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(rlpips.MissingExtraError, match=r"pip install 'rlpips\[classical\]'"):
        rlpips.dssim(bytes_image(), bytes_image())
    with pytest.raises(ImportError, match="tensor2tensorlab needs the extra"):
        rlpips.tensor2tensorlab(images(1, 3, 8, 8))
