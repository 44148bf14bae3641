"""The folder of a run: new ones, what is refused, what is logged, and resuming to the same bits."""

import contextlib
import re
import shlex
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest import DIGITS, PYTHON, RUN, SMALL, assert_one_line, assert_refused, read_metrics, run, same, without_times

import train
from experiment import run_folder
from experiment.checkpoint import Checkpoint
from experiment.cli import parse_args
from experiment.datasets import FILES as MNIST_FILES
from experiment.errors import CheckpointError, DataError, FileError
from experiment.files import lock
from experiment.run_folder import FILES, RunFolder, create_folder

interrupt = Mock(side_effect=KeyboardInterrupt)


def test_a_run_is_never_overwritten(tmp_path, capsys):
    for name in FILES:
        (tmp_path / name).write_text("old")
        assert_refused(capsys, [*DIGITS, "--out", tmp_path], f"--out {tmp_path} already holds a run ({name})")
        assert list(tmp_path.iterdir()) == [tmp_path / name] and (tmp_path / name).read_text() == "old"
        (tmp_path / name).unlink()


@pytest.mark.parametrize(("out", "count"), [(None, 8), ("run", 1)])
def test_each_of_eight_runs_that_start_at_once_has_a_folder_of_its_own(tmp_path, monkeypatch, out, count):
    """If all ask for the same one, a single run gets it."""
    touch, all_are_there = Path.touch, threading.Barrier(8, timeout=60)  # each has found the folder empty, or made one

    def create(_):
        with contextlib.suppress(FileError):
            folder, held = create_folder(out, seed=3)
            held.release()
            return folder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "touch", lambda *args, **options: all_are_there.wait() < 8 and touch(*args, **options))
    with ThreadPoolExecutor(8) as pool:
        folders = [folder for folder in pool.map(create, range(8)) if folder]
    assert len(folders) == len(set(folders)) == count and all((folder / "log.txt").exists() for folder in folders)
    assert out or all(folder.match("runs/*-seed3*") for folder in folders)


def test_a_folder_that_cannot_be_written_or_locked_is_refused_and_left_as_it_was(tmp_path, monkeypatch, capsys):
    refuse = Mock(side_effect=OSError(5, "Input/output error"))  # to root, who may run this, no permission is refused
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").touch()
    faults = [("", "own/notes.txt"), ("", "own/notes.txt/below"), ("pathlib.Path.touch", "own")]
    faults += [("pathlib.Path.mkdir", "missing/parent")]
    faults += [("fcntl.flock", "new"), ("fcntl.flock", "own")] if sys.platform != "win32" else []
    for function, out in faults:
        with monkeypatch.context() as patch:
            if function:
                patch.setattr(function, refuse)
            assert run(*RUN, "--out", tmp_path / out, on_epoch=pytest.fail) == 2
        hint = "restore its permissions" if function == "fcntl.flock" else "choose another folder"
        assert_one_line(capsys.readouterr(), f"{tmp_path / out} cannot be written: ", hint)
        assert {*tmp_path.rglob("*")} == {tmp_path / "own", tmp_path / "own" / "notes.txt"}


def test_the_log_tells_of_idle_cpus_of_full_memory_and_how_to_resume(tmp_path, monkeypatch, capsys):
    """In a folder that looks like a flag."""
    monkeypatch.setattr(run_folder, "allowed_cpus", lambda: 2)
    monkeypatch.chdir(tmp_path)
    assert run(*RUN, "--threads", 1, "--out=-run", on_epoch=lambda history: torch.empty(2**60)) == 2
    assert_one_line(capsys.readouterr(), "out of memory; try a smaller --batch-size")
    log = Path("-run/log.txt").read_text()
    how = re.search(r"\nStopped: out of memory; .*; to resume: (.*)\n$", log)[1]
    python, script, *argv = shlex.split(how)
    assert (python, script) == (PYTHON, "train.py") and parse_args("", argv)[0].resume == "-run"
    assert "\nThreads: 1 of 2, as many as were idle, or as --threads says; " in log  # only then, as test_train.py says


def test_a_run_without_a_first_checkpoint_is_to_be_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.Checkpoint, "save", Mock(side_effect=FileError("full")))
    assert run(*RUN, "--out", tmp_path / "run") == 2
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log == f"Stopped: full; remove {tmp_path / 'run'} and start again\n"


