"""Several processes that train one model: what they exchange, and how a job ends."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, SMALL, assert_one_line, assert_refused, read_metrics, run, same, without_times

import train
from data import TrainLoader
from experiment import parallel
from experiment.checkpoint import Checkpoint
from experiment.datasets import load_digits_28x28, load_mnist
from experiment.errors import DivergedError, SettingError
from experiment.history import History, Score
from experiment.settings import Recipe, Settings
from model import Net

TRAIN = ["--dataset", "digits", *SMALL, "--no-plots", "--epochs", 4, "--batch-size", 97, "--later-share", 0.4]
TRAIN += ["--lr", 0.3, "--holdout", 200]
STEPS = ["--dataset", "digits", *SMALL, "--no-plots", "--epochs", 3, "--batch-size", 11, "--later-share", 1]
STEPS += ["--lr", 0.3, "--holdout", 1426, "--dropout", 0, "--augment-until", 0]  # of 11 images: parts of 6 and 5


def environment(**variables):
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    variables = {name: str(value) for name, value in variables.items()}
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PET_STANDALONE": "1", **variables}


def torchrun(command, **variables):
    """(exit code, stdout, the lines of stderr that are train.py's) of a shell command."""
    command, options = shlex.split(command), {"env": environment(**variables), "timeout": 300}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    return done.returncode, done.stdout, [line for line in done.stderr.splitlines() if line.startswith("train.py")]


def pair(*argvs, **variables):
    """(exit codes, what each writes to stderr but for torch's log) of two processes that no torchrun starts."""
    port, processes = free_port(), []
    for rank, argv in enumerate(argvs):
        values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        options = {"env": environment(**values, **variables), "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        command = [sys.executable, *map(str, argv)]
        processes.append(subprocess.Popen(command, cwd=ROOT, text=True, **options))
    try:
        errors = [process.communicate(timeout=300)[1].splitlines() for process in processes]
    finally:
        for process in processes:
            process.kill()
    errors = [[line for line in lines if not re.match(r"\[[WE]\d", line)] for lines in errors]
    return [process.returncode for process in processes], errors


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """(folder of two runs of one job, its standard output); record(run, when): what each process holds then."""
    folder = tmp_path_factory.mktemp("job")
    argv = [*TRAIN, "--out", folder / "run", "--", *STEPS, "--out", folder / "steps"]
    command = shlex.join(map(str, ["torchrun", "--nproc-per-node", 2, "tests/torchrun_job.py", *argv]))
    code, out, errors = torchrun(command, RECORD=folder)
    assert (code, errors) == (0, [])

    def record(run, when):
        return [torch.load(folder / f"{run}-{when}-{rank}.pt", weights_only=True) for rank in (0, 1)]

    return SimpleNamespace(folder=folder, out=out, record=record)


# A job of two processes


def test_two_processes_agree_on_weights_hardness_and_figures(job):
    for epoch, count in enumerate((1237, 495, 495, 495), 1):
        first, second = job.record(1, epoch)
        assert same(first["model"], second["model"])  # statistics of BatchNorm too
        assert same(first["hardness"], second["hardness"])
        trained_on = torch.cat([index for process in (first, second) for index, _ in process["batches"]])
        assert len(trained_on.unique()) == len(trained_on) == first["final"]["training"]["count"] == count
        assert (first["hardness"][trained_on] > 0).all()
        assert same(*({**process["final"], "seconds": 0, "curve": None} for process in (first, second)))
    assert job.out.count("Epoch 4/4") == 1 and "2 processes, each cpu, 1 CPU threads" in job.out
    assert read_metrics(job.folder / "run")["processes"] == 2


def test_all_processes_end_with_the_weights_that_the_held_out_images_choose(job):
    test = load_digits_28x28().test
    for number, name in ((1, "run"), (2, "steps")):
        first, second = job.record(number, "end")
        best = Checkpoint.load(job.folder / name / "best.pt")
        assert same(first["model"], second["model"]) and same(first["model"], dict(best.model))
        assert same(first["logits"], second["logits"])
        logits = train.predict(best.net(), test.images, "fp32")
        torch.testing.assert_close(first["logits"], logits, rtol=1e-4, atol=1e-5)
        accuracy = 100 * (first["logits"].argmax(1) == test.labels).float().mean().item()
        assert read_metrics(job.folder / name)["test_accuracy"] == pytest.approx(accuracy)


def test_the_steps_of_two_processes_are_those_of_one(job, tmp_path, monkeypatch):
    """Of three batches in parts of 6 and 5 images; BatchNorm keeps its first statistics, which depend on the parts."""
    monkeypatch.setattr(torch.nn.BatchNorm2d, "train", lambda self, mode=True: torch.nn.Module.train(self, False))
    assert run(*STEPS, "--out", tmp_path / "one") == 0
    one, two = (Checkpoint.load(folder / "last.pt").model for folder in (tmp_path / "one", job.folder / "steps"))
    torch.manual_seed(0)
    before = dict(Net(widths=(4,) * 5).named_parameters())
    ones, twos = (torch.cat([(model[name] - before[name]).flatten() for name in before]) for model in (one, two))
    assert ones.norm() > 0.05
    assert (ones - twos).norm() < 1e-5 * ones.norm()


def test_a_job_that_loses_a_process_says_so_and_resumes_to_the_same_bits(job, tmp_path, capsys):
    """Without torchrun, which may end it before it can tell; then by the command that its log names."""
    folder = tmp_path / "run"
    codes, errors = pair(*[["tests/torchrun_job.py", *TRAIN, "--out", folder]] * 2, DIE="1 2")
    assert codes == [2, -signal.SIGKILL] and errors[1] == [] and len(errors[0]) == 1
    assert "error: process 0 lost the others" in errors[0][0]
    assert len(Checkpoint.load(folder / "last.pt").history.epochs) >= 2
    command = re.search(r"^Stopped: process 0 lost .*; to resume: (.*)$", (folder / "log.txt").read_text(), re.M)[1]
    assert command == f"torchrun --nproc-per-node 2 train.py --resume {folder}"
    assert_refused(
        capsys, ["--resume", folder], f"processes: found 1, expected 2 as in the run; resume it with {command}"
    )
    assert torchrun(command)[::2] == (0, [])
    assert same(without_times(folder), without_times(job.folder / "run"))
    assert run("--evaluate", folder / "last.pt") == 0


def test_processes_with_different_data_are_refused(mnist_dir, tmp_path):
    data = [load_mnist(mnist_dir).sha256]
    argv = ["train.py", *SMALL, "--batch-size", 35, "--epochs", 1, "--out", tmp_path / "run", "--data-dir"]
    other = tmp_path / "other"
    other.mkdir()
    for file in mnist_dir.iterdir():
        (other / file.name).write_bytes(file.read_bytes()[:-1] + b"\1")
    data.append(load_mnist(other).sha256)
    codes, errors = pair([*argv, mnist_dir], [*argv, other])
    expected = f"process 1 was started with another data: found {data[1]}, expected {data[0]} as in process 0"
    assert codes == [2, 2] and errors[1] == [] and len(errors[0]) == 1 and expected in errors[0][0]
    assert not (tmp_path / "run").exists()


# What each process exchanges, with the others' part made up


@pytest.fixture
def as_process(monkeypatch):
    """as_process(rank, of, gathered): let this be process `rank` of `of`; gathered(value): the values of all."""

    def pretend(rank, of, gathered):
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: of)
        monkeypatch.setattr(
            dist, "all_gather_object", lambda values, value: values.__setitem__(slice(of), gathered(value))
        )

    return pretend


@pytest.mark.parametrize("epoch", [1, 2])
def test_the_parts_of_all_processes_are_the_same_batches_whatever_their_number(as_process, epoch):
    whole = TrainLoader(torch.zeros(75, 1, 28, 28), torch.zeros(75), 8, later_share=0.5)
    whole.hardness = torch.rand(75)

    def parts(rank, of):
        as_process(rank, of, lambda value: [7] + [value] * (of - 1))
        torch.manual_seed(rank)
        loader = parallel.PartLoader(whole)
        batches = [(index, loader.weight) for index in loader.indices(epoch)]
        assert same([index for index, _ in batches], loader.own)
        return batches, torch.rand(()).item()

    (expected, _), count = parts(0, 1), {1: 75, 2: 38}[epoch]
    assert len(expected) == -(-count // 8) and len(torch.cat([index for index, _ in expected]).unique()) == count
    for of in (2, 3, 4):
        found, augmentation = zip(*(parts(rank, of) for rank in range(of)))
        assert len(set(augmentation)) == of  # other random numbers in each process
        for (batch, _), *own in zip(expected, *found):
            assert torch.equal(torch.cat([index for index, _ in own]), batch)
            sizes = [len(index) for index, _ in own]
            assert max(sizes) - min(sizes) <= 1 and [weight for _, weight in own] == [n / len(batch) for n in sizes]


def test_the_mean_of_gradients_counts_every_image_alike(monkeypatch):
    """Of parts of 3 and 1 images: it is that of the whole batch of 4."""
    net, images, labels = torch.nn.Linear(5, 3), torch.rand(4, 5), torch.tensor([0, 1, 2, 0])
    sent = []

    def gradient(part):
        net.zero_grad()
        torch.nn.functional.cross_entropy(net(images[part]), labels[part]).backward()
        return torch.cat([parameter.grad.flatten() for parameter in net.parameters()])

    def all_gather(received, own, async_op):
        sent.append(own)
        for target, source in zip(received, sent):
            target.copy_(source)
        done = torch.futures.Future()
        done.set_result(None)
        return SimpleNamespace(get_future=lambda: done)

    monkeypatch.setattr(dist, "all_gather", all_gather)
    for of, part in enumerate((slice(3), slice(3, 4)), 1):
        monkeypatch.setattr(dist, "get_world_size", lambda of=of: of)
        loader, own = SimpleNamespace(weight=len(labels[part]) / 4), gradient(part)
        mean = parallel.weighted_mean(loader, SimpleNamespace(buffer=lambda own=own: own)).wait()
    torch.testing.assert_close(mean, gradient(slice(4)))


def test_an_epoch_is_the_sum_of_its_parts_and_the_first_process_evaluates(as_process):
    index, hardness = torch.tensor([5, 0]), torch.tensor([0.5, 2.0])
    others = (Score(5.0, 1, 1), Score(9.0, 0, 10), index, hardness)
    as_process(1, 2, lambda value: [others, value])
    parallel_run = parallel.ParallelRun()
    parallel_run.history = History("test")
    parallel_run.loader = SimpleNamespace(own=[torch.tensor([1]), torch.tensor([3, 4])], hardness=torch.arange(6.0))
    parallel_run.add_epoch(Score(1.0, 2, 3), Score(0.5, 9, 10), 0.1, [], 1.0)
    epoch = parallel_run.history.final
    assert (epoch.training, epoch.evaluation) == (Score(2.0, 3, 4), Score(9.0, 0, 10))
    assert parallel_run.loader.hardness.tolist() == [2.0, 1.0, 2.0, 3.0, 4.0, 0.5]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": 7}, "process 1 was started with another seed: found 7, expected 0 as in process 0"),
        ({"lr": 0.5}, "process 1 was started with another lr: found 0.5, expected 1.0"),
        ({"data": "other"}, "process 1 was started with another data: found other, expected same"),
        ({"threads": 5, "data_dir": "there"}, "--batch-size 70: expected an image for each process in every batch"),
        ({"device": "cuda"}, "--device cuda: expected one for each process; use --device cpu"),
    ],
)
def test_processes_that_cannot_train_together_are_refused(as_process, monkeypatch, change, expected):
    """Threads and folders of data may differ."""
    device = change.pop("device", "cpu")
    as_process(0, 2, lambda value: [value, {**value, **change}])
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    settings, data = Settings(Recipe(batch_size=70), device=device), SimpleNamespace(sha256="same")
    loader = TrainLoader(torch.zeros(71, 1, 28, 28), torch.zeros(71), 70)
    loader.later_count = 1
    with pytest.raises(SettingError) as refused:
        parallel.ParallelRun.share(SimpleNamespace(), settings, data, loader, None)
    assert expected in str(refused.value)


