"""Several processes that train one model: what they exchange, and how a job ends."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, SMALL, assert_refused, read_metrics, run, same, without_times

import train
from data import TrainLoader
from experiment import parallel
from experiment.checkpoint import Checkpoint
from experiment.datasets import load_mnist
from experiment.sources import load_digits_28x28
from model import Net

FLAGS = ["--dataset", "digits", *SMALL, "--no-plots", "--lr", 0.3]
TRAIN = [*FLAGS, "--epochs", 4, "--batch-size", 97, "--later-share", 0.4, "--holdout", 200]
STEPS = [*FLAGS, "--epochs", 3, "--batch-size", 11, "--later-share", 1, "--holdout", 1426]  # parts of 6 and 5 images
STEPS += ["--dropout", 0, "--augment-until", 0]
JOB = [sys.executable, "tests/torchrun_job.py"]
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
ENVIRONMENT |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "PET_STANDALONE": "1"}


def lines(text):
    return [line for line in text.splitlines() if not re.match(r"\[[WE]\d", line)]  # but for torch's log


def two(*argvs, **variables):
    """(exit codes, lines of stderr) of two processes that find each other, without torchrun.

    It might end one of them before the other can tell.
    """
    with socket.create_server(("localhost", 0)) as server:
        variables |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(server.getsockname()[1]), "WORLD_SIZE": "2"}
    processes, options = [], {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    for rank, argv in zip("01", argvs, strict=True):
        environment = {**ENVIRONMENT, **variables, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(subprocess.Popen([*JOB, *map(str, argv)], env=environment, **options))
    errors = [lines(process.communicate(timeout=300)[1]) for process in processes]
    return [process.returncode for process in processes], errors


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A job of two runs: its `folder` and output `out`; record(run, when): what each process held then."""
    folder = tmp_path_factory.mktemp("job")
    argv = [*TRAIN, "--out", folder / "run", "--", *STEPS, "--out", folder / "steps"]
    command = ["torchrun", "--nproc-per-node", "2", "tests/torchrun_job.py", *map(str, argv)]
    options = {"env": {**ENVIRONMENT, "RECORD": str(folder)}, "capture_output": True, "text": True, "timeout": 300}
    process = subprocess.run(command, cwd=ROOT, **options)
    assert (process.returncode, lines(process.stderr)) == (0, [])

    def record(run, when):
        return [torch.load(folder / f"{run}-{when}-{rank}.pt", weights_only=True) for rank in (0, 1)]

    return SimpleNamespace(folder=folder, out=process.stdout, record=record)


def test_two_processes_agree_on_weights_hardness_and_figures_and_on_those_that_held_out_images_choose(job):
    for epoch, count in enumerate((1237, 495, 495, 495), 1):
        first, second = job.record(1, epoch)
        trained_on = torch.cat([index for process in (first, second) for index, _ in process["batches"]])
        assert len(trained_on.unique()) == len(trained_on) == first["final"]["training"]["count"] == count
        assert same(first["hardness"], second["hardness"]) and (first["hardness"][trained_on] > 0).all()
        weights = [name for name in first["model"] if "running" not in name]  # those statistics are a process's own
        assert all(same(first["model"][name], second["model"][name]) for name in weights)
        assert same(*({**process["final"], "seconds": 0, "curve": None} for process in (first, second)))
    assert job.out.count("Epoch 4/4") == 1 and "2 processes, each cpu, 1 CPU thread," in job.out
    for number, name in ((1, "run"), (2, "steps")):
        (first, second), test = job.record(number, "end"), load_digits_28x28().test
        best = Checkpoint.load(job.folder / name / "best.pt")
        assert same(first["model"], second["model"]) and same(dict(first["model"]), dict(best.model))
        again = train.score(train.predict(best.net(), test.images, "fp32"), test.labels)
        assert read_metrics(job.folder / name)["test_loss"] == pytest.approx(again.loss, rel=1e-5)
        assert same(first["logits"], second["logits"])


def test_the_steps_of_two_processes_are_those_of_one(job, tmp_path, monkeypatch):
    """BatchNorm keeps its first statistics, as those of a batch depend on its parts."""
    monkeypatch.setattr(torch.nn.BatchNorm2d, "train", lambda self, mode=True: torch.nn.Module.train(self, False))
    assert run(*STEPS, "--out", tmp_path / "steps") == 0
    torch.manual_seed(0)
    before = dict(Net(widths=(4,) * 5).named_parameters())
    models = [Checkpoint.load(folder / "steps" / "last.pt").model for folder in (tmp_path, job.folder)]
    one, two = (torch.cat([(model[name] - before[name]).flatten() for name in before]) for model in models)
    assert one.norm() > 0.05 and (two - one).norm() < 1e-5 * one.norm()


