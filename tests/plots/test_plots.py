"""Pictures of images: heat maps, contact sheets, the contributions of layers."""

import re
import sys

import numpy as np
import pytest
import torch
from peers import images, peers
from PIL import Image

import rlpips
from rlpips.cli import main
from rlpips.plots import contact_sheet, heatmap, layers


@pytest.fixture(scope="module")
def metric():
    torch.manual_seed(0)
    return rlpips.LPIPS(pnet_rand=True)


def image(*size, seed=0):
    return images(1, 3, *size, seed=seed)[0]


def patched(a, rows, columns):
    """Copy an image `(3, H, W)` but for a patch, which is inverted."""
    b = a.clone()
    b[:, rows, columns] *= -1
    return b


def axes_of(figure, label):
    (axes,) = [axes for axes in figure.axes if axes.get_label() == label]
    return axes


def map_of(figure, label="map"):
    return axes_of(figure, label).images[-1]


def texts_of(figure):
    return [text.get_text() for text in figure.texts]


def check_that_all_can_be_read(figure):
    """Assert that no text is cut by the figure's sides, and that none lies on another or on an image."""
    figure.draw_without_rendering()
    every_axis = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    ticks = [
        label
        for axis in every_axis
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    ]
    texts = [*figure.texts, *(axis.label for axis in every_axis), *ticks]
    texts += [axis.get_offset_text() for axis in every_axis]
    texts = [text for text in texts if text.get_text() and text.get_visible()]
    boxes = [text.get_window_extent() for text in texts]
    pictures = [axes.get_window_extent() for axes in figure.axes]
    for k, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, texts[k].get_text()
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, texts[k].get_text()
        for other in (*boxes[:k], *pictures):
            assert not box.overlaps(other), texts[k].get_text()
    for k, box in enumerate(pictures):
        assert not any(box.overlaps(other) for other in pictures[:k])


def test_the_map_is_that_of_lpips_and_the_metric_stays_as_it_is():
    a, b = images(1, 3, 64, 80), images(1, 3, 64, 80, seed=1)
    ours, theirs = peers("alex", spatial=True)
    ours.train()
    ours.lins.train()
    with torch.no_grad():
        expected = theirs(a, b)[0, 0].numpy()
        theirs.spatial = False
        distance = theirs(a, b).item()
    try:
        figure = heatmap(a[0], b, metric=ours)
        assert ours.spatial
        assert ours.lin0.training
        assert ours.check_range
    finally:
        ours.lins.eval()
    assert np.abs(map_of(figure).get_array() - expected).max() < 1e-6
    assert texts_of(figure) == ["a", "b", f"distance {distance:.4f}"]
    assert map_of(figure).get_clim() == (0, pytest.approx(expected.max(), rel=1e-5))
    assert axes_of(figure, "scale").get_ylim() == map_of(figure).get_clim()
    np.testing.assert_allclose(
        axes_of(figure, "b").images[0].get_array() / 127.5 - 1, b[0].movedim(0, 2), atol=4e-3
    )


def test_the_hottest_place_is_where_the_images_differ():
    a = image(96, 128)
    found = map_of(heatmap(a, patched(a, slice(16, 40), slice(80, 112)))).get_array()
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert 16 <= row < 40
    assert 80 <= column < 112
    assert found[60:, :50].max() < 0.01 * found.max()


def test_equal_images_are_nowhere_different():
    a = image(64, 64)
    figure = heatmap(a, a.clone())
    assert not map_of(figure).get_array().any()
    assert texts_of(figure)[-1] == "distance 0"
    assert (map_of(figure).to_rgba(map_of(figure).get_array())[..., 3] == 0).all()  # the image shows through


def test_images_in_tiles_have_the_same_map(metric):
    a, b = image(64, 150), image(64, 150, seed=1)
    whole, tiled = heatmap(a, b, metric=metric), heatmap(a, b, metric=metric, tile=32)
    np.testing.assert_allclose(map_of(whole).get_array(), map_of(tiled).get_array(), rtol=1e-4, atol=1e-9)
    assert texts_of(whole) == texts_of(tiled)
    small = map_of(heatmap(a, b, metric=metric, resize=(40, 48)))
    assert small.get_array().shape == (40, 48)


