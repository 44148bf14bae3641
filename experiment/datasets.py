"""MNIST, or data like it, as tensors, with images held out; sources.py reads other formats."""

import gzip
import hashlib
import math
import os
from pathlib import Path

import numpy as np
import torch

from data import Dataset, Split
from experiment.errors import DataError, reading
from model import SIDE

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
PLACES = ("MNIST/raw", "raw", ".")  # in the folder that is given; torchvision makes the first two
DEFAULT_FOLDERS = ("data", "../shared/mnist")  # the second: one copy for several checkouts
MNIST_SHA256 = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"  # of the four files' items


def load_data(settings, for_training=True):
    """The Dataset of `settings` on the CPU; for training with the images that they hold out.

    Where there are no test images, those that are held out take their place.
    """
    if settings.dataset == "digits":
        from experiment.sources import load_digits_28x28  # needed here alone

        dataset = load_digits_28x28()
    else:
        dataset = load_mnist(settings.data_dir)
    if dataset.test is None and settings.holdout is None:
        count = max(10, len(dataset.train.labels) // 5)
        raise DataError(f"{dataset.name} has no labelled test images; hold some out: --holdout {count}")
    if settings.holdout is not None and (for_training or dataset.test is None):
        dataset = hold_out(dataset, settings.holdout, settings.seed)
    if dataset.test is None:
        dataset = dataset._replace(test=dataset.holdout, holdout=None)
    if for_training and (size := settings.recipe.batch_size) > (count := len(dataset.train.labels)):
        raise DataError(f"--batch-size {size}: expected at most {count}, the number of training images")
    return dataset


def load_mnist(data_dir=None):
    """MNIST, or data like it, from `data_dir`; if that is None, from DEFAULT_FOLDERS or else downloaded to ./data."""
    folders = DEFAULT_FOLDERS if data_dir is None else (data_dir,)
    for paths in map(find_idx, map(Path, folders)):
        if len(paths) == len(FILES):
            return read_idx_files(paths)
    from experiment import sources

    return sources.load_folder(Path(data_dir)) if data_dir else read_idx_files(sources.download(Path("data")))


def hold_out(dataset, count, seed):
    """Move `count` training images, stratified by label and drawn by `seed`, to the split `holdout`."""
    from sklearn.model_selection import train_test_split

    images, labels = dataset.train
    total = len(labels)
    try:
        rest, held = train_test_split(range(total), test_size=count, stratify=labels, random_state=seed % 2**32)
    except ValueError as error:
        classes = len(labels.unique())
        expected = f"{classes} to {total - classes} of the {total} training images, two or more of each class"
        raise DataError(f"--holdout {count}: expected {expected}") from error
    return dataset._replace(train=Split(images[rest], labels[rest]), holdout=Split(images[held], labels[held]))


def make_dataset(name, train, test=None):
    """The Dataset of two Splits, or of one; its name is "mnist" if that is what it is."""
    if train.images.max() <= 1:
        raise DataError(f"{name}: no pixel exceeds 1; expected whole numbers up to 255: multiply by 255")
    digest = hashlib.sha256()
    for images, labels in filter(None, (train, test)):
        digest.update(images.contiguous().numpy())
        digest.update(labels.byte().numpy())
    return Dataset("mnist" if digest.hexdigest() == MNIST_SHA256 else name, digest.hexdigest(), train, test)


def make_split(path, images, labels):
    """The Split of the arrays (N, 28, 28) and (N,), read from `path`; DataError if they are no images of digits."""
    found = f"found images {images.dtype} {images.shape} and labels {labels.dtype} {labels.shape}"
    if not (images.size and images.shape[1:] == (SIDE, SIDE) and labels.shape == images.shape[:1]):
        raise DataError(f"{path}: {found}, expected (N, 28, 28) and (N,); replace the data")
    for values, highest in ((images, 255), (labels, 9)):
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > highest:
            raise DataError(f"{path}: {found}, expected whole numbers from 0 to {highest}; replace the data")
    images, labels = images.astype(np.uint8, copy=False), labels.astype(np.int64)
    return Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels))


def find_idx(folder):
    """{name: path} of the FILES in that of the PLACES in `folder` that has most, also packed or with a usual name."""
    places = []
    for place in PLACES:
        places.append({})
        for name in FILES:
            stems = (name, name.replace("-idx", ".idx"), "emnist-digits-" + name.replace("t10k", "test"))
            paths = (folder / place / (stem + suffix) for stem in stems for suffix in ("", ".gz"))
            if path := next(filter(os.path.isfile, paths), None):
                places[-1][name] = path
    return max(places, key=len)


def read_idx_files(paths):
    """The Dataset of the four files at `paths`, a dict in the order of FILES."""
    paths, splits = list(paths.values()), []
    for images_path, labels_path in (paths[:2], paths[2:]):
        images, labels = read_idx(images_path, (SIDE, SIDE)), read_idx(labels_path, ())
        is_emnist = images_path.name.startswith("emnist")
        splits.append(make_split(labels_path, images.swapaxes(1, 2) if is_emnist else images, labels))
    folder = paths[0].resolve().parent
    while folder.name in ("raw", "MNIST"):  # FashionMNIST is the name of FashionMNIST/raw/train-…
        folder = folder.parent
    return make_dataset(f"{folder.name} (MNIST format)", *splits)


def read_idx(path, item_shape):
    """Read an IDX file of unsigned bytes (yann.lecun.com/exdb/mnist): uint8 array (count, *item_shape)."""
    with reading(path, "replace the file or its permissions", DataError):
        content = np.fromfile(path, np.uint8)
        if bytes(content[:2]) == b"\x1f\x8b":  # gzip, whatever its suffix
            content = np.frombuffer(bytearray(gzip.decompress(content)), np.uint8)
    start = 8 + 4 * len(item_shape)  # of the data
    header = [int.from_bytes(content[i : i + 4], "big") for i in range(0, start, 4)]
    expected = [0x0801 + len(item_shape), max(1, header[1]), *item_shape]  # 08: unsigned byte; 01: dimensions
    size = start + math.prod(expected[1:])
    if header != expected or len(content) != size:
        found = f"found {len(content)} bytes that begin with the numbers {header}"
        raise DataError(f"{path}: {found}, expected {size} bytes and {expected}; replace the file")
    return content[start:].reshape(expected[1:])
