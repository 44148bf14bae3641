"""The folder of a run: new ones, what is refused, and resuming to the same bits."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import (
    DIGITS,
    PYTHON,
    ROOT,
    RUN,
    SMALL,
    assert_one_line,
    assert_refused,
    read_metrics,
    run,
    same,
    without_times,
)

import train
from experiment.datasets import FILES as MNIST_FILES
from experiment.errors import FileError
from experiment.files import lock
from experiment.plots import PICTURES
from experiment.run_folder import FILES, RunFolder, create_folder
from experiment.settings import Recipe, Settings


def interrupt(history):
    raise KeyboardInterrupt


# New folders


@pytest.mark.parametrize("name", FILES)
def test_a_run_is_never_overwritten(tmp_path, capsys, name):
    (tmp_path / name).write_text("old")
    assert_refused(capsys, [*DIGITS, "--out", tmp_path], f"--out {tmp_path} already holds a run ({name})")
    assert list(tmp_path.iterdir()) == [tmp_path / name] and (tmp_path / name).read_text() == "old"


def create_at_once(out, count=8):
    """The folders, or errors, of `count` runs that start at the same moment."""
    barrier = threading.Barrier(count, timeout=60)

    def create():
        barrier.wait()
        try:
            folder, held = create_folder(out, seed=3)
            held.release()
            return folder
        except FileError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(create) for _ in range(count)]]


def test_runs_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = create_at_once(out=None)
    assert len(set(folders)) == 8 and all((folder / "log.txt").exists() for folder in folders)
    assert all(folder.match("runs/*-seed3*") for folder in folders)


def test_one_of_several_runs_gets_the_folder_that_all_ask_for(tmp_path, monkeypatch):
    touch, all_are_there = Path.touch, threading.Barrier(8, timeout=60)

    def wait_and_touch(*args, **options):
        all_are_there.wait()  # each has found the folder empty
        touch(*args, **options)

    monkeypatch.setattr(Path, "touch", wait_and_touch)
    assert sum(isinstance(result, Path) for result in create_at_once(tmp_path / "run")) == 1


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert run(*RUN, "--out", out, on_epoch=pytest.fail) == 2
        assert_one_line(capsys.readouterr(), f"{out} cannot be written")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_a_folder_that_the_system_refuses(tmp_path, monkeypatch, capsys, error):
    def refuse(*args, **options):
        raise error

    monkeypatch.setattr(Path, "touch", refuse)  # the tests may run as root, to whom nothing is refused
    assert run(*RUN, "--out", tmp_path, on_epoch=pytest.fail) == 2
    assert_one_line(
        capsys.readouterr(), f"{tmp_path} cannot be written: {error.strerror}; choose another folder with --out"
    )
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert run(*RUN, "--out", tmp_path / "missing" / "parent", on_epoch=pytest.fail) == 2
    assert_one_line(capsys.readouterr(), f"cannot be written: {error.strerror}")


linux = pytest.mark.skipif(sys.platform != "linux", reason="the file system allows no such name")


@pytest.mark.parametrize("name", ["grüße ✓", "$_$", pytest.param("bad \udcff", marks=linux)], ids=ascii)
def test_folders_of_any_name_are_welcome(mnist_dir, tmp_path, name):
    data, out = mnist_dir.rename(tmp_path / name), tmp_path / f"{name} run"
    assert run("--data-dir", data, *SMALL, "--batch-size", 35, "--epochs", 1, "--out", out, plots=True) == 0
    assert read_metrics(out)["dataset"] == f"{name} (MNIST format)" and (out / "curves.png").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["--epochs", "0"],
        ["--batch-size", "1438"],
        ["--holdout", "9"],
        ["--dataset", "mnist", "--data-dir", "none"],
        ["--data-dir", "none"],
        ["--resume", "none"],
        ["--evaluate", "none"],
        pytest.param(["--device", "cuda"], marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")),
    ],
)
def test_a_refused_start_leaves_nothing_behind(tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    for out in ([], ["--out", "run"]):
        assert run(*DIGITS, *argv, *out, on_epoch=pytest.fail) == 2
        assert_one_line(capsys.readouterr())
        assert list(tmp_path.iterdir()) == []


# Resuming


def test_early_stop_and_holdout_resume_to_the_same_bits(tmp_path, capsys):
    """Interrupted after every epoch; the target is met before the last of eight."""
    argv = [*RUN, "--holdout", 200]
    assert run(*argv, "--out", tmp_path / "long") == 0
    accuracies = [epoch["holdout_accuracy"] for epoch in read_metrics(tmp_path / "long")["epochs"]]
    argv += ["--target", max(accuracies[:-1])]
    assert run(*argv, "--out", tmp_path / "whole") == 0
    metrics = read_metrics(tmp_path / "whole")
    count = len(metrics["epochs"])
    assert count == metrics["target_epoch"] == 1 + accuracies.index(max(accuracies[:-1])) < 8
    assert run(*argv, "--out", tmp_path / "run", on_epoch=interrupt) == 130
    for _ in range(count - 1):
        assert run("--resume", tmp_path / "run", on_epoch=interrupt) == 130
        assert f"Interrupted; to resume: {PYTHON} train.py --resume {tmp_path / 'run'}\n" in capsys.readouterr().out
        assert "test_accuracy" not in read_metrics(tmp_path / "run")
    assert run("--resume", tmp_path / "run", on_epoch=pytest.fail) == 0
    assert same(without_times(tmp_path / "run"), without_times(tmp_path / "whole"))
    assert "test_accuracy" in read_metrics(tmp_path / "run")


def test_the_time_of_a_run_is_that_of_all_its_processes(tmp_path):
    seconds = []
    assert run(*RUN, "--out", tmp_path / "run", on_epoch=interrupt) == 130
    for _ in range(2):
        metrics = read_metrics(tmp_path / "run")
        seconds.append(metrics["total_seconds"])
        assert metrics["train_seconds"] < seconds[-1]
        assert run("--resume", tmp_path / "run", on_epoch=interrupt) == 130
    assert 0 < seconds[0] < seconds[1] < read_metrics(tmp_path / "run")["total_seconds"]


def test_a_run_that_ended_before_its_first_checkpoint_is_started_anew(tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    folder = tmp_path / "a run"
    monkeypatch.setattr(os, "replace", interrupted)
    assert run(*RUN, "--out", folder) == 130
    assert f"Interrupted; remove {folder} and start again" in capsys.readouterr().out
    assert_refused(capsys, ["--resume", folder], "a run that ended before its first checkpoint must be restarted")


def test_a_finished_run_is_resumed_without_training(whole_run, tmp_path):
    folder = shutil.copytree(whole_run, tmp_path / "run")
    for name in PICTURES:
        (folder / name).unlink()
    assert run(*RUN, "--resume", folder, on_epoch=pytest.fail, plots=True) == 0  # its own flags are welcome
    assert same(without_times(folder), without_times(whole_run))
    for name in PICTURES:
        assert (folder / name).read_bytes() == (whole_run / name).read_bytes()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--epochs", "9"], "--epochs 9: contradicts the run's --epochs 8; drop it"),
        (["--recipe", "fast"], "--recipe fast: contradicts the run's --recipe default; drop it"),
        (["--widths", "4", "4", "4", "4", "5"], "--widths 4 4 4 4 5: contradicts the run's --widths 4 4 4 4 4;"),
        (["--separable"], "--separable: contradicts the run's --no-separable; drop it"),
        (["--target", "99"], "--target 99.0: contradicts the run's --target none; drop it"),
        (["--precision", "bf16"], "--precision bf16: contradicts the run's --precision fp32; drop it"),
        (["--threads", "2"], "--threads 2: contradicts the run's --threads 1; drop it"),
        (["--data-dir", "elsewhere"], "--data-dir: found with --dataset digits"),
        (["--out", "elsewhere"], "--out cannot be combined with --resume or --evaluate"),
        (["--evaluate", "last.pt"], "not allowed with argument --resume"),
    ],
)
def test_flags_that_contradict_the_run_are_refused(whole_run, capsys, argv, expected):
    before = {path: path.read_bytes() for path in whole_run.iterdir()}
    assert_refused(capsys, ["--resume", whole_run, *argv], expected)
    assert {path: path.read_bytes() for path in whole_run.iterdir()} == before


def test_a_run_resumes_with_its_own_number_of_threads(whole_run, tmp_path):
    """Their number decides how sums are rounded."""
    torch.set_num_threads(2)
    assert run("--resume", shutil.copytree(whole_run, tmp_path / "run")) == 0
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("name", ["none", "file", "a" * 300])
def test_resume_of_what_is_no_run(tmp_path, capsys, name):
    (tmp_path / "file").touch()
    assert_refused(capsys, ["--resume", tmp_path / name], f"--resume {tmp_path / name}: no last.pt found")


def test_resume_finds_data_that_moved_but_refuses_other_data(mnist_dir, tmp_path, capsys):
    folder = tmp_path / "run"
    argv = ["--data-dir", mnist_dir, *SMALL, "--batch-size", 70, "--epochs", 2, "--out", folder]
    assert run(*argv, on_epoch=interrupt) == 130
    moved = mnist_dir.rename(tmp_path / "moved")
    capsys.readouterr()
    assert_refused(capsys, ["--resume", folder], f"--data-dir {mnist_dir} does not exist")
    labels = moved / MNIST_FILES[3]
    content = labels.read_bytes()
    labels.write_bytes(content[:-1] + b"\0")
    assert run("--resume", folder, "--data-dir", moved, on_epoch=pytest.fail) == 2
    assert_one_line(capsys.readouterr(), "found other data (moved (MNIST format), SHA-256 ", "expected small (MNIST")
    labels.write_bytes(content)
    assert run("--resume", folder, "--data-dir", moved) == 0
    assert len(read_metrics(folder)["epochs"]) == 2


# The lock


@pytest.mark.parametrize("on_epoch", [None, interrupt])
def test_the_end_of_a_run_releases_its_lock(tmp_path, on_epoch):
    """Also if the program that trained keeps the folder's object, and the exception."""
    recipe = Recipe(widths=(4,) * 5, epochs=1, batch_size=479)
    settings = Settings(recipe, dataset="digits", device="cpu")
    folder = RunFolder(tmp_path / "run")
    with contextlib.suppress(KeyboardInterrupt):
        train.train(settings, folder, on_epoch)
    lock(tmp_path / "run").release()
    resumed = RunFolder(resume=tmp_path / "run")
    with pytest.raises(FileError, match="in use"):
        lock(tmp_path / "run")
    resumed.close()
    lock(tmp_path / "run").release()


