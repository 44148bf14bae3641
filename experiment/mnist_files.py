"""MNIST's files: find, download, read and check them."""

import gzip
import hashlib
import http.client
import math
import os
import tempfile
import urllib.request
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from experiment.errors import DataError, DownloadError
from model import SIDE

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
DEFAULT_FOLDERS = ("data", "../shared/mnist")  # the second: one copy for several checkouts


def import_torchvision_mnist():
    """torchvision's MNIST class; DataError that names both versions if torch and torchvision do not match."""
    try:
        from torchvision.datasets import MNIST
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        try:
            found = version("torchvision")
        except PackageNotFoundError:
            found = "none"
        raise DataError(
            f"torchvision cannot be imported: found torch {torch.__version__} and torchvision {found} "
            f"({last_line(error)}); the two must be released together: "
            "pip install --upgrade --force-reinstall torch torchvision"
        ) from error
    return MNIST


def find_files(data_dir=None):
    """Paths of the four FILES, in that order; None if no `data_dir` was given and no default folder has them."""
    if data_dir is None:
        found = (look_in(Path(folder))[0] for folder in DEFAULT_FOLDERS)
        return next((paths for paths in found if paths), None)
    folder = Path(data_dir)
    if not os.path.isdir(folder):
        what = "is not a directory" if os.path.exists(folder) else "does not exist"
        raise DataError(f"--data-dir {folder} {what}; expected a directory with {', '.join(FILES)}")
    paths, missing = look_in(folder)
    if missing:
        raise DataError(
            f"--data-dir {folder} lacks {', '.join(missing)} "
            f"(looked in {folder} and {folder / 'MNIST' / 'raw'}, also for .gz); put them there"
        )
    return paths


def look_in(folder):
    """([four paths], []) if the files lie in `folder` or its MNIST/raw, plain or .gz; else ([], [missing names])."""
    best_missing = FILES
    for place in (folder / "MNIST" / "raw", folder):
        paths = [next((p for p in (place / name, place / f"{name}.gz") if os.path.exists(p)), None) for name in FILES]
        missing = [name for name, path in zip(FILES, paths) if path is None]
        if not missing:
            return paths, []
        best_missing = min(best_missing, missing, key=len)
    return [], best_missing


def download(mnist_class, folder, timeout=30):
    """Download MNIST from the mirrors of torchvision's class into `folder`; returns the paths of the four FILES.

    `timeout` in seconds is for each answer of a server. Nothing half-downloaded is left behind.
    """
    raw = folder / "MNIST" / "raw"
    try:
        raw.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{raw} cannot be written: {last_line(error)}; name a folder with MNIST by --data-dir"
        ) from error
    try:
        with tempfile.TemporaryDirectory(dir=raw, prefix="download-") as temporary:
            for name, md5 in mnist_class.resources:
                content = fetch([mirror + name for mirror in mnist_class.mirrors], md5, timeout)
                Path(temporary, name.removesuffix(".gz")).write_bytes(gzip.decompress(content))
            for name in FILES:
                os.replace(Path(temporary, name), raw / name)
    except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:
        raise DownloadError(
            f"no MNIST in {' or '.join(DEFAULT_FOLDERS)}, and no download from {' or '.join(mnist_class.mirrors)} "
            f"({last_line(error)}); put {', '.join(FILES)} into {raw}, or train without a network by --dataset digits"
        ) from error
    finally:
        remove_empty(raw)
    return [raw / name for name in FILES]


def fetch(urls, md5, timeout):
    """The content of the first of `urls` that answers with the check sum `md5`."""
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as response:
                content = response.read()
            if hashlib.md5(content).hexdigest() != md5:
                raise OSError(f"{url} has another check sum than {md5}")
            return content
        except (OSError, http.client.HTTPException):
            if url == urls[-1]:
                raise


def remove_empty(folder):
    """Remove `folder` and those above it, as far as they are empty."""
    try:
        os.removedirs(folder)
    except OSError:
        return


def last_line(error):
    """The last line of an exception's message, which names the cause; its type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def read_files(paths):
    """Read and check the four files at `paths`, in the order of FILES: uint8 images (N, 28, 28) and labels (N,)."""
    tensors = []
    for images_path, labels_path in (paths[:2], paths[2:]):
        images = read_idx(images_path, (SIDE, SIDE))
        labels = read_idx(labels_path, ())
        if len(images) != len(labels):
            raise DataError(
                f"{labels_path} holds {len(labels)} labels, but {images_path} holds {len(images)} images; "
                "the counts must match: replace the wrong file"
            )
        if labels.max() > 9:
            index = int(labels.argmax())
            raise DataError(f"{labels_path}: label {index} is {labels[index]}, expected 0 to 9: replace the file")
        tensors += [images, labels]
    return tensors


def read_idx(path, item_shape):
    """Read an IDX file of unsigned bytes (yann.lecun.com/exdb/mnist): uint8 tensor (count, *item_shape).

    The header is checked against the data that follows, so that a damaged one cannot claim memory.
    """

    def wrong(found, expected):
        return DataError(f"{path}: found {found}, expected {expected}: replace the file")

    dimensions = 1 + len(item_shape)
    magic = bytes((0, 0, 8, dimensions))  # 8: unsigned byte
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if header[:4] != magic:
                raise wrong(f"magic number 0x{header[:4].hex()}", f"0x{magic.hex()}")
            if len(header) < 4 + 4 * dimensions:
                raise wrong(f"a header of {len(header)} bytes", f"{4 + 4 * dimensions}")
            count, *shape = (int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4))
            if tuple(shape) != item_shape:
                raise wrong("images of " + "x".join(map(str, shape)), "x".join(map(str, item_shape)))
            if count == 0:
                raise wrong("no items", "at least one")
            size = count * math.prod(item_shape)
            content = bytearray()
            while chunk := file.read(min(1 << 20, size + 1 - len(content))):
                content += chunk
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {reason}; replace the file or its permissions") from error
    if len(content) != size:
        found = f"more than {size}" if len(content) > size else f"only {len(content)}"
        raise wrong(f"{found} bytes of data", f"{size} ({count} items, as its header says)")
    return torch.frombuffer(content, dtype=torch.uint8).view(count, *item_shape)


def data_name(path):
    """The folder that names the data set of the file at `path`: FashionMNIST for FashionMNIST/raw/train-…"""
    folder = path.resolve().parent
    while folder.name in ("raw", "MNIST"):
        folder = folder.parent
    return folder.name
