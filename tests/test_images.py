import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import rlpips
from rlpips.images import resize, to_tensor


def picture(mode="RGB", size=(23, 17), seed=0):
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    data = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(data[..., 0] if channels == 1 else data, mode)


def png(width, height, depth, colour, rows):
    """Write a PNG by hand, of a kind that Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "bmp", "jpg", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_files_load_as_with_lpips(tmp_path, suffix, mode):
    path = tmp_path / f"image.{suffix}"
    picture(mode).resize((64, 48)).save(path)
    found = rlpips.load_image(path)
    assert found.dtype == np.uint8
    assert found.shape == (48, 64, 3)
    expected = lpips.load_image(str(path))
    # OpenCV and Pillow may bring JPEG decoders of different versions, which round differently
    assert np.abs(found.astype(int) - expected).max() <= (2 if suffix.startswith("j") else 0)


def test_real_photos_load_as_with_lpips(shared):
    for path in sorted((shared / "images" / "photos").glob("*.jpg"))[::275]:
        found, expected = rlpips.load_image(path), lpips.load_image(str(path))
        assert np.abs(found.astype(int) - expected).max() <= 2
    path = shared / "images" / "lpips-examples" / "ex_ref.png"
    np.testing.assert_array_equal(rlpips.load_image(str(path)), lpips.load_image(str(path)))


def test_exif_orientation_is_applied_as_in_lpips(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(size=(64, 32)).save(path, exif=exif, quality=95)
    assert rlpips.load_image(path).shape == lpips.load_image(str(path)).shape == (64, 32, 3)


def test_palettes_and_black_and_white_are_converted(tmp_path):
    grey = picture("L")
    for name, image in (("p", picture().quantize(16)), ("1", grey.convert("1"))):
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(
            rlpips.load_image(tmp_path / f"{name}.png"), np.asarray(image.convert("RGB"))
        )
    assert set(np.unique(rlpips.load_image(tmp_path / "1.png"))) == {0, 255}


def test_transparency_is_dropped_as_in_lpips_and_refused_by_distance(tmp_path):
    image = picture("RGBA")
    image.putalpha(255)
    image.save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(rlpips.load_image(tmp_path / "opaque.png"), np.asarray(image)[..., :3])
    picture("RGBA").save(tmp_path / "clear.png")
    grey = picture("L").convert("LA")
    grey.putalpha(3)
    grey.save(tmp_path / "grey.png")
    palette = picture().quantize(16)
    palette.save(tmp_path / "palette.png", transparency=3)
    for name in ("clear", "grey", "palette"):
        path = tmp_path / f"{name}.png"
        with pytest.warns(UserWarning, match="load_image drops alpha, as in lpips") as caught:
            found = rlpips.load_image(path)
        assert caught[0].filename == __file__
        np.testing.assert_array_equal(found, lpips.load_image(str(path)))
        with pytest.raises(rlpips.ImageError, match=f"{name}.png: it has transparent pixels.*flatten"):
            rlpips.distance(path, path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for name in ("clear", "grey", "palette"):
            rlpips.load_image(tmp_path / f"{name}.png")
    assert len(caught) == 1


def test_sixteen_bits_keep_their_higher_eight_as_in_lpips(tmp_path):
    values = np.random.default_rng(0).integers(0, 2**16, (17, 23, 3)).astype(">u2")
    (tmp_path / "rgb.png").write_bytes(png(23, 17, 16, 2, [row.tobytes() for row in values]))
    (tmp_path / "grey.png").write_bytes(png(23, 17, 16, 0, [row.tobytes() for row in values[..., 0]]))
    np.testing.assert_array_equal(rlpips.load_image(tmp_path / "rgb.png"), values >> 8)
    np.testing.assert_array_equal(
        rlpips.load_image(tmp_path / "grey.png"), np.repeat(values[..., :1] >> 8, 3, axis=2)
    )
    for name in ("rgb", "grey"):
        expected = lpips.load_image(str(tmp_path / f"{name}.png")).astype(int)
        assert np.abs(rlpips.load_image(tmp_path / f"{name}.png") - expected).max() <= 1


def test_cmyk_is_converted(tmp_path):
    picture("CMYK").save(tmp_path / "print.tif")
    np.testing.assert_array_equal(
        rlpips.load_image(tmp_path / "print.tif"), np.asarray(picture("CMYK").convert("RGB"))
    )


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_several_frames_are_refused(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    frames = [picture(seed=s) for s in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(rlpips.ImageError, match=f"moving.{suffix}: it has 3 frames"):
        rlpips.load_image(path)


def test_a_cameras_jpeg_with_a_preview_gives_the_picture(tmp_path):
    path = tmp_path / "camera.jpg"
    picture().save(path, format="MPO", save_all=True, append_images=[picture(seed=1)], quality=95)
    with Image.open(path) as image:
        assert image.format == "MPO"
        assert image.n_frames == 2
        np.testing.assert_array_equal(rlpips.load_image(path), np.asarray(image))


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_modes_without_a_known_range_are_refused(tmp_path, mode):
    path = tmp_path / "image.tif"
    data = (
        np.ones((8, 8, 3), np.uint8)
        if mode == "LAB"
        else np.ones((8, 8), {"F": np.float32, "I": np.int32}[mode])
    )
    Image.fromarray(data, mode).save(path)
    with pytest.raises(rlpips.ImageError, match=f"image.tif: mode '{mode}' has no known range"):
        rlpips.load_image(path)


def test_raw_photographs_are_refused(tmp_path):
    picture().save(tmp_path / "photo.dng", format="TIFF")
    with pytest.raises(rlpips.ImageError, match="photo.dng: raw photographs"):
        rlpips.load_image(tmp_path / "photo.dng")


def test_empty_text_and_folder_are_refused_by_name(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (("empty", "the file is empty"), ("text", "not an image"), ("folder", "is a folder")):
        with pytest.raises(rlpips.ImageError, match=f"{name}.png: {reason}"):
            rlpips.load_image(tmp_path / f"{name}.png")
    with pytest.raises(FileNotFoundError, match="nothing.png: there is no such file"):
        rlpips.load_image(tmp_path / "nothing.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "gif", "webp"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused_by_name(tmp_path, suffix, keep):
    path = tmp_path / f"cut.{suffix}"
    picture(size=(120, 90)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(rlpips.ImageError, match=f"cut.{suffix}: "):
        rlpips.load_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=60)
@given(st.data())
def test_damaged_bytes_give_an_image_or_an_error_that_names_the_file(tmp_path_factory, data):
    path = (
        tmp_path_factory.mktemp("damaged")
        / f"image.{data.draw(st.sampled_from(['png', 'jpg', 'gif', 'tif']))}"
    )
    picture().save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = rlpips.load_image(path)
    except rlpips.ImageError as error:
        found, message = None, str(error)
    if found is None:
        assert str(path) in message
    else:
        assert found.dtype == np.uint8
        assert found.ndim == 3


def test_decompression_bombs_are_refused(tmp_path):
    side = 20_000
    rows = (b"\0" * (side // 8) for _ in range(side))
    (tmp_path / "bomb.png").write_bytes(png(side, side, 1, 0, rows))
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(rlpips.ImageError, match="bomb.png: .*decompression bomb.*MAX_IMAGE_PIXELS"):
        rlpips.load_image(tmp_path / "bomb.png")


def test_no_file_stays_open(tmp_path):
    picture().save(tmp_path / "image.png")
    (tmp_path / "text.png").write_text("not an image")
    before = len(list(Path("/proc/self/fd").iterdir()))
    rlpips.load_image(tmp_path / "image.png")
    with pytest.raises(rlpips.ImageError):
        rlpips.load_image(tmp_path / "text.png")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_everything_that_holds_the_same_image_becomes_the_same_tensor(tmp_path):
    image = picture()
    array = np.asarray(image)
    image.save(tmp_path / "image.png")
    expected = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    same = (
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        image,
        array,
        array[None],
        array / 255,
        (array / 255).astype(np.float32),
        (array / 255).astype(">f8"),
        np.asfortranarray(array),
        array[::-1][::-1],
        expected,
        expected[0],
        expected.double(),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
    )
    for each in same:
        tensor, batched = to_tensor(each)
        assert tensor.shape == (1, 3, 17, 23)
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, expected, atol=1e-6)
        assert batched == (getattr(each, "ndim", 3) == 4)


def test_grey_arrays_are_repeated():
    grey = np.asarray(picture("L"))
    tensor, _ = to_tensor(grey)
    assert torch.equal(tensor, to_tensor(np.repeat(grey[..., None], 3, axis=2))[0])


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.zeros((3, 8, 9)), rlpips.ImageError, r"x: an array must have shape .* got \(3, 8, 9\)"),
        (np.zeros((8, 9, 4)), rlpips.ImageError, r"got \(8, 9, 4\)"),
        (np.zeros((8, 9, 2)), rlpips.ImageError, r"got \(8, 9, 2\)"),
        (np.zeros((3, 8, 9)), rlpips.ImageError, r"move the channels with np.moveaxis\(x, -3, -1\)"),
        (torch.zeros(2, 4, 8, 9), rlpips.ImageError, r"got \(2, 4, 8, 9\)"),
        (torch.zeros(2, 8, 9, 3), rlpips.ImageError, r"move the channels with x.movedim\(-1, -3\)"),
        (np.zeros((8, 9, 3), np.int32), rlpips.ImageError, "uint8, or float in .0, 1., got int32"),
        (np.full((8, 9, 3), 255.0), rlpips.ImageError, r"a float array must lie in \[0, 1\].*\[255, 255\]"),
        (np.full((8, 9, 3), -0.5), rlpips.ImageError, r"must lie in \[0, 1\]"),
        (np.full((8, 9, 3), np.nan), rlpips.ImageError, "it holds NaN"),
        (torch.full((3, 8, 9), torch.nan), rlpips.ImageError, "it holds NaN"),
        (torch.full((3, 8, 9), 2.0), rlpips.ImageError, r"a float tensor must lie in \[-1, 1\]"),
        (torch.zeros(8, 9, 3), rlpips.ImageError, r"a tensor must have shape .* got \(8, 9, 3\)"),
        (torch.zeros(3, 8, 9, dtype=torch.int64), rlpips.ImageError, "got torch.int64"),
        (picture("RGBA"), rlpips.ImageError, "x: it has transparent pixels"),
        (7, TypeError, "x must be a path, .* got int"),
        (None, TypeError, "got NoneType"),
        (b"bytes", TypeError, "got bytes"),
    ],
)
def test_what_is_no_image_is_refused_by_name(value, error, message):
    with pytest.raises(error, match=message):
        to_tensor(value, "x")


def test_resizing_keeps_range_and_constant_images():
    x = torch.rand(2, 3, 40, 50) * 2 - 1
    small = resize(x, (10, 30))
    assert small.shape == (2, 3, 10, 30)
    assert small.abs().max() <= 1
    assert torch.equal(resize(x, (40, 50)), x)
    flat = torch.full((1, 3, 40, 50), 0.3)
    assert torch.allclose(resize(flat, (17, 23)), torch.full((1, 3, 17, 23), 0.3), atol=1e-6)


def test_formats_that_are_not_documented_are_not_opened(tmp_path):
    for suffix in ("eps", "tga", "pcx", "ico"):
        picture(size=(64, 64)).save(tmp_path / f"image.{suffix}")
        renamed = (tmp_path / f"image.{suffix}").rename(tmp_path / f"{suffix}.png")
        with Image.open(renamed):  # Pillow alone would
            pass
        with pytest.raises(
            rlpips.ImageError, match=f"{suffix}.png: not an image in a format that rlpips reads"
        ):
            rlpips.load_image(renamed)


@pytest.mark.parametrize(
    "suffix", ["png", "jpg", "webp", "avif", "jp2", "tif", "bmp", "gif", "ppm", "pgm", "pbm"]
)
def test_formats_that_are_documented_are_opened_whatever_their_name(tmp_path, suffix):
    if suffix not in (known.removeprefix(".") for known in Image.registered_extensions()):
        pytest.skip(f"this Pillow has no {suffix}")
    mode = {"pgm": "L", "pbm": "1"}.get(suffix, "RGB")
    picture("L", size=(64, 48)).convert(mode).save(tmp_path / f"image.{suffix}")
    for name in (f"image.{suffix}", "image.unknown"):
        path = (
            (tmp_path / f"image.{suffix}").rename(tmp_path / name) if name.endswith("n") else tmp_path / name
        )
        assert rlpips.load_image(path).shape == (48, 64, 3)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path):
    path = tmp_path / "image.png"
    picture().save(path)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # whom permissions do not stop
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match="image.png: cannot be read: Permission denied"):
            rlpips.load_image(path)
    finally:
        os.seteuid(user)


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="needs Linux' count of this process's memory"
)
def test_lack_of_memory_is_not_called_damage(tmp_path):
    import resource

    path = tmp_path / "large.png"
    Image.new("RGB", (8000, 8000)).save(path)
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, before[1]))
    try:
        with pytest.raises(MemoryError, match="large.png: there is not enough memory"):
            rlpips.load_image(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_buffer_is_no_path():
    with pytest.raises(TypeError):
        to_tensor(io.BytesIO())