def test_a_run_in_use_is_refused_and_every_end_releases_it(whole_run, tmp_path, capsys):
    folder = tmp_path / "run"

    def resume_and_interrupt(history):
        capsys.readouterr()
        assert run("--resume", folder, on_epoch=pytest.fail) == 2
        assert_one_line(capsys.readouterr(), f"{folder} is in use by another process")
        raise KeyboardInterrupt

    assert run(*RUN, "--out", folder, on_epoch=resume_and_interrupt) == 130
    assert run("--resume", folder, on_epoch=resume_and_interrupt) == 130
    assert run("--resume", folder, "--epochs", 9) == 2
    last = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(b"")
    assert run("--resume", folder) == 2
    (folder / "last.pt").write_bytes(last)
    lock(folder).release()  # nobody holds it
    assert run("--resume", folder) == 0
    assert same(without_times(folder), without_times(whole_run))


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path):
    """As Jupyter and Colab export it, where its package is missing; and a matplotlibrc that asks for TeX."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: module://missing.backend\n")
    out = tmp_path / "run"
    command = [sys.executable, ROOT / "train.py", *RUN, "--epochs", "1", "--holdout", "200", "--out", out]
    environment = {**os.environ, "MPLBACKEND": "module://missing.backend", "PYTHONPATH": str(ROOT), "PATH": ""}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stderr == ""
    assert "Training time: " in result.stdout and "test_accuracy" in read_metrics(out)
    for name in PICTURES:
        assert (out / name).exists() != (f"Warning: {name} could not be drawn (" in result.stdout)
