"""From tensors to batches: shuffle, batch and augment images that stay on the training device."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model import SIDE

LARGE = 2**30  # bytes; a file of as many is not read into memory, but mapped


class Split(NamedTuple):
    """Images, uint8 (N, 1, 28, 28), and their labels, int64 (N,) in 0..9."""

    images: torch.Tensor
    labels: torch.Tensor


class Dataset(NamedTuple):
    """The splits of a data set. Every epoch is evaluated on `holdout` if there is one, else on `test`."""

    name: str
    sha256: str  # of all images and labels, before any are held out
    train: Split
    test: Split
    holdout: Split | None = None

    @property
    def evaluation(self):
        return self.test if self.holdout is None else self.holdout

    def to(self, device):
        def move(split):
            return None if split is None else Split(split.images.to(device), split.labels.to(device))

        return self._replace(train=move(self.train), test=move(self.test), holdout=move(self.holdout))


class Loader:
    """Batches of images and labels, in order: float images (B, 1, 28, 28) in 0..1 and int64 labels (B,).

    The last batch may be smaller.
    """

    def __init__(self, images, labels, batch_size):
        self.images, self.labels, self.batch_size = images, labels, batch_size

    def __iter__(self):
        for index in self.epoch_batches():
            self.index = index
            yield self.images[index].float().div_(255), self.labels[index]

    def epoch_batches(self):
        """The indices of each batch of one epoch."""
        return torch.arange(len(self.labels), device=self.labels.device).split(self.batch_size)


class TrainLoader(Loader):
    """Shuffled batches of the images that an epoch trains on; iterate once per epoch.

    The first epoch takes a random fraction `first_share` of all images, each later one a fraction `later_share`: 30% of
    these are drawn at random, so that none is forgotten, 70% are the hardest of the rest. An image's hardness is its
    loss when it was last trained on, divided by the mean loss of that batch, in the spirit of online batch selection
    (arXiv:1511.06343). The loop must `record` the losses of every batch.
    """

    def __init__(self, images, labels, batch_size, first_share=1.0, later_share=1.0):
        super().__init__(images, labels, batch_size)
        self.first_count, self.later_count = (math.ceil(share * len(labels)) for share in (first_share, later_share))
        self.hardness = None  # (N,), 0 for an image that was never trained on; None before the first batch
        self.weight = 1.0  # of the mean loss of a batch; another one where several processes share the batches

    def __len__(self):
        """Batches in the coming epoch."""
        return self.batches(self.first_count if self.hardness is None else self.later_count)

    def steps(self, epochs):
        """Batches in a run of `epochs`."""
        return self.batches(self.first_count) + (epochs - 1) * self.batches(self.later_count)

    def batches(self, count):
        return math.ceil(count / self.batch_size)

    def epoch_batches(self):
        return self.epoch_indices().split(self.batch_size)

    def epoch_indices(self):
        shuffled = torch.randperm(len(self.labels), device=self.labels.device)
        if self.hardness is None:
            shuffled = shuffled[: self.first_count]
        elif self.later_count < len(shuffled):
            ranked = self.hardness[shuffled]
            ranked[: round(0.3 * self.later_count)] = math.inf
            selected = shuffled[ranked.argsort(descending=True, stable=True)[: self.later_count]]
            shuffled = selected[torch.randperm(self.later_count, device=shuffled.device)]
        return shuffled if self.images.nbytes < LARGE else near_each_other(shuffled)

    def record(self, losses):
        """Update the hardness of the latest batch from its losses (B,)."""
        if self.hardness is None:
            self.hardness = torch.zeros(len(self.labels), device=losses.device)
        losses = losses.detach()
        self.hardness[self.index] = losses / losses.mean().clamp_min(1e-12)


def near_each_other(indices, block=1024, blocks=64):
    """`indices` (N,), in random order, so reordered that images on a disk are read in blocks.

    A window is `blocks` blocks, drawn at random, of `block` neighbouring images. The images of a window stay in random
    order, and come before those of the next one, as in a shuffle buffer over shuffled shards (webdataset/webdataset).
    """
    order = torch.randperm(int(indices.max()) // block + 1, device=indices.device)
    return indices[(order[indices // block] // blocks).argsort(stable=True)]


class RandomAffine:
    """Rotate, shift, scale and shear each image by amounts drawn uniformly from [-value, value].

    Args: degrees; translate, a fraction of 28 pixels; scale, the deviation from 1; shear, in degrees; margin, pixels
    cropped from each side. Takes float images (N, 1, 28, 28), returns (N, 1, 28 - 2 margin, 28 - 2 margin).
    """

    def __init__(self, degrees, translate, scale, shear, margin=0):
        self.degrees, self.translate, self.scale, self.shear, self.margin = degrees, translate, scale, shear, margin

    def __call__(self, images):
        uniform = torch.rand(5, len(images), device=images.device) * 2 - 1
        return affine(
            images,
            angle=self.degrees * uniform[0],
            translate=self.translate * SIDE * uniform[1:3],
            scale=1 + self.scale * uniform[3],
            shear=self.shear * uniform[4],
            margin=self.margin,
        )


def affine(images, angle, translate, scale, shear, margin=0):
    """Transform each image about its centre, as torchvision.transforms.functional.affine does one by one.

    Args: float images (N, 1, S, S) with background 0; angle and shear (N,) in degrees; translate (2, N) in pixels,
    x then y; scale (N,); margin in pixels. Returns float images (N, 1, S - 2 margin, S - 2 margin), the central part
    of the transformed ones; bilinear, background 0.
    """
    angle, shear = torch.deg2rad(angle), torch.deg2rad(shear)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # grid_sample wants the inverse map, from output to input coordinates, in units of half the side.
    xx, xy = cos - sin * torch.tan(shear), sin + cos * torch.tan(shear)
    yx, yy = -sin, cos
    side = images.shape[-1]
    kept = side - 2 * margin
    dx, dy = translate * (-2 / side)
    matrices = torch.stack([xx, xy, xx * dx + xy * dy, yx, yy, yx * dx + yy * dy], dim=1)  # (N, 6)
    centres = (torch.arange(margin, side - margin, device=images.device) * 2 + 1) / side - 1  # of pixels, in -1..1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    coordinates = torch.stack([x, y, torch.ones_like(x)]).flatten(1)  # (3, kept * kept)
    # One matrix product for the whole batch; affine_grid does one per image, many times slower on a CPU.
    grid = (matrices.view(-1, 3) @ coordinates).view(-1, 2, kept, kept).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, align_corners=False)
