"""Files that are whole at every moment, and locks."""

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import DEFAULT, Mock

import pytest
from conftest import ROOT, RUN, run

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
    path = tmp_path / "file.json"
    write_json(path, {"loss": 0.5})
    monkeypatch.setattr(os, step, Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(FileError, match="file.json cannot be written: No space left on device"):
        write_json(path, {"loss": 0.25})
    with pytest.raises(ValueError):  # JSON has no NaN
        write_json(path, {"loss": float("nan")})
    assert path.read_text() == '{\n  "loss": 0.5\n}\n' and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes among its files")
def test_only_a_regular_file_is_replaced_and_of_a_link_what_it_points_to(tmp_path):
    target, link, pipe, folder = (tmp_path / name for name in ("target", "link", "pipe", "folder"))
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(FileError, match=f"^{path} is not a regular file; name another$"):
            replace_file(path, b"new")
    link.symlink_to(target)
    for content in (b"new", b"newer"):  # at first there is no target
        replace_file(link, content)
        assert link.is_symlink() and target.read_bytes() == content
    assert pipe.is_fifo() and folder.is_dir() and {*tmp_path.iterdir()} == {target, link, pipe, folder}


def test_two_threads_that_replace_a_file_at_once_leave_one_of_the_whole_contents(tmp_path, monkeypatch):
    replace, both_are_there, contents = os.replace, threading.Barrier(2, timeout=60), (b"short", b"longer" * 1000)
    monkeypatch.setattr(os, "replace", lambda *paths: both_are_there.wait() < 2 and replace(*paths))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(replace_file, [tmp_path / "file"] * 2, contents)) == [None, None]
    assert (tmp_path / "file").read_bytes() in contents and [*tmp_path.iterdir()] == [tmp_path / "file"]


def test_a_replacement_that_is_refused_is_tried_once_more(tmp_path, monkeypatch):
    """Windows refuses it while a virus scanner reads the file."""
    path, refused, pauses = tmp_path / "file", PermissionError(13, "Permission denied"), []
    replace_file(path, b"old")
    monkeypatch.setattr("time.sleep", pauses.append)
    monkeypatch.setattr(os, "replace", Mock(wraps=os.replace, side_effect=[refused, DEFAULT, refused, refused]))
    replace_file(path, b"new")
    with pytest.raises(FileError, match="file cannot be written: Permission denied; its previous content is unchanged"):
        replace_file(path, b"newer")
    assert path.read_bytes() == b"new" and [*tmp_path.iterdir()] == [path] and len(pauses) == 2


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


@pytest.mark.parametrize("codes", ["ENOLCK EINVAL", "EOPNOTSUPP ENOTSUP", "ENOSYS ENOSYS"])
def test_without_locks_and_fsync_training_goes_on_with_a_warning_each(tmp_path, monkeypatch, capsys, codes):
    """As network file systems refuse them."""
    pytest.importorskip("fcntl")  # not there on Windows
    for function, error in zip(("fcntl.flock", "os.fsync"), (getattr(errno, code) for code in codes.split())):
        monkeypatch.setattr(function, Mock(side_effect=OSError(error, os.strerror(error))))
    assert run(*RUN, "--epochs", 1, "--out", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    for text in ("cannot be locked (", "is on a file system without fsync; "):
        assert printed.count(f"Warning: {tmp_path / 'run'} {text}") == 1
    assert run("--resume", tmp_path / "run") == 0