# How a process ends

LOST = RuntimeError("[../gloo/pair.cc:553] Connection closed by peer\nmore")


@pytest.mark.parametrize(
    ("rank", "error", "code", "line"),
    [
        (0, SettingError("all are wrong"), 2, "all are wrong"),
        (1, SettingError("all are wrong"), 2, None),  # the first process says it
        (1, DivergedError("this one alone"), 2, "this one alone"),
        (1, MemoryError(), 2, "out of memory"),
        (
            0,
            LOST,
            2,
            "process 0 lost the others, or waited 5 minutes for them: look at their errors ([../gloo/pair.cc:",
        ),
        (1, LOST, 2, None),
        (1, KeyboardInterrupt(), 130, None),
    ],
)
def test_an_error_is_one_line_of_one_process(as_process, monkeypatch, capsys, rank, error, code, line):
    left = []

    def fail(*args):
        print("begun")
        raise error

    as_process(rank, 2, None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **options: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(rank))
    monkeypatch.setattr(train, "start", fail)
    assert run() == code and left == [rank]
    captured = capsys.readouterr()
    assert captured.out == ("" if rank else "begun\n")
    if line:
        assert_one_line(captured, line)
    else:
        assert captured.err == ""


def test_without_the_other_processes_there_is_one_line(monkeypatch, capsys):
    with socket.create_server(("localhost", 0)) as server:
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(server.getsockname()[1]), "RANK": "0"}
        for variables, expected in (
            ({"WORLD_SIZE": "4"}, "LOCAL_RANK"),
            ({"WORLD_SIZE": "many", "LOCAL_RANK": "0", **address}, "many"),
            ({"WORLD_SIZE": "2", "LOCAL_RANK": "x", **address}, "x"),
            ({"WORLD_SIZE": "2", "LOCAL_RANK": "0", **address}, "address already in use"),
        ):
            with monkeypatch.context() as patch:
                for name, value in variables.items():
                    patch.setenv(name, value)
                assert run(*TRAIN) == 2
            captured = capsys.readouterr()
            assert_one_line(captured, "no other processes (", "use torchrun, or unset WORLD_SIZE")
            assert expected.lower() in captured.err.lower()
