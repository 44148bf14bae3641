"""torchrun with two processes on the CPU: what they train on, what they agree on, and how a job ends."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, assert_refused, read_metrics, run, same, without_times
from experiment.processes import VARIABLES

from data import Loader
from experiment.checkpoint import Checkpoint
from experiment.datasets import load_digits_28x28
from model import Net
from train import evaluate

TRAIN = ["--dataset", "digits", "--device", "cpu", "--target", "none", "--widths", "4", "4", "4", "4", "4"]
TRAIN += ["--epochs", "4", "--batch-size", "97", "--later-share", "0.4", "--lr", "0.3"]


def torchrun(*argv, script="tests/torchrun_job.py", **environment):
    """Run a script with two processes: (exit code, stdout, the lines of stderr that are train.py's)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([*command, *map(str, argv)], cwd=ROOT, env=environment, capture_output=True, text=True)
    return (done.returncode, done.stdout, [line for line in done.stderr.splitlines() if line.startswith("train.py")])


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """(folder of a run with two processes, its standard output, folder of what each process recorded)."""
    folder, recorded = tmp_path_factory.mktemp("job") / "run", tmp_path_factory.mktemp("recorded")
    code, out, errors = torchrun(*TRAIN, "--out", folder, RECORD=str(recorded))
    assert (code, errors) == (0, [])
    return folder, out, recorded


def test_every_image_of_an_epoch_is_trained_on_once(job):
    """By one process, in a part of a batch that differs from the other's part by at most one image."""
    train_images = len(load_digits_28x28().train.labels)
    for epoch, count in enumerate((train_images, 575, 575, 575), 1):
        first, second = (torch.load(job[2] / f"{epoch}-{rank}.pt", weights_only=True) for rank in (0, 1))
        indices = [index for process in (first, second) for index, _ in process["batches"]]
        assert len(torch.cat(indices).unique()) == sum(map(len, indices)) == count
        assert len(first["batches"]) == len(second["batches"]) == -(-count // 97)
        for (own, weight), (other, other_weight) in zip(first["batches"], second["batches"]):
            size = len(own) + len(other)
            assert abs(len(own) - len(other)) <= 1 and size <= 97
            assert (weight, other_weight) == (2 * len(own) / size, 2 * len(other) / size)


def test_the_processes_agree_on_every_figure(job):
    folder, out, recorded = job
    for epoch in range(1, 5):
        first, second = (torch.load(recorded / f"{epoch}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert torch.equal(first["hardness"], second["hardness"]) and (first["hardness"] > 0).sum() > 1400
        figures = [{**process["final"], "seconds": 0, "curve": None} for process in (first, second)]
        assert same(*figures)
    checkpoint, metrics = Checkpoint.load(folder / "last.pt"), read_metrics(folder)
    again = evaluate(checkpoint.net(), Loader(*load_digits_28x28().test, 1000), "fp32")
    assert again.correct == checkpoint.history.final.evaluation.correct and again.count == 360
    assert again.loss == pytest.approx(checkpoint.history.final.evaluation.loss, rel=1e-5)
    assert metrics["processes"] == 2 and again.accuracy > 25
    assert out.count("Epoch 4/4") == 1 and "2 processes, each cpu, 1 CPU threads" in out


def test_one_step_of_two_processes_is_that_of_one(tmp_path):
    """Without BatchNorm's statistics in the way: its weights' gradients are averaged over the images of both."""
    flags = [*TRAIN, "--epochs", 1, "--batch-size", 1437, "--augment-until", 0, "--dropout", 0]
    code, _, errors = torchrun(*flags, "--out", tmp_path / "two")
    assert (code, errors) == (0, [])
    assert run(*flags, "--out", tmp_path / "one") == 0
    checkpoints = [Checkpoint.load(tmp_path / name / "last.pt") for name in ("two", "one")]
    two, one = (checkpoint.model for checkpoint in checkpoints)
    torch.manual_seed(0)
    before = dict(Net(**checkpoints[0].settings.recipe.network).named_parameters())
    steps = [torch.cat([(model[name] - before[name]).flatten() for name in before]) for model in (two, one)]
    assert (steps[0] - steps[1]).norm() < 0.2 * steps[1].norm()
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=0.05, atol=0.01, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_another_number_of_processes_is_refused(job, capsys):
    assert_refused(capsys, ["--resume", job[0]], "found 1, expected 2", "torchrun --nproc-per-node 2")
    assert run("--evaluate", job[0] / "last.pt") == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--batch-size", 1], "--batch-size 1: found batches of 1 images"),
        (["--lr", -1], "--lr: found -1"),
        (["--data-dir", "missing"], "--data-dir: found with --dataset digits"),
    ],
)
def test_bad_input_is_one_line_of_the_first_process(flags, expected, tmp_path):
    code, out, errors = torchrun(*TRAIN, *flags, "--out", tmp_path / "run")
    assert code != 0 and len(errors) == 1 and expected in errors[0] and not (tmp_path / "run").exists()


def by_hand(*argv, rank, port, script="train.py", **environment):
    """A process of a job of two that something else than torchrun starts."""
    values = dict(zip(VARIABLES, (rank, rank, 2, "localhost", port)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    environment |= {name: str(value) for name, value in values.items()}
    argv = [sys.executable, script, *map(str, argv)]
    return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True)


def without_torch_log(error):
    return [line for line in error.splitlines() if not re.match(r"\[[WE]\d", line)]


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def test_a_process_that_loses_the_other_says_so_and_the_job_resumes_bit_for_bit(job, tmp_path):
    """Without torchrun, which may end it before it can tell."""
    folder, options = tmp_path / "run", {"port": free_port(), "script": "tests/torchrun_job.py", "DIE": "1 2"}
    first, second = (by_hand(*TRAIN, "--out", folder, rank=rank, **options) for rank in range(2))
    (_, error), (_, other) = first.communicate(), second.communicate()
    lines = without_torch_log(error)
    assert first.returncode == 2 and len(lines) == 1 and "error: process 0 lost the others" in lines[0]
    assert second.returncode == -signal.SIGKILL and other == ""
    assert "to resume: torchrun --nproc-per-node 2" in (folder / "log.txt").read_text()
    assert len(Checkpoint.load(folder / "last.pt").history.epochs) >= 2
    code, _, errors = torchrun("--resume", folder)
    assert (code, errors) == (0, [])
    assert same(without_times(folder), without_times(job[0]))


def test_torchrun_ends_a_job_that_loses_a_process(tmp_path):
    code, _, errors = torchrun(*TRAIN, "--out", tmp_path / "run", DIE="1 2")
    assert code != 0 and len(errors) == 1 and re.search("process 0 lost the others|interrupted$", errors[0])
    assert len(Checkpoint.load(tmp_path / "run" / "last.pt").history.epochs) >= 2


def test_processes_with_other_flags_are_refused(tmp_path):
    flags, port = [*TRAIN, "--out", tmp_path / "run"], free_port()
    first, second = by_hand(*flags, rank=0, port=port), by_hand(*flags, "--seed", 7, rank=1, port=port)
    (_, error), (_, other) = first.communicate(), second.communicate()
    assert error.count("\n") == 1 and "process 1 was started with another seed: found 7, expected 0" in error
    assert (first.returncode, second.returncode, other) == (2, 2, "") and not (tmp_path / "run").exists()


def test_a_taken_port_is_one_line(tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        process = by_hand(*TRAIN, "--out", tmp_path / "run", rank=0, port=server.getsockname()[1])
        error = process.communicate()[1]
    lines = without_torch_log(error)
    assert process.returncode == 2 and len(lines) == 1 and "address already in use" in lines[0].lower()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 is set without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many is set without RANK"),
        (dict(zip(VARIABLES, ("5", "0", "4", "localhost", "29500"))), "RANK=5"),
        (dict(zip(VARIABLES, ("0", "x", "4", "localhost", "29500"))), "LOCAL_RANK=x"),
    ],
)
def test_variables_of_another_launcher(variables, expected, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert_refused(capsys, TRAIN, expected, "torchrun")
