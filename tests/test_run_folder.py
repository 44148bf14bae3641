"""The folder of a run: new ones, what is refused, what is logged, and resuming to the same bits."""

import contextlib
import os
import re
import shlex
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
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
from experiment.settings import Recipe, Settings

SETTINGS = Settings(Recipe(widths=(4,) * 5, epochs=2, batch_size=479), dataset="digits", device="cpu", target=None)


def interrupt(history=None):
    raise KeyboardInterrupt


# New folders


def test_a_run_is_never_overwritten(tmp_path, capsys):
    for name in FILES:
        (tmp_path / name).write_text("old")
        assert_refused(capsys, [*DIGITS, "--out", tmp_path], f"--out {tmp_path} already holds a run ({name})")
        assert list(tmp_path.iterdir()) == [tmp_path / name] and (tmp_path / name).read_text() == "old"
        (tmp_path / name).unlink()


@pytest.mark.parametrize(("out", "count"), [(None, 8), ("run", 1)])
def test_each_of_eight_runs_that_start_at_once_has_a_folder_of_its_own(tmp_path, monkeypatch, out, count):
    """If all ask for the same one, a single run gets it."""
    touch, all_are_there = Path.touch, threading.Barrier(8, timeout=60)

    def wait_and_touch(*args, **options):
        all_are_there.wait()  # each has found the folder empty, or made one
        touch(*args, **options)

    def create(_):
        with contextlib.suppress(FileError):
            folder, held = create_folder(out, seed=3)
            held.release()
            return folder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "touch", wait_and_touch)
    with ThreadPoolExecutor(8) as pool:
        folders = [folder for folder in pool.map(create, range(8)) if folder]
    assert len(folders) == len(set(folders)) == count and all((folder / "log.txt").exists() for folder in folders)
    assert out or all(folder.match("runs/*-seed3*") for folder in folders)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch, capsys):
    refuse = Mock(side_effect=PermissionError(13, "Permission denied"))  # to root, who may run this, nothing is refused
    (tmp_path / "file").touch()
    for method, out in ((None, "file"), (None, "file/below"), ("touch", "."), ("mkdir", "missing/parent")):
        with monkeypatch.context() as patch:
            if method:
                patch.setattr(Path, method, refuse)
            assert run(*RUN, "--out", tmp_path / out, on_epoch=pytest.fail) == 2
        assert_one_line(capsys.readouterr(), f"{tmp_path / out} cannot be written: ", "choose another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# The log


def test_every_line_of_the_log_is_on_the_disk_before_the_run_goes_on(tmp_path, monkeypatch, capsys):
    log, synced, fsync = tmp_path / "run" / "log.txt", [], os.fsync

    def record(descriptor):
        fsync(descriptor)
        if log.exists() and os.path.samestat(os.fstat(descriptor), log.stat()):
            synced.append(log.read_text())

    monkeypatch.setattr(os, "fsync", record)
    train.train(SETTINGS, RunFolder(tmp_path / "run", pictures=False))
    lines = log.read_text().splitlines(keepends=True)
    assert synced == ["".join(lines[:count]) for count in range(1, len(lines) + 1)]
    assert capsys.readouterr().out == "".join(lines)


def test_the_log_tells_of_idle_cpus_of_full_memory_and_how_to_resume(tmp_path, monkeypatch):
    """In a folder that looks like a flag."""
    full = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
    monkeypatch.setattr(run_folder, "allowed_cpus", lambda: 2)
    monkeypatch.chdir(tmp_path)
    assert run(*RUN, "--threads", 1, "--out=-run", on_epoch=Mock(side_effect=full)) == 2
    log = Path("-run/log.txt").read_text()
    how = re.search(r"\nStopped: out of memory; .*; to resume: (.*)\n$", log)[1]
    python, script, *argv = shlex.split(how)
    assert (python, script) == (PYTHON, "train.py") and parse_args("", argv)[0].resume == "-run"
    assert "\nThreads: 1 of 2, as many as were idle, or as --threads says; " in log  # only then, as test_train.py says


# Resuming


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


def test_time_and_memory_of_a_run_are_those_of_all_its_processes(tmp_path, monkeypatch):
    seconds, peaks = [], []
    for peak, argv in ((500, [*RUN, "--out"]), (900, ["--resume"]), (700, ["--resume"])):
        monkeypatch.setattr(run_folder, "peak_memory_mb", lambda peak=peak: peak)
        assert run(*argv, tmp_path / "run", on_epoch=interrupt) == 130
        metrics = read_metrics(tmp_path / "run")
        seconds.append(metrics["total_seconds"])
        peaks.append(metrics["peak_memory_mb"])
        assert metrics["train_seconds"] < seconds[-1]
    assert 0 < seconds[0] < seconds[1] < seconds[2] and peaks == [500, 900, 900]


def test_a_finished_run_says_so_and_keeps_what_it_has(whole_run, tmp_path, capsys):
    folder = shutil.copytree(whole_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for target in ([], ["--target", "none"]):
        assert run("--resume", folder, *target, on_epoch=pytest.fail) == 0
        assert capsys.readouterr().out == f"{folder} is finished: 8 of 8 epochs; --target none trains all\n"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_that_stopped_at_its_target_goes_on_to_the_bits_of_one_that_did_not(whole_run, tmp_path, capsys):
    folder, argv = tmp_path / "run", ["--target", read_metrics(whole_run)["epochs"][0]["test_accuracy"]]
    assert run(*RUN, *argv, "--out", folder) == 0 and len(read_metrics(folder)["epochs"]) < 8
    capsys.readouterr()
    assert run("--resume", folder, on_epoch=pytest.fail) == 0
    assert re.search(r" is finished: [1-7] of 8 epochs; --target none trains all$", capsys.readouterr().out)
    torch.set_num_threads(2)  # it goes on with its own number, which decides how sums are rounded
    assert run("--resume", folder, "--target", "none") == 0 and torch.get_num_threads() == 1
    assert same(without_times(folder), without_times(whole_run))


def test_resume_finds_data_that_moved_but_refuses_other_data(mnist_dir, tmp_path, capsys):
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


def test_a_run_that_another_process_has_trained_meanwhile_is_refused(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train.train(SETTINGS, RunFolder(folder), interrupt)
    resumed = RunFolder(resume=folder)
    assert run("--resume", folder) == 0
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileError, match="another process has just trained it; resume it again") as refused:
        train.train(resumed.checkpoint.settings, resumed)
    lock(folder).release()  # neither `resumed` nor `refused` holds it
    assert {path: path.read_bytes() for path in folder.iterdir()} == before and refused


def test_a_run_in_use_is_refused_and_every_end_releases_it(whole_run, tmp_path, capsys):
    folder = tmp_path / "run"

    def resume_and_interrupt(history):
        capsys.readouterr()
        assert_refused(capsys, ["--resume", folder], f"{folder} is in use by another process")
        raise KeyboardInterrupt

    assert run(*RUN, "--out", folder, on_epoch=resume_and_interrupt) == 130
    assert run("--resume", folder, on_epoch=resume_and_interrupt) == 130
    assert run("--resume", folder) == 0
    assert same(without_times(folder), without_times(whole_run))


def test_the_best_weights_are_those_of_the_best_epoch_or_refused(whole_run, tmp_path):
    folder = RunFolder(resume=shutil.copytree(whole_run, tmp_path / "run"))
    best = Checkpoint.load(whole_run / "best.pt")
    folder.history, number = folder.checkpoint.history, len(best.history.epochs)
    assert same(folder.best_weights(), best.model)
    best.history.epochs.pop()
    best.save(folder.path / "best.pt")
    with pytest.raises(CheckpointError, match=f"found another epoch than {number};"):
        folder.best_weights()
