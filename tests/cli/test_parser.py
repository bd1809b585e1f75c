import subprocess
import sys

import pytest
from commands import ENVIRONMENT

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