@pytest.mark.parametrize("size", [(64, 64), (31, 400), (400, 31), (60, 90), (150, 64)])
def test_images_of_all_shapes_leave_place_for_words(metric, size):
    a, b = image(*size), image(*size, seed=1)
    check_that_all_can_be_read(heatmap(a, b, metric=metric))
    check_that_all_can_be_read(contact_sheet([a, a], [b, a], metric=metric))
    if size[0] < 100:
        return
    almost = a + 1e-3 * (b - a)
    check_that_all_can_be_read(heatmap(a, almost, metric=metric))
    check_that_all_can_be_read(contact_sheet([a], [almost], metric=metric))


def test_long_names_are_cut_and_are_no_formulas(metric, tmp_path):
    path = tmp_path / ("a_long_$name$_" * 8 + "$.png")
    Image.fromarray(np.zeros((64, 40, 3), np.uint8)).save(path)
    figure = heatmap(path, str(path), metric=metric)
    check_that_all_can_be_read(figure)
    assert texts_of(figure)[0].startswith("…")
    assert texts_of(figure)[0].endswith("$.png")
    check_that_all_can_be_read(contact_sheet([path], [path], metric=metric))


def noisy(a, strengths):
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(3))
    return torch.stack([(a + strength * noise).clamp(-1, 1) for strength in strengths])


def test_a_sheet_begins_with_the_most_different_and_tells_what_it_leaves_out(metric):
    a = image(64, 64)
    b = noisy(a, [0.3, 0, 0.1, 0.5, 0.2, 0.4])
    distances = metric(a[None], b).flatten().tolist()
    figure = contact_sheet([a] * 6, b, metric=metric)
    shown = [text.get_text() for text in figure.texts if text.get_weight() == "bold"]
    assert shown == [f"{d:.4f}" if d else "0" for d in sorted(distances, reverse=True)]
    names = [text for text in texts_of(figure) if text.startswith("pair ")]
    assert names == [f"pair {k}" for k in (3, 5, 0, 4, 2, 1)]
    assert texts_of(figure)[0] == f"6 pairs, mean distance {np.mean(distances):.4f}"
    maps = [map_of(figure, f"map {k}") for k in range(6)]
    largest = max(each.get_array().max() for each in maps)
    assert {each.get_clim() for each in maps} == {(0, largest)}
    assert axes_of(figure, "scale").get_xlim() == (0, largest)
    assert not maps[-1].get_array().any()

    figure = contact_sheet([a] * 6, list(b), [3, 0.01, 1, 5, 2, 4], metric=metric, most=3)
    shown = [text.get_text() for text in figure.texts if text.get_weight() == "bold"]
    assert shown == ["5.0000", "4.0000", "0.0100"]
    assert "3 more between 3.0000 and 1.0000" in texts_of(figure)
    check_that_all_can_be_read(figure)


def test_large_images_become_thumbnails(metric):
    a, b = image(64, 1300), image(64, 1300, seed=1)
    figure = contact_sheet([a], [b], metric=metric)
    for label in ("a 0", "b 0", "map 0"):
        assert axes_of(figure, label).images[-1].get_array().shape[:2] == (30, 600)


@pytest.fixture
def folders(tmp_path):
    a = image(64, 64)
    for name, batch in (("one", torch.stack([a] * 3)), ("two", noisy(a, [0.1, 0.4, 0]))):
        (tmp_path / name).mkdir()
        for k, each in enumerate(batch):
            Image.fromarray(rlpips.tensor2im(each[None]).astype(np.uint8)).save(tmp_path / name / f"{k}.png")
    return tmp_path / "one", tmp_path / "two"


def test_a_sheet_of_folders_pairs_files_by_name(metric, folders):
    figure = contact_sheet(*folders, metric=metric)
    assert [text for text in texts_of(figure) if re.fullmatch(r"\d.png", text)] == ["1.png", "0.png", "2.png"]
    assert [text[-4:] for text in texts_of(figure)[2:4]] == ["/one", "/two"]
    (folders[0] / "extra.png").touch()
    with pytest.raises(rlpips.ImageError, match=r"extra.png has no partner in .*two"):
        contact_sheet(*folders, metric=metric)
    with pytest.raises(NotADirectoryError, match="there is no such folder"):
        contact_sheet("nowhere", folders[1], metric=metric)


