"""What the tests share: a small data set, runs of train.py in this process; one thread and few steps for them."""

import importlib
import json
import os
import re
import signal
import sys
from dataclasses import is_dataclass, replace
from pathlib import Path

import pytest
import torch

import train
from experiment import machine
from experiment.checkpoint import Checkpoint
from experiment.datasets import FILES, load_mnist
from experiment.errors import DownloadError
from model import Net

# Small nets train faster on one thread, many times so beside other busy processes.
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that a test starts
machine.TORCH_THREADS = 1
torch.set_num_threads(1)
FEWEST, train.TrainLoader.FEWEST = (train.TrainLoader.FEWEST, 0)  # runs on few images stay short

ROOT = Path(train.__file__).parent
PYTHON = sys.orig_argv[0]  # as the user typed it
DIGITS = ["--dataset", "digits", "--device", "cpu"]
SMALL = ["--widths", "4", "4", "4", "4", "4", "--device", "cpu", "--target", "none"]
RUN = ["--dataset", "digits", *SMALL, "--batch-size", "64", "--epochs", "8", "--margin", "2"]


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="inject faults as often as results/reliability.txt says")
    parser.addoption("--screenshot", metavar="FILE", help="write a picture of demo/, as results/page.png")


@pytest.fixture
def repeat(request):
    """repeat(quick, full): how often to inject a fault."""
    return lambda quick, full: full if request.config.getoption("--full") else quick


@pytest.fixture(autouse=True, scope="session")
def signals_as_in_a_terminal():
    """For the processes that a test starts; nohup, or a shell's &, ignores some."""
    for number in (getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def one_thread():
    yield
    torch.set_num_threads(1)  # whatever the test has set


def missing(reason):
    """Skip a test for `reason`; fail it where CI is set, as nothing may be missing there."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def optional(module):
    """The `module` of a package in requirements-optional.txt."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing(f"{error.name} is missing; pip install -r requirements-optional.txt")


@pytest.fixture(scope="session")
def mnist_test():
    """MNIST's 10,000 test images and their labels."""
    try:
        return load_mnist().test
    except DownloadError as error:
        missing(str(error))


def idx_bytes(array):
    """`array` (uint8) as the bytes of an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.numpy().tobytes()


@pytest.fixture
def mnist_dir(tmp_path):
    """A folder with a small random data set in MNIST's format: 70 training and 30 test images."""
    generator, folder = torch.Generator().manual_seed(0), tmp_path / "small"
    folder.mkdir()
    for images_name, labels_name, count in ((*FILES[:2], 70), (*FILES[2:], 30)):
        images = torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        images[:, [0, -1]] = images[:, :, [0, -1]] = 0  # a black rim, as MNIST's
        (folder / images_name).write_bytes(idx_bytes(images))
        (folder / labels_name).write_bytes(idx_bytes(torch.arange(count, dtype=torch.uint8) % 10))
    return folder


@pytest.fixture
def on_forward(monkeypatch):
    """on_forward(hook): call hook(net, images, logits) after each forward pass of any Net; it may return others."""
    forward = Net.forward

    def register(hook):
        def hooked(net, images):
            logits = forward(net, images)
            changed = hook(net, images, logits)
            return logits if changed is None else changed

        monkeypatch.setattr(Net, "forward", hooked)

    return register


def run(*argv, plots=False, **options):
    """Exit code of train.py with the command line `argv`, in this process; pictures take longer than a small run."""
    try:
        return train.main([str(arg) for arg in (*argv, *["--no-plots"] * (not plots))], **options)
    except SystemExit as error:  # argparse leaves by it
        return error.code


def read_metrics(folder):
    """metrics.json of the run in `folder`, which must be strict JSON."""
    return json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)


def assert_one_line(captured, *expected, name="train.py"):
    """`captured` holds one line on stderr: an error of the script `name` with every string of `expected`."""
    assert captured.err.count("\n") == 1 and captured.err.startswith(f"{name}: error: "), captured.err
    assert all(text in captured.err for text in expected), captured.err


def assert_refused(capsys, argv, *expected, code=2):
    """`argv` ends with `code` and one line on stderr that holds every string of `expected`."""
    assert run(*argv) == code
    assert_one_line(capsys.readouterr(), *expected)


def same(a, b):
    """Whether two values of dataclasses, dicts, lists, tensors and plain values are equal, bit for bit."""
    if type(a) is not type(b):
        return False
    if is_dataclass(a):
        a, b = vars(a), vars(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def without_times(folder):
    """All that the run in `folder` leaves behind, but for what the clock says: (checkpoints, metrics, log)."""
    checkpoints = {}
    for name in ("last.pt", "best.pt"):
        checkpoint = Checkpoint.load(folder / name)
        epochs = [replace(epoch, seconds=0) for epoch in checkpoint.history.epochs]
        history = replace(checkpoint.history, epochs=epochs, total_seconds=0, peak_memory_mb=None)
        checkpoints[name] = replace(checkpoint, history=history, log_bytes=0)
    metrics = {**read_metrics(folder), "train_seconds": 0, "total_seconds": 0, "peak_memory_mb": None}
    metrics["epochs"] = [{**epoch, "seconds": 0} for epoch in metrics["epochs"]]
    clock = r"Resumed.*\n|Run: .*\n|Training time.*\n|, \d+\.\d s$"
    return checkpoints, metrics, re.sub(clock, "", (folder / "log.txt").read_text(), flags=re.M)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """Folder of a run with the flags RUN that nothing interrupted; a test that changes it works on a copy."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(*RUN, "--out", folder, plots=True) == 0
    return folder


class RunsCode:
    """Pickled into a file, this makes the folder that it names whenever the file is loaded carelessly."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)