def test_a_job_that_loses_a_process_says_so_and_resumes_to_the_same_bits(job, tmp_path, capsys):
    folder = tmp_path / "run"
    codes, errors = two(*[[*TRAIN, "--out", folder]] * 2, DIE="1 2")
    assert codes == [2, -signal.SIGKILL] and errors[1] == [] and len(errors[0]) == 1
    assert errors[0][0].startswith("train.py: error: process 0 lost the others")
    assert len(Checkpoint.load(folder / "last.pt").history.epochs) >= 2
    command = f"torchrun --nproc-per-node 2 train.py --resume {folder}"
    assert re.search(rf"^Stopped: process 0 lost .*; to resume: {command}$", (folder / "log.txt").read_text(), re.M)
    expected = f"processes: found 1, expected 2 as in the run; resume it with {command}"
    assert_refused(capsys, ["--resume", folder], expected)
    assert two(*[["--resume", folder, "--no-plots"]] * 2) == ([0, 0], [[], []])
    assert same(without_times(folder), without_times(job.folder / "run"))


@pytest.mark.parametrize(
    ("both", "other", "expected"),
    [
        ([], ["--lr", 0.5], "process 1 was started with another lr: found 0.5, expected 1.0 as in process 0"),
        ([], None, "process 1 was started with another data: found {1}, expected {0} as in process 0"),
        (["--later-share", 0.01], ["--threads", 2], "--batch-size 35: expected an image for each process"),
    ],
)
def test_processes_that_cannot_train_together_are_refused_in_one_line(mnist_dir, tmp_path, both, other, expected):
    """Threads and folders may differ."""
    folders = mnist_dir, shutil.copytree(mnist_dir, tmp_path / "other")
    for file in folders[1].iterdir() if other is None else ():
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
    argvs = [[*SMALL, "--batch-size", 35, *both, "--out", tmp_path / "run", "--data-dir", folder] for folder in folders]
    codes, errors = two(argvs[0], [*argvs[1], *(other or ())])
    assert codes == [2, 2] and errors[1] == [] and len(errors[0]) == 1
    assert expected.format(*(load_mnist(folder).sha256 for folder in folders)) in errors[0][0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("epoch", "count"), [(1, 75), (2, 38)])
def test_the_parts_of_all_processes_are_the_same_batches_whatever_their_number(monkeypatch, epoch, count):
    whole = TrainLoader(torch.zeros(75, 1, 28, 28), torch.zeros(75), 8, later_share=0.5)
    whole.hardness = torch.rand(75)

    def parts(rank, of):
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: of)
        monkeypatch.setattr(parallel, "gathered", lambda value: [7] + [value] * (of - 1))
        torch.manual_seed(rank)
        loader = parallel.PartLoader(whole)
        return [(index, loader.weight) for index in loader.indices(epoch)], torch.rand(()).item()

    expected = [index for index, _ in parts(0, 1)[0]]
    assert len(expected) == -(-count // 8) and len(torch.cat(expected).unique()) == count
    for of in (2, 3, 4):
        found, augmentation = zip(*(parts(rank, of) for rank in range(of)))
        assert len(set(augmentation)) == of  # other random numbers in each process
        for batch, *own in zip(expected, *found):
            assert torch.equal(torch.cat([index for index, _ in own]), batch)
            sizes = [len(index) for index, _ in own]
            assert max(sizes) - min(sizes) <= 1 and [weight for _, weight in own] == [n / len(batch) for n in sizes]


def test_without_the_other_processes_there_is_one_line(monkeypatch, capsys):
    def check(expected, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        assert_refused(capsys, TRAIN, "no other processes (", expected, "use torchrun, or unset WORLD_SIZE")

    check("LOCAL_RANK", WORLD_SIZE=4)
    check("many", WORLD_SIZE="many", LOCAL_RANK=0, RANK=0, MASTER_ADDR="localhost", MASTER_PORT=29500)
    with socket.create_server(("localhost", 0)) as server:
        check("address already in use", WORLD_SIZE=2, MASTER_PORT=server.getsockname()[1])
