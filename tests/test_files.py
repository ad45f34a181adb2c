"""A file is whole or not there, and one program at a time has a folder."""

import os
import subprocess
import sys

import pytest

from recbole_jepa4rec.base.files import atomic_write, locked, remove_abandoned
from recbole_jepa4rec.text.tensor_cache import TensorCache


def test_the_file_appears_only_at_the_end(tmp_path):
    path = tmp_path / "result.json"
    with atomic_write(path, "w") as file:
        file.write("größe 🔪")
        file.flush()
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "größe 🔪"
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "weights"
    path.write_bytes(b"old")

    def write_half():
        with atomic_write(path) as file:
            file.write(b"half of the ne")
            raise failure

    with pytest.raises(type(failure)):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights"]


def test_a_failing_flush_leaves_no_file(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"), atomic_write(tmp_path / "weights") as file:
        file.write(b"all of it")
    assert os.listdir(tmp_path) == []


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "shared") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o640


def test_other_modes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="mode 'ab'"), atomic_write(tmp_path / "log", "ab"):
        pass


def test_a_folder_is_held_until_the_last_that_inherits_it_ends(tmp_path, capsys):
    folder = tmp_path / "a" / "b"
    with locked(folder, "search") as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, pass_fds=[lock])
        message = f"run_dir {str(folder)!r} is in use by another search"
        with pytest.raises(ValueError, match=message), locked(folder, "search"):
            pass
    with pytest.raises(ValueError, match=message), locked(folder, "search", patience=0.01):
        pass
    assert capsys.readouterr().err == f"waiting for the runs under way in {folder} to end\n"
    child.communicate(b"\n")
    with locked(folder, "search", patience=60):
        pass
    assert os.listdir(folder) == [".lock"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    message = f"run_dir '{tmp_path}/file/x' cannot be made: Not a directory"
    with pytest.raises(ValueError, match=message), locked(tmp_path / "file" / "x", "search"):
        pass


class TestAbandoned:
    NAME = f".{'0' * 32}.partial"

    @pytest.fixture
    def old(self, tmp_path):
        """A file that was last written an hour ago."""
        path = tmp_path / self.NAME
        path.write_bytes(b"half")
        os.utime(path, (0, os.stat(path).st_mtime - 3600))
        return path

    def test_what_a_killed_process_left_in_a_shared_folder_goes(self, old):
        (old.parent / "sentences.partial").write_bytes(b"somebody's")
        remove_abandoned(old.parent, shared=True)
        assert os.listdir(old.parent) == ["sentences.partial"]

    def test_what_has_just_begun_stays_there(self, old):
        os.utime(old)
        remove_abandoned(old.parent, shared=True)
        assert old.exists()
        remove_abandoned(old.parent)
        assert not old.exists()

    def test_what_somebody_writes_stays_there(self, tmp_path):
        with atomic_write(tmp_path / "vectors") as file:
            os.utime(file.name, (0, 0))
            remove_abandoned(tmp_path, shared=True)
            file.write(b"whole")
        assert (tmp_path / "vectors").read_bytes() == b"whole"

    def test_a_cache_that_is_read_is_cleaned(self, old):
        assert TensorCache(old.parent, "sentences", "0" * 64).read() is None
        assert os.listdir(old.parent) == []
