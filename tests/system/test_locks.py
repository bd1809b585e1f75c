import errno
import os
import threading
import time

import pytest
from users import as_nobody, needs_root

from rlpips.system import locks, shared_folders

fcntl = pytest.importorskip("fcntl", reason="Windows locks in another way")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.05)


def meet(path, caplog):
    """Let a thread hold the lock until this one, which asks for it, has said that it waits."""
    holds = threading.Event()
    waited = []

    def hold():
        deadline = time.monotonic() + 10
        with locks.lock(path, "fetches alexnet"):
            holds.set()
            while "waiting for" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.01)
            waited.append("waiting for" in caplog.text)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(10)
    with locks.lock(path, "fetches alexnet"):
        assert waited == [True]
    thread.join()


def test_who_waits_for_a_lock_says_so(tmp_path, impatient, caplog):
    with locks.lock(tmp_path / "alexnet.lock", "fetches alexnet"):
        pass
    assert not caplog.text
    meet(tmp_path / "alexnet.lock", caplog)
    assert caplog.messages == [
        f"waiting for another process that fetches alexnet and holds {tmp_path / 'alexnet.lock'}"
    ]
    assert caplog.records[0].levelname == "WARNING"  # which the command line shows


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_flock_a_file_is_the_lock(tmp_path, impatient, caplog, monkeypatch, code):
    def flock(handle, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    meet(tmp_path / "alexnet.lock", caplog)
    assert f"the file system of {tmp_path} has no flock; alexnet.lock.held takes its place" in caplog.messages
    assert "if no such process runs, delete that file" in caplog.text
    assert not (tmp_path / "alexnet.lock.held").exists()


@pytest.mark.parametrize("folder_mode", [0o777, 0o775, 0o755, 0o700])
def test_the_lock_is_for_all_who_may_write_the_folder(tmp_path, folder_mode):
    tmp_path.chmod(folder_mode)
    umask = os.umask(0o077)
    try:
        with locks.lock(tmp_path / "lock", "works"):
            pass
    finally:
        os.umask(umask)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == folder_mode & 0o666


@needs_root
def test_another_user_takes_the_lock_or_is_told_why_not(open_folder):
    with locks.lock(open_folder / "ours", "works"):
        pass
    (open_folder / "old").touch(0o644)
    (open_folder / "closed").mkdir(mode=0o755)
    assert shared_folders.owner_note(open_folder / "old") == " (it belongs to root)"
    with as_nobody():
        with locks.lock(open_folder / "ours", "works"):
            pass
        with pytest.raises(PermissionError) as caught, locks.lock(open_folder / "old", "works"):
            pass
        assert str(caught.value) == (
            f"{open_folder / 'old'} cannot be opened for writing: permission denied (it belongs to root); "
            "delete it if no process of rlpips runs, or choose a folder of your own (for weights: RLPIPS_HOME)"
        )
        closed = open_folder / "closed" / "lock"
        with pytest.raises(PermissionError) as caught, locks.lock(closed, "works"):
            pass
        assert str(caught.value) == (
            f"{closed} cannot be opened for writing: permission denied; "
            "choose a folder of your own (for weights: RLPIPS_HOME)"
        )
