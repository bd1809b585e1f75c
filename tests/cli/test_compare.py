import numpy as np
from commands import expected, run


def test_compare_measures_partners_and_names_what_it_could_not(folders, weights, capsys):
    one, two = folders
    status, out, err = run("compare", one, two, "--weights", weights, capsys=capsys)
    distances = [expected(one / f"{i}.png", two / f"{i}.png", weights) for i in range(2)]
    lines = out.splitlines()
    assert lines[:2] == [f"{i}.png  {distance:.4f}" for i, distance in enumerate(distances)]
    error = abs(distances[0] - distances[1]) / 2
    mean = np.mean(distances)  # of two, which is the median
    assert lines[2] == f"2 pairs, mean {mean:.4f}, standard error {error:.4f}, median {mean:.4f}"
    assert len(lines) == 3
    assert status == 1
    assert f"rlpips: skipped 1 file that is not an image: {one / 'notes.txt'}" in err
    assert f"rlpips: {two / 'extra.png'} has no partner in {one}" in err
    assert "2.png" in err
    assert "64 x 64 and 64 x 72 pixels (height x width); --resize" in err
    assert "hidden" not in out + err


def test_compare_resizes(folders, weights, capsys):
    one, two = folders
    (one / "notes.txt").unlink()
    (two / "extra.png").unlink()
    status, out, err = run("compare", one, two, "--weights", weights, "--resize", "40x48", capsys=capsys)
    assert (status, err) == (0, "")
    value = expected(one / "2.png", two / "2.png", weights, resize=(40, 48))
    assert f"2.png  {value:.4f}" in out
    assert run("compare", one, two, "--weights", weights, "--resize", "48", capsys=capsys)[0] == 0


def test_compare_names_folders_and_other_suffixes(folders, weights, capsys):
    one, two = folders
    (two / "extra.png").unlink()
    for name in ("0", "1"):
        (two / f"{name}.png").rename(two / f"{name}.jpg")
    (one / "more").mkdir()
    (one / "more" / "x.png").write_bytes((one / "0.png").read_bytes())
    status, _, err = run("compare", one, two, "--resize", "64", "--weights", weights, capsys=capsys)
    assert status == 1
    hint = "but a file there has the same name and another suffix"
    assert f"{one / '0.png'} has no partner in {two}, {hint} (and 1 more: {one / '1.png'})" in err
    assert f"{two / '0.jpg'} has no partner in {one}, {hint} (and 1 more: {two / '1.jpg'})" in err
    assert f"{one / 'more'} is a subfolder, and its files are not compared" in err
