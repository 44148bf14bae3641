"""What the tests share: a small data set, runs of train.py in this process, and one thread for all of them."""

import json

import pytest
import torch

import train
from experiment.mnist_files import FILES

DIGITS = ["--dataset", "digits", "--device", "cpu", "--precision", "fp32"]
SMALL = ["--widths", "4", "4", "4", "4", "4", "--device", "cpu", "--precision", "fp32", "--target", "none"]


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="inject faults as often as results/reliability.txt says")


@pytest.fixture
def repeat(request):
    """repeat(quick, full): how often to inject a fault."""
    return lambda quick, full: full if request.config.getoption("--full") else quick


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Small nets train faster on one thread, many times so beside other busy processes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes that a test starts
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
        (folder / images_name).write_bytes(idx_bytes(images))
        (folder / labels_name).write_bytes(idx_bytes(torch.arange(count, dtype=torch.uint8) % 10))
    return folder


def run(*argv, **options):
    """Exit code of train.py with the command line `argv`, in this process."""
    try:
        return train.main([str(arg) for arg in argv], **options)
    except SystemExit as error:  # argparse leaves by it
        return error.code


def read_metrics(folder):
    """metrics.json of the run in `folder`, which must be strict JSON."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)


def assert_one_line(captured, *expected, name="train.py"):
    """`captured` holds one line on stderr: an error of the script `name` with every string of `expected`."""
    assert captured.err.count("\n") == 1 and captured.err.startswith(f"{name}: error: "), captured.err
    for text in expected:
        assert text in captured.err, captured.err
