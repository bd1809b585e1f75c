import subprocess
import sys

import pytest
from commands import BLURRED, CAT, ENVIRONMENT, run

import rlpips
from rlpips.backbones.architectures import ARCHITECTURES
from rlpips.cli import main
from rlpips.cli.parser import make_parser


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["distance", "a.png"],
        ["distance", "a.png", "b.png", "--net", "resnet"],
        ["distance", "a.png", "b.png", "--resize", "big"],
        ["distance", "a.png", "b.png", "--resize", "0"],
        ["distance", "a.png", "b.png", "--batch-size", "-1"],
        ["distance", "a.png", "b.png", "--csv", "--json"],
        ["weights"],
        ["weights", "download"],
    ],
)
def test_wrong_usage_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: rlpips" in capsys.readouterr().err


def test_errors_are_one_line_and_end_with_1(weights, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (
            ["distance", "nothing.png", CAT, "--weights", weights],
            "rlpips: nothing.png: there is no such file",
        ),
        (
            ["distance", CAT, BLURRED, "--weights", "nothing.pth"],
            "rlpips: error: 'nothing.pth' is neither a file",
        ),
        (["distance", CAT, BLURRED, "--weights", weights, "--device", "nonsense"], "rlpips: error: "),
        (["compare", tmp_path / "a", tmp_path], "there is no such folder"),
        (["pairs", CAT], "not a folder"),
        (["pairs", tmp_path / "empty"], "there are no two images to compare"),
        (["weights", "path", "alexnett"], "did you mean 'alexnet'?"),
        (["weights", "path", "squeezenet1_1"], "rlpips weights download squeezenet1_1"),
    ):
        status, _, err = run(*arguments, capsys=capsys)
        assert status == 1
        assert message in err
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1


def test_help_and_version_need_no_torch():
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['numpy'] = sys.modules['PIL'] = None\n"
        "from rlpips.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    for arguments, start in ((["--version"], f"rlpips {rlpips.__version__}"), (["--help"], "usage: rlpips")):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(start)


def test_every_net_and_version_is_a_choice():
    commands = next(action.choices for action in make_parser()._actions if action.choices)
    choices = {action.dest: action.choices for action in commands["distance"]._actions}
    assert set(choices["net"]) == set(ARCHITECTURES)
    for version in choices["version"]:
        assert rlpips.LPIPS(pnet_rand=True, version=version).version == version
