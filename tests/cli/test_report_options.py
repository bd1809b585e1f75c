import pytest
from commands import evaluate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "linf:4/255"], "'linf:4/255' is not an attack"),
        (["--attack", "linf:1/0:3"], "'linf:1/0:3' is not an attack"),
        (["--attack", "linf:1e999:3"], "EPS must lie in 0 ... 1e6"),
        (["--attack", "linf:1e99999999:3"], "EPS must lie in 0 ... 1e6"),
        (["-o", "nowhere/report.json"], "its folder does not exist"),
        (["--plot", "figure.jpg"], "must end in .png or .pdf"),
        (["--save-images", "nowhere/images"], "its folder does not exist"),
        (["--seed", "-1"], "-1 is negative"),
        (["--limit", "0"], "0 is not a positive number"),
    ],
)
def test_wrong_usage_ends_with_2(data, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        evaluate("2afc", "--data", data, *arguments, capsys=capsys)
    assert message in capsys.readouterr().err