def test_early_stop_and_holdout_resume_to_the_same_bits(tmp_path, monkeypatch, capsys):
    """Interrupted after every epoch; the target is met before the last of eight; the first shows some images twice."""
    monkeypatch.setattr(train.TrainLoader, "FEWEST", 3000)
    argv, folder = [*RUN, "--holdout", 200], tmp_path / "run"
    assert run(*argv, "--out", tmp_path / "long") == 0
    accuracies = [epoch["holdout_accuracy"] for epoch in read_metrics(tmp_path / "long")["epochs"]]
    argv += ["--target", max(accuracies[:-1])]
    assert run(*argv, "--out", tmp_path / "whole") == 0
    metrics = read_metrics(tmp_path / "whole")
    count = len(metrics["epochs"])
    assert count == metrics["target_epoch"] == 1 + accuracies.index(max(accuracies[:-1])) < 8
    assert run(*argv, "--out", folder, on_epoch=interrupt) == 130
    for _ in range(count - 1):
        assert run("--resume", folder, on_epoch=interrupt) == 130
        assert f"Interrupted; to resume: {PYTHON} train.py --resume {folder}\n" in capsys.readouterr().out
        assert "test_accuracy" not in read_metrics(folder)
    assert run("--resume", folder, on_epoch=pytest.fail) == 0
    assert same(without_times(folder), without_times(tmp_path / "whole"))
    assert "test_accuracy" in read_metrics(folder)
    resumed = re.findall(r"^Resumed after epoch (\d+), torch ", (folder / "log.txt").read_text(), re.M)
    assert resumed == [str(number) for number in range(1, count + 1)]


def test_a_run_in_use_is_refused_and_its_time_and_memory_are_those_of_all_its_processes(tmp_path, monkeypatch, capsys):
    """Every end releases it."""
    folder, seconds, peaks = tmp_path / "run", [], []

    def resume_and_interrupt(history):
        capsys.readouterr()
        assert_refused(capsys, ["--resume", folder], f"{folder} is in use by another process")
        raise KeyboardInterrupt

    for peak, argv in ((500, [*RUN, "--out"]), (900, ["--resume"]), (700, ["--resume"])):
        monkeypatch.setattr(run_folder, "peak_memory_mb", lambda peak=peak: peak)
        assert run(*argv, folder, on_epoch=resume_and_interrupt) == 130
        metrics = read_metrics(folder)
        seconds.append(metrics["total_seconds"])
        peaks.append(metrics["peak_memory_mb"])
        assert metrics["train_seconds"] < seconds[-1]
    assert 0 < seconds[0] < seconds[1] < seconds[2] and peaks == [500, 900, 900]


def test_a_run_that_stopped_at_its_target_goes_on_to_the_bits_of_one_that_did_not(whole_run, tmp_path, capsys):
    """A run that is finished says so and keeps what it has."""

    def assert_finished(epochs, *argv):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        capsys.readouterr()
        assert run("--resume", folder, *argv, on_epoch=pytest.fail) == 0
        assert capsys.readouterr().out == f"{folder} is finished: {epochs} of 8 epochs (--target none: all)\n"
        assert {path: path.read_bytes() for path in folder.iterdir()} == before

    folder, target = tmp_path / "run", read_metrics(whole_run)["epochs"][0]["test_accuracy"]
    assert run(*RUN, "--target", target, "--out", folder) == 0
    assert_finished(epochs=1)
    torch.set_num_threads(2)  # it goes on with its own number, which decides how sums are rounded
    assert run("--resume", folder, "--target", "none") == 0 and torch.get_num_threads() == 1
    assert same(without_times(folder), without_times(whole_run))
    assert_finished(8)
    assert_finished(8, "--target", "none")


def test_resume_finds_moved_data_and_refuses_other_data_and_what_was_trained_meanwhile(mnist_dir, tmp_path, capsys):
    folder, moved = tmp_path / "run", tmp_path / "moved"
    argv = ["--data-dir", mnist_dir, *SMALL, "--batch-size", 70, "--epochs", 2, "--out", folder]
    assert run(*argv, on_epoch=interrupt) == 130
    mnist_dir.rename(moved)
    resumed = RunFolder(resume=folder)
    with pytest.raises(DataError, match="does not exist"):
        train.train(resumed.checkpoint.settings, resumed)
    lock(folder).release()  # `resumed` holds none
    labels, argv = moved / MNIST_FILES[3], ["--resume", folder, "--data-dir", moved]
    content = labels.read_bytes()
    labels.write_bytes(content[:-1] + b"\0")
    capsys.readouterr()
    assert_refused(capsys, argv, "found other data (moved (MNIST format), SHA-256 ", "expected small (MNIST")
    labels.write_bytes(content)
    assert run(*argv) == 0 and len(read_metrics(folder)["epochs"]) == 2
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileError, match="another process has just trained it; resume it again") as refused:
        train.train(replace(resumed.checkpoint.settings, data_dir=str(moved)), resumed)
    lock(folder).release()  # neither `resumed` nor `refused` holds it
    assert {path: path.read_bytes() for path in folder.iterdir()} == before and refused


def test_the_best_weights_are_those_of_the_best_epoch_or_refused(whole_run, tmp_path):
    folder = RunFolder(resume=shutil.copytree(whole_run, tmp_path / "run"))
    best = Checkpoint.load(whole_run / "best.pt")
    folder.history, number = folder.checkpoint.history, len(best.history.epochs)
    assert same(folder.best_weights(), best.model)
    best.history.epochs.pop()
    best.save(folder.path / "best.pt")
    with pytest.raises(CheckpointError, match=f"found another epoch than {number};"):
        folder.best_weights()
