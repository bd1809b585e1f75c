import pytest
from PIL import Image

from rlpips.scoring.file_pairs import all_pairs, consecutive_pairs, pairs_by_name


def folder(path, *names):
    """Make a folder of images, or of text where a name ends in .txt."""
    path.mkdir()
    for name in names:
        if name.endswith(".txt"):
            (path / name).write_text("no picture")
        else:
            Image.new("RGB", (8, 8)).save(path / name)
    return path


def test_images_of_the_same_name_are_paired_and_the_rest_is_named(tmp_path):
    one = folder(tmp_path / "one", "a.png", "b.png", "c.png", "same.txt", "alone.txt")
    two = folder(tmp_path / "two", "a.png", "b.png", "d.png", "same.txt")
    (two / "b.png").write_text("no picture")  # but its partner is one, so measuring must tell
    (one / "sub").mkdir()
    (one / ".hidden").mkdir()
    found = pairs_by_name(one, two)
    assert found.pairs == [(one / name, two / name) for name in ("a.png", "b.png")]
    assert [(failure.file, failure.problem) for failure in found.failures] == [
        (one / "c.png", f"has no partner in {two}"),
        (two / "d.png", f"has no partner in {one}"),
        (one / "sub", "is a subfolder, and its files are not compared"),
    ]
    assert set(found.left_out) == {one / "same.txt", two / "same.txt", one / "alone.txt"}


def test_images_of_a_folder_are_paired_in_the_order_of_names(tmp_path):
    place = folder(tmp_path / "one", "c.png", "a.png", "b.png", "notes.txt")
    a, b, c = (place / f"{name}.png" for name in "abc")
    assert consecutive_pairs(place).pairs == [(a, b), (b, c)]
    assert all_pairs(place).pairs == [(a, b), (a, c), (b, c)]
    assert consecutive_pairs(place).left_out == all_pairs(place).left_out == [place / "notes.txt"]


@pytest.mark.parametrize("pair", [consecutive_pairs, all_pairs, lambda path: pairs_by_name(path, path)])
def test_a_folder_that_is_not_there_is_named(tmp_path, pair):
    with pytest.raises(NotADirectoryError, match="nowhere"):
        pair(tmp_path / "nowhere")
