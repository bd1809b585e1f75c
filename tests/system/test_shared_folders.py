import os
import time

from rlpips.system import shared_folders


def test_old_leftovers_are_removed_and_new_ones_kept(tmp_path):
    for name in ("a.old", "a.new", "b.old"):
        (tmp_path / name).write_text("x")
        (tmp_path / f"{name}.folder" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere" / "sub").mkdir(parents=True)
    (tmp_path / "a.old.link").symlink_to(tmp_path / "elsewhere")
    long_ago = time.time() - shared_folders.ABANDONED - 60
    for path in [*tmp_path.glob("*.old*"), tmp_path / "elsewhere"]:
        os.utime(path, (long_ago, long_ago), follow_symlinks=False)
    shared_folders.remove_abandoned(tmp_path, "a.*", "nothing.*")
    shared_folders.remove_abandoned(tmp_path / "no such folder", "a.*")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.new", "a.new.folder", "b.old", "b.old.folder", "elsewhere"}
    assert (tmp_path / "elsewhere" / "sub").exists()
