import json

from commands import ROOT, run
from PIL import Image


def test_files_that_are_no_images_are_counted_and_left_out(weights, capsys, tmp_path):
    for name in ("cat.png", "cat-blurred.png"):
        (tmp_path / name).write_bytes((ROOT / "examples" / name).read_bytes())
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text("Prose, and no picture")
    status, out, err = run("pairs", tmp_path, "--weights", weights, capsys=capsys)
    assert (status, len(out.splitlines())) == (0, 2)
    named = ", ".join(str(tmp_path / f"{name}.txt") for name in "abc")
    assert err == f"rlpips: skipped 4 files that are not images: {named}, ...\n"
    assert run("pairs", tmp_path, "--json", "--weights", weights, capsys=capsys)[1].count(".txt") == 4
    other = tmp_path.parent / f"{tmp_path.name}-other"
    other.mkdir()
    for name in ("cat.png", "a.txt"):
        (other / name).write_bytes((tmp_path / name).read_bytes())
    (other / "cat-blurred.png").write_text("no picture, where its partner is one")
    status, _, err = run("compare", tmp_path, other, "--weights", weights, capsys=capsys)
    assert status == 1
    assert f"{other / 'cat-blurred.png'}: not an image" in err
    assert "skipped 5 files that are not images" in err


def test_failures_of_a_kind_are_told_on_one_line_and_all_in_the_json(weights, capsys, tmp_path):
    for k in range(7):
        Image.new("RGB", (64 + k, 64)).save(tmp_path / f"{k}.png")
    (tmp_path / "8.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    status, out, err = run("pairs", tmp_path, "--all", "--json", "--weights", weights, capsys=capsys)
    assert status == 1
    sizes, damaged = err.splitlines()
    assert "the images differ in size" in sizes
    second, third = (f"{tmp_path / '0.png'} and {tmp_path / f'{k}.png'}" for k in (2, 3))
    assert f"(and 20 more: {second}, {third}, ...)" in sizes
    assert str(tmp_path / "8.png") in damaged
    assert len(json.loads(out)["failed"]) == 22
