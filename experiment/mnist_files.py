"""MNIST's files: find, download, read and check them."""

import gzip
import hashlib
import http.client
import math
import os
import tempfile
import urllib.request
import zlib
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch

from data import LARGE
from experiment.errors import DataError, DownloadError
from experiment.files import writing
from model import SIDE

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
PLACES = ("MNIST/raw", "raw", ".")  # in the folder that is given; torchvision makes the first two
DEFAULT_FOLDERS = ("data", "../shared/mnist")  # the second: one copy for several checkouts
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
MNIST_SHA256 = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"  # of the four files' items


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
        files = {path.name for place in PLACES for path in folder.glob(f"{place}/*") if os.path.isfile(path)}
        names = sorted(files.difference(*map(variants, FILES)))
        alike = [f"; {n} looks like {m}: rename it" for m in missing for n in get_close_matches(m, names, 1)]
        raise DataError(
            f"--data-dir {folder} lacks {', '.join(missing)} "
            f"(looked there, in raw and in MNIST/raw, also for .gz){''.join(alike) or '; put them there'}"
        )
    return paths


def look_in(folder):
    """([four paths], []) if one of the PLACES in `folder` has the files; else ([], [missing names])."""
    best_missing = FILES
    for place in PLACES:
        paths = [find_file(folder / place, name) for name in FILES]
        missing = [name for name, path in zip(FILES, paths) if path is None]
        if not missing:
            return paths, []
        best_missing = min(best_missing, missing, key=len)
    return [], best_missing


def find_file(folder, name):
    """Path of the file `name` in `folder`, under any of its variants; None if there is none."""
    return next((folder / found for found in variants(name) if os.path.isfile(folder / found)), None)


def variants(name):
    """The names under which the file `name` is accepted."""
    return [f"{stem}{suffix}" for stem in (name, name.replace("-idx", ".idx")) for suffix in ("", ".gz")]


def download(folder, mirrors=MIRRORS, sha256=MNIST_SHA256, timeout=30):
    """Download the FILES from the first of `mirrors` that has them all into `folder`; returns their paths.

    `timeout`, in seconds, applies to each server response.
    """
    raw, reasons = folder / "MNIST" / "raw", []
    for mirror in mirrors:
        try:
            contents = [fetch(f"{mirror}{name}.gz", timeout) for name in FILES]
            items = (content[16 if "idx3" in name else 8 :] for name, content in zip(FILES, contents))
            if hashlib.sha256(b"".join(items)).hexdigest() != sha256:
                raise OSError("the files have another checksum")
        except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:
            reasons.append(f"{mirror}: {last_line(error)}")
            continue
        with writing(raw, "name a folder with MNIST by --data-dir"):
            raw.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=raw, prefix="download-") as temporary:
                for name, content in zip(FILES, contents):
                    Path(temporary, name).write_bytes(content)
                for name in FILES:
                    os.replace(Path(temporary, name), raw / name)
        return [raw / name for name in FILES]
    raise DownloadError(
        f"MNIST not found in {' or '.join(DEFAULT_FOLDERS)} and could not be downloaded ({'; '.join(reasons)}); "
        f"put {', '.join(FILES)} into {raw}, or run offline with --dataset digits"
    )


def fetch(url, timeout):
    """The unpacked bytes of the .gz file at `url`."""
    with urllib.request.urlopen(url, timeout=timeout) as response:
        return gzip.decompress(response.read())


def last_line(error):
    """The last line of an exception's message, which names the cause; its type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def checksum(tensors):
    """SHA-256 of the bytes of uint8 tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()


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


def read_idx(path, item_shape, map_from=LARGE):
    """Read an IDX file of unsigned bytes (yann.lecun.com/exdb/mnist): uint8 tensor (count, *item_shape).

    The header is checked against the data that follows, so that a damaged one cannot claim memory. An unpacked file of
    `map_from` bytes or more is not read but mapped: its pages are loaded when they are used, and it must not change.
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
            if path.suffix != ".gz" and os.fstat(file.fileno()).st_size == len(header) + size >= map_from:
                mapped = np.memmap(file, np.uint8, "c", offset=len(header), shape=(count, *item_shape))
                return torch.from_numpy(mapped)
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
