"""Files that are whole at every moment, and locks."""

import errno
import os
import subprocess
import sys

import pytest
from conftest import ROOT, RUN, assert_one_line, run

from experiment.errors import FileError
from experiment.files import lock, replace_file, write_json


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot sync a folder")
def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace

    def record_fsync(descriptor):
        state = os.fstat(descriptor)
        steps.append((state.st_ino, None if os.path.samestat(state, tmp_path.stat()) else state.st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", lambda *args: steps.append("replace") or replace(*args))
    path = tmp_path / "file"
    replace_file(path, b"content")
    assert steps == [(path.stat().st_ino, len(b"content")), "replace", (tmp_path.stat().st_ino, None)]
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, step):
    def fail(*args):
        raise OSError(28, "No space left on device")

    path = tmp_path / "file.json"
    write_json(path, {"loss": 0.5})
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(FileError, match="file.json cannot be written: No space left on device"):
        write_json(path, {"loss": 0.25})
    with pytest.raises(ValueError):  # JSON has no NaN
        write_json(path, {"loss": float("nan")})
    assert path.read_text() == '{\n  "loss": 0.5\n}\n' and list(tmp_path.iterdir()) == [path]


def test_what_another_process_uses_is_locked_until_that_process_is_killed(tmp_path):
    hold = "import sys; from experiment.files import lock; held = [*map(lock, sys.argv[1:])]; print('held', flush=True)"
    paths, options = (tmp_path, tmp_path / "results.json"), {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", f"{hold}; input()", *paths], cwd=ROOT, **options) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            for path in paths:
                with pytest.raises(FileError) as refused:
                    lock(path)
                assert str(refused.value) == f"{path} is in use by another process; wait until it ends"
        finally:
            process.kill()
    for path in paths:
        held = lock(path)
        with pytest.raises(FileError, match="in use"):  # within one process too
            lock(path)
        held.release()


def test_a_start_whose_lock_is_refused_leaves_nothing(tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")  # not there on Windows

    def refuse(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").touch()
    for name, left in (("new", []), ("own", ["notes.txt"])):
        assert run(*RUN, "--out", tmp_path / name, on_epoch=pytest.fail) == 2
        assert_one_line(capsys.readouterr(), f"{name} cannot be written: Input/output error")
        assert [path.name for path in tmp_path.glob(f"{name}/*")] == left
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_without_locks_training_goes_on_with_a_warning(tmp_path, monkeypatch, capsys, error):
    """As network file systems refuse them."""
    fcntl = pytest.importorskip("fcntl")  # not there on Windows

    def refuse(*args):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert run(*RUN, "--epochs", 1, "--out", tmp_path / "run") == 0
    assert f"Warning: {tmp_path / 'run'} cannot be locked ({os.strerror(error)})" in capsys.readouterr().out
    assert run("--resume", tmp_path / "run") == 0
