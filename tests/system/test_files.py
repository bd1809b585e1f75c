import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import rlpips
from rlpips.system.files import write_atomically


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text is not bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "nowhere" / "file", b"new")


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "real", tmp_path / "link"
    link.symlink_to(real)
    for data in (b"made", b"replaced"):
        write_atomically(link, data)
        assert link.is_symlink()
        assert real.read_bytes() == data
    assert list(real.parent.iterdir()) == [real]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes in folders")
def test_a_pipe_is_written_into_and_stays(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()), daemon=True)
    reader.start()
    write_atomically(path, b"data")
    reader.join(10)
    assert read == [b"data"]
    assert list(tmp_path.iterdir()) == [path]
    assert path.is_fifo()


@pytest.mark.skipif(not hasattr(os, "mknod"), reason="has no devices in folders")
def test_a_device_is_written_into_and_stays(tmp_path):
    path = tmp_path / "null"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("devices are made by root alone")
    write_atomically(path, b"data")
    assert path.is_char_device()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="needs /dev/stdout")
def test_standard_output_is_written_where_it_stands(tmp_path):
    code = (
        "from pathlib import Path\n"
        "from rlpips.system.files import write_atomically\n"
        "print('before')\n"
        "write_atomically(Path('/dev/stdout'), b'data\\n')\n"
        "print('after')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rlpips.__file__).parents[1])}
    with (tmp_path / "file").open("wb") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, env=environment, check=True)
    assert (tmp_path / "file").read_text() == "before\ndata\nafter\n"


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("x" * (os.pathconf(tmp_path, "PC_NAME_MAX") - 4) + ".csv")
    write_atomically(path, b"data")
    assert path.read_bytes() == b"data"
