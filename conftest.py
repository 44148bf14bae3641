"""Data shared by the tests."""

import pytest
import torch


def idx_bytes(array):
    """`array` (uint8) as the bytes of an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.numpy().tobytes()


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="inject faults as often as the README's figures say")


@pytest.fixture
def one_thread(monkeypatch):
    """Small nets train faster on one thread, many times so where other processes want the cores too."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes that a test starts
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def mnist_dir(tmp_path):
    """A folder with a small random data set in MNIST's format."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 70), ("t10k", 30)):
        images = torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        labels = torch.arange(count, dtype=torch.uint8) % 10
        folder = tmp_path / "small"
        folder.mkdir(exist_ok=True)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return folder
