"""Images and labels as tensors: find, download and check the files; deskew, crop, augment and normalise images.

Images are uint8 (N, 1, 28, 28) or cropped, labels int64 (N,), both on the training device from start to end.
"""

import contextlib
import gzip
import hashlib
import http.client
import math
import os
import socket
import tempfile
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

MEAN, STD = 0.1307, 0.3081  # of MNIST's training pixels, scaled to 0..1
SIDE = 28
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DEFAULT_FOLDERS = ("data", "../shared/mnist")  # the second: one copy for several checkouts
MNIST_SHA256 = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"


class DataError(Exception):
    """Data that cannot be used; the message is one line that says what to do."""

    exit_code = 2


class DownloadError(DataError):
    """Data that is not there and could not be downloaded."""

    exit_code = 1


class Dataset(NamedTuple):
    """A training and a test set: uint8 images (N, 1, S, S), int64 labels (N,) in 0..9; `sha256` is of all four."""

    name: str
    sha256: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    def to(self, device):
        return Dataset(*self[:2], *(tensor.to(device) for tensor in self[2:]))


def load_dataset(name="mnist", data_dir=None):
    """Load `name` ("mnist" or "digits") on the CPU; raise DataError where that cannot be done.

    "mnist" is looked for in `data_dir` alone if given, else in DEFAULT_FOLDERS, else downloaded to ./data.
    """
    if name == "digits":
        return load_digits_28x28()
    mnist_class = import_torchvision_mnist()  # also where nothing is to be downloaded: a broken install shows at once
    return load_idx_files(find_files(data_dir) or download(mnist_class, Path("data")))


def hold_out(dataset, count, seed):
    """Take `count` training images away, stratified and fixed by `seed`: (what remains, their images, their labels)."""
    from sklearn.model_selection import train_test_split

    total, labels = len(dataset.train_labels), dataset.train_labels
    try:
        rest, held = train_test_split(range(total), test_size=count, stratify=labels, random_state=seed % 2**32)
    except ValueError as error:
        classes = len(labels.unique())
        raise DataError(
            f"--holdout {count}: expected {classes} to {total - classes}, so that each of the {classes} classes "
            f"has an image among the held-out and among the other of the {total} training images"
        ) from error
    remaining = dataset._replace(train_images=dataset.train_images[rest], train_labels=labels[rest])
    return remaining, dataset.train_images[held], labels[held]


def load_digits_28x28():
    """scikit-learn's 1,797 real 8x8 digits, brought to 28x28; a fixed stratified fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().mul(255 / 16).unsqueeze(1)  # (1797, 1, 8, 8), 0..255
    images = F.interpolate(images, size=(20, 20), mode="bilinear")  # MNIST's digits fill a 20x20 box
    images = F.pad(images, (4, 4, 4, 4)).round().byte().numpy()  # (1797, 1, 28, 28)
    split = train_test_split(images, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    train_images, test_images, train_labels, test_labels = (torch.from_numpy(array) for array in split)
    return make_dataset("digits", train_images, train_labels.byte(), test_images, test_labels.byte())


def import_torchvision_mnist():
    """torchvision's MNIST class, or a DataError that names the two versions if they do not fit."""
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


def download(mnist_class, folder):
    """Download MNIST by torchvision, which checks MD5 sums, into `folder`; return the paths of the four FILES."""
    raw = folder / "MNIST" / "raw"
    try:
        raw.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{raw} cannot be written: {last_line(error)}; name a folder with MNIST by --data-dir"
        ) from error
    try:
        # Into a folder of its own first: an interrupted or doubled download leaves no half files behind.
        with tempfile.TemporaryDirectory(dir=raw, prefix="download-") as temporary:
            socket.setdefaulttimeout(30)  # a network that swallows packets must not hang the download
            mnist_class(temporary, download=True)
            for name in FILES:
                os.replace(Path(temporary, "MNIST", "raw", name), raw / name)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DownloadError(
            f"no MNIST in {' or '.join(DEFAULT_FOLDERS)}, and no download from {' or '.join(mnist_class.mirrors)} "
            f"({last_line(error)}); put {', '.join(FILES)} into {raw}, or train without a network by --dataset digits"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.removedirs(raw)  # only what is empty
    return [raw / name for name in FILES]


def last_line(error):
    """The last line of an exception's message, which names the cause; its type where it has no message."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def load_idx_files(paths):
    """Read and check the four files at `paths`, in the order of FILES."""
    tensors = []
    for images_path, labels_path in (paths[:2], paths[2:]):
        images = read_idx(images_path, (SIDE, SIDE))
        labels = read_idx(labels_path, ())
        if len(images) != len(labels):
            raise DataError(
                f"{labels_path} holds {len(labels)} labels, but {images_path} holds {len(images)} images; "
                "expected as many of one as of the other: replace the wrong file"
            )
        if labels.max() > 9:
            index = int(labels.argmax())
            raise DataError(f"{labels_path}: label {index} is {labels[index]}, expected 0 to 9: replace the file")
        tensors += [images.unsqueeze(1), labels]
    dataset = make_dataset("mnist", *tensors)
    # Other data in MNIST's format is welcome, but never called MNIST.
    return dataset if dataset.sha256 == MNIST_SHA256 else dataset._replace(name=f"{data_name(paths[0])} (MNIST format)")


def make_dataset(name, train_images, train_labels, test_images, test_labels):
    """A Dataset of uint8 tensors, images (N, 1, 28, 28) and labels (N,), with their check sum."""
    digest = hashlib.sha256()
    for tensor in (train_images, train_labels, test_images, test_labels):
        digest.update(tensor.contiguous().numpy())
    return Dataset(name, digest.hexdigest(), train_images, train_labels.long(), test_images, test_labels.long())


def data_name(path):
    """The folder that names the data set of the file at `path`: FashionMNIST for FashionMNIST/raw/train-…"""
    folder = path.resolve().parent
    while folder.name in ("raw", "MNIST"):
        folder = folder.parent
    return folder.name


def read_idx(path, item_shape):
    """Read an IDX file of unsigned bytes (yann.lecun.com/exdb/mnist): uint8 tensor (count, *item_shape).

    The header is checked against what is really there, so that a damaged one can't claim memory.
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


class Loader:
    """Batches of a tensor data set that stays on its device; iterate it once per epoch.

    Yields (images, labels): normalised float images (B, 1, S, S) and int64 labels (B,). Every image comes once per
    epoch, the last batch may be smaller. `shuffle` draws a new order for each epoch; `augment` takes float images
    (B, 1, S, S) in 0..1 and returns as many. Both draw from torch's default generator.
    """

    def __init__(self, images, labels, batch_size, *, shuffle, augment=None):
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.shuffle, self.augment = shuffle, augment

    def __len__(self):
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self):
        count, device = len(self.images), self.images.device
        if self.shuffle:
            order = torch.randperm(count, device=device)
        else:
            order = torch.arange(count, device=device)
        for index in order.split(self.batch_size):
            images = self.images[index].float().div_(255)
            if self.augment is not None:
                images = self.augment(images)
            yield images.sub_(MEAN).div_(STD), self.labels[index]


