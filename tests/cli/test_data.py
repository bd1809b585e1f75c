import pytest

from rlpips.cli import main


def test_data_download_is_offered(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["data", "download", "nonsense", "folder"])
    assert "bapps-val" in capsys.readouterr().err
    assert main(["data", "download", "bapps-val", "/nonexistent/folder"]) == 1
    assert "rlpips: error: " in capsys.readouterr().err