def test_the_bars_of_layers_sum_to_the_distance(metric):
    a, b, c = (image(64, 64, seed=k) for k in range(3))
    squeeze = rlpips.LPIPS(net="squeeze", pnet_rand=True, spatial=True)
    figure = layers(a, {"b": b, "c": c}, metric={"first": metric, "second": metric, "other": squeeze})
    assert squeeze.spatial
    alex, other = axes_of(figure, "alex"), axes_of(figure, "squeeze")
    assert [label.get_text() for label in alex.get_xticklabels()] == [f"relu{k}" for k in range(1, 6)]
    assert [label.get_text() for label in other.get_xticklabels()] == [f"relu{k}" for k in range(1, 8)]
    expected = [metric(a[None], x[None]).item() for x in (b, c)] * 2
    assert [sum(bar.get_height() for bar in bars) for bars in alex.containers] == pytest.approx(expected)
    assert [text.get_text() for text in alex.get_legend().get_texts()] == [
        f"{name}  {distance:.4f}"
        for name, distance in zip(("first, b", "first, c", "second, b", "second, c"), expected, strict=True)
    ]
    maps = [squeeze(a[None], x[None], retPerLayer=True)[1] for x in (b, c)]
    for bars, shares in zip(other.containers, maps, strict=True):
        # the average of a map that was brought to the images' size is that of its layer but for its sides
        assert [bar.get_height() for bar in bars] == pytest.approx([m.mean().item() for m in shares], rel=0.1)


def test_one_pair_and_the_metric_that_ships_need_no_words():
    a, b = image(64, 64), image(64, 64, seed=1)
    (axes,) = layers(a, b).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"b  {rlpips.LPIPS(weights='robust')(a[None], b[None]).item():.4f}"
    ]


def drawn_map(a, b, **options):
    return map_of(heatmap(a, b, **options)).get_array()


def drawn_bars(a, b, **options):
    return [bar.get_height() for bar in layers(a, {"b": b}, **options).axes[0].containers[0]]


def drawn_row(a, b, **options):
    return map_of(contact_sheet([a, a], [b, b], **options), "map 0").get_array()


@pytest.mark.parametrize("draw", [drawn_map, drawn_bars, drawn_row])
def test_float_tensors_in_the_unit_range_are_warned_of_and_normalized(metric, draw, recwarn):
    a, b = image(64, 64), image(64, 64, seed=1)
    a[0, 0, 0] = b[0, 0, 0] = -1
    unit_a, unit_b = (a + 1) / 2, (b + 1) / 2
    expected = draw(a, b, metric=metric)
    np.testing.assert_allclose(draw(unit_a, unit_b, metric=metric, normalize=True), expected, rtol=1e-3)
    array_b = unit_b.movedim(0, 2).numpy()
    np.testing.assert_allclose(draw(unit_a, array_b, metric=metric, normalize=True), expected, rtol=1e-3)
    draw(a, unit_b, metric=metric)  # one negative value shows the range of both
    assert not recwarn.list
    for given in ((unit_a, unit_b), (unit_a, array_b)):
        rlpips.distance(*given)
        draw(*given, metric=metric)
        said, same = (recwarn.pop(UserWarning) for _ in range(2))
        assert "pass normalize=True" in str(said.message)
        assert str(same.message) == str(said.message)
        assert same.filename == __file__
        assert not recwarn.list
    with pytest.raises(
        rlpips.ImageError, match=r"b: a float tensor with normalize=True must lie in \[0, 1\]"
    ):
        draw(unit_a, b, metric=metric, normalize=True)


def test_a_sheet_is_warned_of_only_where_no_tensor_has_a_negative_value(metric, recwarn):
    a = (images(3, 3, 64, 64) + 1) / 2
    contact_sheet(a, a, metric=metric)
    assert len(recwarn.list) == 1
    assert str(recwarn.pop(UserWarning).message).startswith("a and b are float tensors")
    contact_sheet(a, [a[0], a[1], -a[2]], metric=metric)
    assert not recwarn.list


