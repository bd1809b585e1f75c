import re

from commands import BLURRED, CAT, ROOT, expected, run


def test_distance_prints_one_number(weights, capsys):
    status, out, err = run("distance", CAT, BLURRED, "--weights", weights, capsys=capsys)
    assert (status, err) == (0, "")
    assert out == f"{expected(CAT, BLURRED, weights):.4f}\n"


def test_the_first_command_of_the_readme_prints_what_it_says(capsys):
    readme = (ROOT / "README.md").read_text()
    command, number = re.search(
        r"rlpips (distance examples/\S+ examples/\S+)\n```\n\nprints `([\d.]+)`", readme
    ).groups()
    name, *images = command.split()
    assert run(name, *(ROOT / image for image in images), capsys=capsys) == (0, f"{number}\n", "")


def test_the_documented_number(real_weights, shared, capsys):
    folder = shared / "images" / "lpips-examples"
    ref, p0, p1 = (folder / f"ex_{name}.png" for name in ("ref", "p0", "p1"))
    assert run("distance", ref, p0, "--weights", "standard", capsys=capsys) == (0, "0.7219\n", "")
    assert run("distance", ref, p1, "--net", "vgg", "--weights", "standard", capsys=capsys)[1] == "0.4217\n"


def test_the_version_of_the_metric_is_an_option(real_weights, capsys):
    new = run("distance", CAT, BLURRED, "--weights", "standard", capsys=capsys)[1]
    old = run("distance", CAT, BLURRED, "--weights", "standard", "--version", "0.0", capsys=capsys)[1]
    assert float(new) > 0
    assert float(old) > 0
    assert new != old
