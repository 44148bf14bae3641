"""Other data: Keras's mnist.npz, Kaggle's train.csv, pictures by class, scikit-learn's digits; MNIST by download."""

import http.client
import os
import socket
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from experiment.datasets import FILES, find_idx, make_dataset, make_split
from experiment.errors import DataError, DownloadError, reading
from experiment.files import replace_file, writing
from model import SIDE


def download(folder):
    """Download MNIST to MNIST/raw in `folder` by torchvision, all FILES or none; returns {name: path}."""
    from torchvision.datasets import MNIST

    raw, timeout = folder / "MNIST" / "raw", socket.getdefaulttimeout()
    print("MNIST is downloaded (11 MB)", flush=True)
    with tempfile.TemporaryDirectory() as own:  # two processes may download at once
        try:
            socket.setdefaulttimeout(30)  # seconds that a server may be silent
            MNIST(own, download=True)  # compares checksums
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            why = " ".join(str(error).split())
            what = f"put {', '.join(FILES)} into {raw}, or run offline with --dataset digits"
            raise DownloadError(f"MNIST was not found and could not be downloaded ({why}); {what}") from error
        finally:
            socket.setdefaulttimeout(timeout)
        with writing(raw, "name a folder with MNIST by --data-dir"):
            raw.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                replace_file(raw / name, Path(own, "MNIST", "raw", name).read_bytes())
    return {name: raw / name for name in FILES}


def load_folder(place):
    """The Dataset in the folder `place`: mnist.npz, train.csv or pictures by class; or in one of these files."""
    for name, read in (("mnist.npz", read_npz), ("train.csv", read_csv)):
        file = place if place.suffix == Path(name).suffix else place / name
        if os.path.isfile(file):
            return make_dataset(f"{file.resolve().parent.name}/{file.name}", *read(file))
    if any(os.path.isdir(place / part / digit) for part in (".", "train") for digit in "0123456789"):
        return make_dataset(f"{place.resolve().name} (pictures)", *read_pictures(place))
    if os.path.isdir(place):
        found = f"lacks {', '.join(name for name in FILES if name not in find_idx(place))}"
    else:
        found = "is not a directory" if os.path.exists(place) else "does not exist"
    others = "mnist.npz, train.csv, or pictures in train/0 to train/9"
    raise DataError(f"--data-dir {place} {found}; expected these, there, in raw or MNIST/raw, also as .gz; or {others}")


def read_npz(path):
    """The two Splits of Keras's mnist.npz at `path`."""
    with reading(path, "expected x_train, y_train, x_test, y_test", DataError), np.load(path) as arrays:
        pairs = [(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")]
    return [make_split(path, *pair) for pair in pairs]


def read_csv(path, labelled=True):
    """[Split] of Kaggle's train.csv at `path`: a header, then rows of a label and 784 pixels; of test.csv, labels 0."""
    expected = f"expected a header, then rows of {'a label and ' * labelled}784 pixels from 0 to 255"
    with reading(path, expected, DataError), open(path) as file, warnings.catch_warnings():
        warnings.simplefilter("error")  # "no data"
        has_header = not file.readline()[:1].isdigit()
        rows = np.loadtxt(path, np.uint8, delimiter=",", skiprows=int(has_header), ndmin=2)
        images = rows[:, int(labelled) :].reshape(-1, SIDE, SIDE)
    return [make_split(path, images, rows[:, 0] if labelled else np.zeros(len(rows), np.uint8))]


def read_pictures(folder):
    """The Splits of the pictures by class in `folder`, in train/0 to train/9 and test/0 to test/9, or in 0 to 9."""
    from PIL.Image import OPEN, registered_extensions
    from torchvision.datasets import ImageFolder

    from photo import prepare_or_keep

    suffixes = tuple(suffix for suffix, kind in registered_extensions().items() if kind in OPEN)
    parts = ["train" if os.path.isdir(folder / "train") else ".", *["test"] * os.path.isdir(folder / "test")]
    splits = []
    for part in parts:
        with reading(folder / part, "expected folders 0 to 9 with pictures of one digit", DataError):
            options = {"loader": prepare_or_keep, "is_valid_file": lambda file: file.lower().endswith(suffixes)}
            pictures = ImageFolder(folder / part, **options)
            digits = np.array([int(name) for name in pictures.classes])
            images, labels = zip(*pictures)
        splits.append(make_split(folder / part, np.stack(images), digits[list(labels)]))
    return splits


def load_digits_28x28():
    """scikit-learn's 1,797 real 8x8 digits, enlarged to 28x28; a fixed stratified fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().mul(255 / 16).unsqueeze(1)  # (1797, 1, 8, 8), 0..255
    images = F.interpolate(images, size=(20, 20), mode="bilinear")  # MNIST's digits fill a 20x20 box
    images = F.pad(images, (4, 4, 4, 4)).round().byte().squeeze(1).numpy()  # (1797, 28, 28)
    arrays = train_test_split(images, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    train_images, test_images, train_labels, test_labels = arrays
    splits = make_split("digits", train_images, train_labels), make_split("digits", test_images, test_labels)
    return make_dataset("digits", *splits)