def prepare(images, settings):
    """Images as a net of these `settings` wants them, in training and after: uint8 (N, 1, 28, 28) on the CPU.

    Returns them deskewed where settings["deskew"] says so, and with settings["margin"] pixels cut off on each side.
    """
    if settings["deskew"]:
        images = deskew(images)
    kept = slice(settings["margin"], SIDE - settings["margin"])
    return images[:, :, kept, kept].contiguous()


def deskew(images):
    """Shear every digit upright: uint8 (N, 1, 28, 28) on the CPU to the same.

    Rows slide sideways, that of the centre of mass stays, until x and y of the ink are uncorrelated (LeCun and others,
    Gradient-Based Learning Applied to Document Recognition, 1998, where it is called deslanting).
    """
    steps = torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    powers = torch.stack([torch.ones_like(x), x, y, x * y, y * y]).flatten(1).T  # (784, 5)
    upright = torch.empty_like(images)
    for part, out in zip(images.split(1000), upright.split(1000)):
        # These sums are exact in float64, and so the same for any number of threads.
        mass, *moments = (part.flatten(1).double() @ powers).T
        mean_x, mean_y, mean_xy, mean_yy = torch.stack(moments) / mass.clamp_min(1)
        slant = (mean_xy - mean_x * mean_y) / (mean_yy - mean_y * mean_y).clamp_min(1e-3)  # pixels per row
        slide = torch.stack([slant * mean_y, torch.zeros_like(slant)])
        shear = torch.rad2deg(slant.atan())
        none = torch.zeros(len(part))
        sheared = affine(part.float(), angle=none, translate=slide.float(), scale=none + 1, shear=shear.float())
        out.copy_(sheared.round())
    return upright


class RandomAffine:
    """Rotate, shift, scale and shear every image of a batch by amounts of its own, uniform in ± the given ones.

    Args: degrees; translate, a fraction of 28 pixels; scale, a fraction of the size; shear, in degrees.
    """

    def __init__(self, degrees, translate, scale, shear):
        self.degrees, self.translate, self.scale, self.shear = degrees, translate, scale, shear

    def __call__(self, images):
        uniform = torch.rand(5, len(images), device=images.device) * 2 - 1
        return affine(
            images,
            angle=self.degrees * uniform[0],
            translate=self.translate * SIDE * uniform[1:3],
            scale=1 + self.scale * uniform[3],
            shear=self.shear * uniform[4],
        )


def affine(images, angle, translate, scale, shear):
    """Transform each image about its centre, as torchvision.transforms.functional.affine does one by one.

    Args: float images (N, 1, S, S) with background 0; angle and shear (N,) in degrees; translate (2, N) in pixels,
    x then y; scale (N,). Returns float images (N, 1, S, S), bilinear, background 0.
    """
    angle, shear = torch.deg2rad(angle), torch.deg2rad(shear)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # grid_sample wants the inverse map, from output to input places, with the half side as the unit.
    xx, xy = cos - sin * torch.tan(shear), sin + cos * torch.tan(shear)
    yx, yy = -sin, cos
    side = images.shape[-1]
    dx, dy = translate * (-2 / side)
    matrices = torch.stack([xx, xy, xx * dx + xy * dy, yx, yy, yx * dx + yy * dy], dim=1)  # (N, 6)
    steps = (torch.arange(side, device=images.device) * 2 + 1) / side - 1
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)]).flatten(1)  # (3, S * S)
    # One product for the whole batch; affine_grid takes one for each image, which is many times slower on a CPU.
    grid = (matrices.view(-1, 3) @ places).view(-1, 2, side, side).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, align_corners=False)
