"""Data shared by the tests."""

import pytest
import torch


def idx_bytes(array):
    """`array` (uint8) as the bytes of an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.numpy().tobytes()


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
