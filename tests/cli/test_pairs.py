import pytest
from commands import ROOT, expected, run


@pytest.mark.parametrize("batch_size", [1, 3])
def test_pairs(folders, weights, capsys, batch_size):
    one, _ = folders
    (one / "notes.txt").unlink()
    options = ["--weights", weights, "--batch-size", batch_size]
    _, out, _ = run("pairs", one, *options, capsys=capsys)
    assert [line.split()[:2] for line in out.splitlines()[:-1]] == [["0.png", "1.png"], ["1.png", "2.png"]]
    status, out, _ = run("pairs", one, "--all", *options, capsys=capsys)
    pairs = [("0", "1"), ("0", "2"), ("1", "2")]
    assert out.splitlines()[:3] == [
        f"{a}.png  {b}.png  {expected(one / f'{a}.png', one / f'{b}.png', weights):.4f}" for a, b in pairs
    ]
    assert status == 0


def test_an_unreadable_file_is_named_once(folders, weights, capsys):
    one, _ = folders
    whole = (one / "0.png").read_bytes()
    (one / "3.png").write_bytes(whole[: len(whole) // 2])
    status, out, err = run("pairs", one, "--all", "--weights", weights, capsys=capsys)
    assert status == 1
    assert len(out.splitlines()) == 4
    assert err.count("3.png") == 1
    assert "damaged" in err


def test_pairs_of_the_examples_are_measured(weights, capsys):
    status, out, err = run("pairs", ROOT / "examples", "--weights", weights, capsys=capsys)
    assert status == 0
    assert "files that are not images: " in err
    assert len(out.splitlines()) == len(list((ROOT / "examples").glob("*.png")))
