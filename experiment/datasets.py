"""The data sets as tensors: MNIST or other data in its format, scikit-learn's digits; images held out."""

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F

from data import Dataset, Split
from experiment.errors import DataError, reason
from model import SIDE

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
PLACES = ("MNIST/raw", "raw", ".")  # in the folder that is given; torchvision makes the first two
DEFAULT_FOLDERS = ("data", "../shared/mnist")  # the second: one copy for several checkouts
MNIST_SHA256 = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"  # of the four files' items


def load_data(settings, for_training=True):
    """The Dataset of `settings` on the CPU; for training with the images that they hold out."""
    dataset = load_digits_28x28() if settings.dataset == "digits" else load_mnist(settings.data_dir)
    if not for_training:
        return dataset
    if settings.holdout is not None:
        dataset = hold_out(dataset, settings.holdout, settings.seed)
    count, batch_size = len(dataset.train.labels), settings.recipe.batch_size
    if batch_size > count:
        raise DataError(f"--batch-size {batch_size}: expected at most {count}, the number of training images")
    return dataset


def load_mnist(data_dir=None):
    """Data in MNIST's format from `data_dir`; if that is None, from DEFAULT_FOLDERS or else downloaded to ./data."""
    paths = find_files(data_dir)
    if paths is None:
        from experiment.download import download

        paths = download(FILES, Path("data", "MNIST", "raw"), MNIST_SHA256)
    images, labels, test_images, test_labels = read_files(paths)
    dataset = make_dataset("mnist", images.unsqueeze(1), labels, test_images.unsqueeze(1), test_labels)
    if dataset.sha256 == MNIST_SHA256:
        return dataset
    folder = paths[0].resolve().parent
    while folder.name in ("raw", "MNIST"):  # FashionMNIST is the name of FashionMNIST/raw/train-…
        folder = folder.parent
    return dataset._replace(name=f"{folder.name} (MNIST format)")


def load_digits_28x28():
    """scikit-learn's 1,797 real 8x8 digits, enlarged to 28x28; a fixed stratified fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().mul(255 / 16).unsqueeze(1)  # (1797, 1, 8, 8), 0..255
    images = F.interpolate(images, size=(20, 20), mode="bilinear")  # MNIST's digits fill a 20x20 box
    images = F.pad(images, (4, 4, 4, 4)).round().byte().numpy()  # (1797, 1, 28, 28)
    split = train_test_split(images, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    train_images, test_images, train_labels, test_labels = (torch.from_numpy(array) for array in split)
    return make_dataset("digits", train_images, train_labels.byte(), test_images, test_labels.byte())


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


def make_dataset(name, *tensors):
    """A Dataset of training images and labels and test images and labels: uint8, (N, 1, 28, 28) and (N,)."""
    train_images, train_labels, test_images, test_labels = tensors
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy())
    train, test = Split(train_images, train_labels.long()), Split(test_images, test_labels.long())
    return Dataset(name, digest.hexdigest(), train, test)


def find_files(data_dir=None):
    """Paths of the four FILES, in that order; None if no `data_dir` was given and no default folder has them."""
    if data_dir is None:
        return next(filter(None, (look_in(Path(folder))[0] for folder in DEFAULT_FOLDERS)), None)
    folder = Path(data_dir)
    if not os.path.isdir(folder):
        what = "is not a directory" if os.path.exists(folder) else "does not exist"
        raise DataError(f"--data-dir {folder} {what}; expected a directory with {', '.join(FILES)}")
    paths, missing = look_in(folder)
    if missing:
        where = "looked there, in raw and in MNIST/raw, also for .gz"
        raise DataError(f"--data-dir {folder} lacks {', '.join(missing)} ({where}); put them there")
    return paths


def look_in(folder):
    """([four paths], []) if one of the PLACES in `folder` has the FILES; else ([], [names that are missing])."""
    best_missing = FILES
    for place in PLACES:
        paths = [find_file(folder / place, name) for name in FILES]
        missing = [name for name, path in zip(FILES, paths) if path is None]
        if not missing:
            return paths, []
        best_missing = min(best_missing, missing, key=len)
    return [], best_missing


def find_file(folder, name):
    """The path of the file `name` in `folder`, also packed, or with a dot as some copies have it; None if not there."""
    names = (f"{stem}{suffix}" for stem in (name, name.replace("-idx", ".idx")) for suffix in ("", ".gz"))
    return next((folder / found for found in names if os.path.isfile(folder / found)), None)


def read_files(paths):
    """Read and check the four files at `paths`, in the order of FILES: uint8 images (N, 28, 28) and labels (N,)."""
    tensors = []
    for images_path, labels_path in (paths[:2], paths[2:]):
        images, labels = read_idx(images_path, (SIDE, SIDE)), read_idx(labels_path, ())
        if len(images) != len(labels):
            counts = f"{labels_path} holds {len(labels)} labels, but {images_path} holds {len(images)} images"
            raise DataError(f"{counts}; the counts must match: replace the wrong file")
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
            size, content = count * math.prod(item_shape), bytearray()
            while chunk := file.read(min(1 << 20, size + 1 - len(content))):
                content += chunk
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}; replace the file or its permissions") from error
    if len(content) != size:
        found = f"more than {size}" if len(content) > size else f"only {len(content)}"
        raise wrong(f"{found} bytes of data", f"{size} ({count} items, as its header says)")
    return torch.frombuffer(content, dtype=torch.uint8).view(count, *item_shape)