def test_files_are_written_whole_or_not_at_all(metric, tmp_path):
    a, b = image(64, 64), image(64, 64, seed=1)
    heatmap(a, b, metric=metric, path=tmp_path / "map.pdf")
    contact_sheet([a], [b], metric=metric, path=tmp_path / "sheet.PNG")
    layers(a, b, metric=metric, path=str(tmp_path / "layers.png"))
    assert (tmp_path / "map.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "sheet.PNG").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layers.png", "map.pdf", "sheet.PNG"]
    with pytest.raises(FileNotFoundError):
        layers(a, b, metric=metric, path=tmp_path / "nowhere" / "layers.png")


def test_what_cannot_be_drawn_is_explained(metric, monkeypatch):
    a, b = images(2, 3, 64, 64), image(64, 72)
    for draw in (heatmap, layers, lambda a, b, **given: contact_sheet([a], [b], **given)):
        with pytest.raises(rlpips.ImageError, match=r"64 x 64 and 64 x 72 pixels .*; resize="):
            draw(a[0], b, metric=metric)
        with pytest.raises(rlpips.ImageError, match=r"a holds 2 images; pass one of them, such as a\[0\]"):
            draw(a, a[0], metric=metric)
        with pytest.raises(ValueError, match=r"map.gif: a figure is written as .png or .pdf"):
            draw("nothing.png", b, metric=metric, path="map.gif")
    with pytest.raises(ValueError, match="a and b must hold as many images, got 2 and 3"):
        contact_sheet(a, b, metric=metric)
    with pytest.raises(ValueError, match="there are 2 pairs, but 1 distances"):
        contact_sheet(a, a, [0.5], metric=metric)
    with pytest.raises(ValueError, match="there are no pairs of images"):
        contact_sheet([], [], metric=metric)
    with pytest.raises(ValueError, match="most=0 must be at least 1"):
        contact_sheet(a, a, metric=metric, most=0)
    with pytest.raises(TypeError, match="two folders, or two sequences"):
        contact_sheet("folder", a, metric=metric)
    with pytest.raises(ValueError, match="there is no image to compare"):
        layers(a[0], {}, metric=metric)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (heatmap, layers, contact_sheet):
        with pytest.raises(rlpips.MissingExtraError, match=r"rlpips\[plot\]"):
            draw(a, a)


def run(*arguments, capsys):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_writes_the_picture_and_prints_the_distance(folders, weights, tmp_path, capsys):
    a, b = (folder / "1.png" for folder in folders)
    options = ("--weights", weights, "--resize", "40x48", "--tile", 64)
    picture = tmp_path / "map.png"
    found = run("heatmap", a, b, "-o", picture, *options, capsys=capsys)
    assert found == run("distance", a, b, *options, capsys=capsys)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_says_what_is_wrong(folders, weights, tmp_path, capsys, monkeypatch):
    a = folders[0] / "1.png"
    picture = tmp_path / "map.png"
    Image.new("RGB", (72, 64)).save(tmp_path / "wide.png")
    for other, problem in (
        ("nothing.png", "there is no such file"),
        (tmp_path / "wide.png", "; --resize brings"),
    ):
        status, out, err = run("heatmap", a, other, "-o", picture, "--weights", weights, capsys=capsys)
        assert (status, out) == (1, "")
        assert problem in err
        assert len(err.splitlines()) == 1
    for output in ([], ["-o", "map.gif"], ["-o", str(tmp_path / "nowhere" / "map.png")]):
        with pytest.raises(SystemExit, match="2"):
            main(["heatmap", str(a), str(a), *output])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for command in (("heatmap", a, a, "-o", picture), ("compare", *folders, "--plot", picture)):
        status, _, err = run(*command, "--weights", weights, capsys=capsys)
        assert status == 1
        assert "pip install 'rlpips[plot]'" in err
    assert not picture.exists()


def test_compare_draws_what_could_be_measured(folders, weights, tmp_path, capsys):
    (folders[0] / "2.png").write_text("not an image")
    sheet = tmp_path / "sheet.png"
    command = ("compare", *folders, "--weights", weights)
    table = run(*command, capsys=capsys)
    assert table[0] == 1
    assert run(*command, "--plot", sheet, capsys=capsys) == table
    assert sheet.read_bytes().startswith(b"\x89PNG")
    sheet.unlink()
    for folder in folders:
        for k in range(2):
            (folder / f"{k}.png").unlink()
    status, _, err = run(*command, "--plot", sheet, capsys=capsys)
    assert status == 1
    assert f"no pair could be measured, so {sheet} is not written" in err
    assert not sheet.exists()
