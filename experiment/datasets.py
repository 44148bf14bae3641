"""The data sets as tensors: MNIST or other data in its format, scikit-learn's digits; images held out."""

from pathlib import Path

import torch
import torch.nn.functional as F

from data import Dataset, Split
from experiment.errors import DataError
from experiment.mnist_files import MNIST_SHA256, checksum, data_name, download, find_files, read_files


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
    paths = find_files(data_dir) or download(Path("data"))
    train_images, train_labels, test_images, test_labels = read_files(paths)
    dataset = make_dataset("mnist", train_images.unsqueeze(1), train_labels, test_images.unsqueeze(1), test_labels)
    # Other data in MNIST's format is accepted, but not reported as MNIST.
    return dataset if dataset.sha256 == MNIST_SHA256 else dataset._replace(name=f"{data_name(paths[0])} (MNIST format)")


def hold_out(dataset, count, seed):
    """Move `count` training images, stratified by label and drawn by `seed`, to the split `holdout`."""
    from sklearn.model_selection import train_test_split

    images, labels = dataset.train
    total = len(labels)
    try:
        rest, held = train_test_split(range(total), test_size=count, stratify=labels, random_state=seed % 2**32)
    except ValueError as error:
        counts = labels.bincount()
        classes, single = counts.count_nonzero(), (counts == 1).nonzero().flatten().tolist()
        expected = f"{classes} to {total - classes}, so that each of the {classes} classes appears in both parts"
        if single:
            expected = f"no held-out images, since class {single[0]} has a single image"
        raise DataError(f"--holdout {count}: expected {expected} of the {total} training images") from error
    return dataset._replace(train=Split(images[rest], labels[rest]), holdout=Split(images[held], labels[held]))


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


def make_dataset(name, *tensors):
    """A Dataset of training images and labels and test images and labels: uint8, (N, 1, 28, 28) and (N,)."""
    train_images, train_labels, test_images, test_labels = tensors
    train, test = Split(train_images, train_labels.long()), Split(test_images, test_labels.long())
    return Dataset(name, checksum(tensors), train, test)
