"""From tensors to batches: select, shuffle and augment images that stay on the training device."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model import SIDE


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
        moved = (split and Split(*(tensor.to(device) for tensor in split)) for split in self[2:])
        return Dataset(*self[:2], *moved)


class TrainLoader:
    """Shuffled batches of the images that an epoch trains on, selected by how hard they were (arXiv:1511.06343).

    The first epoch takes a fraction `first_share` of all images, at random; each later one a fraction `later_share`:
    RANDOM_SHARE of these at random, so that no image is forgotten, and the hardest of the others. If `epochs` of these
    have fewer than FEWEST images, all shares grow alike; above 1, images repeat. The loop must `record` every batch:
    an image's hardness, at first 0, is its loss over the mean of its batch, averaged with a share `memory` of the old.
    """

    RANDOM_SHARE = 0.3
    FEWEST = 15_000  # in a run: a net needs its steps however few images there are

    def __init__(self, images, labels, batch_size, epochs=1, first_share=1.0, later_share=1.0, memory=0.0):
        self.images, self.labels, self.batch_size, self.memory = images, labels, batch_size, memory
        times = max(1, self.FEWEST / (len(labels) * (first_share + later_share * (epochs - 1))))
        counts = (max(1, round(share * times * len(labels))) for share in (first_share, later_share))
        self.first_count, self.later_count = counts
        self.hardness = torch.zeros(len(labels), device=labels.device)

    def batches(self, epoch):
        """Yield the batches of `epoch`, counted from 1: the images' indices (B,), float images (B, 1, 28, 28) in 0..1
        and int64 labels (B,). The last batch may be smaller."""
        for index in self.indices(epoch):
            yield index, self.images[index].float().div_(255), self.labels[index]

    def indices(self, epoch):
        """The indices of the images of each batch."""
        return self.select(epoch).split(self.batch_size)

    def select(self, epoch):
        """The indices of the images that `epoch` trains on, in random order."""
        count, total = self.first_count if epoch == 1 else self.later_count, len(self.labels)
        passes = math.ceil(count / total)
        shuffled = torch.cat([torch.randperm(total, device=self.labels.device) for _ in range(passes)])
        if epoch == 1 or count >= total:
            return shuffled[:count]
        at_random = round(self.RANDOM_SHARE * self.later_count)
        drawn, rest = shuffled[:at_random], shuffled[at_random:]
        hardest = rest[self.hardness[rest].argsort(descending=True, stable=True)]  # ties stay shuffled
        selected = torch.cat([drawn, hardest[: self.later_count - at_random]])
        return selected[torch.randperm(len(selected), device=selected.device)]

    def record(self, index, losses):
        """Update the hardness of the images at `index` (B,), a batch, from their losses (B,)."""
        self.hardness[index] = (losses / losses.mean().clamp_min(1e-12)).lerp(self.hardness[index], self.memory)

    def steps(self, epochs):
        """Number of batches in the first `epochs` epochs."""
        first, later = self.count_batches(self.first_count), self.count_batches(self.later_count)
        return first + later * (epochs - 1) if epochs else 0

    def count_batches(self, images):
        return math.ceil(images / self.batch_size)


def random_affine(images, *, rotation, translate, scale, shear, margin=0):
    """Rotate, shift, scale and shear each image by amounts drawn uniformly from [-value, value].

    Args: float images (N, 1, 28, 28); rotation and shear in degrees; translate, a fraction of 28 pixels; scale, the
    deviation from 1; margin, pixels cropped from each side. Returns (N, 1, 28 - 2 margin, 28 - 2 margin).
    """
    uniform = torch.rand(5, len(images), device=images.device) * 2 - 1
    shift = translate * SIDE * uniform[1:3]
    return affine(images, rotation * uniform[0], shift, 1 + scale * uniform[3], shear * uniform[4], margin)


def affine(images, angle, translate, scale, shear, margin=0):
    """Transform each image about its centre, as torchvision.transforms.functional.affine does one by one.

    Args: float images (N, 1, S, S) with background 0; angle and shear (N,) in degrees; translate (2, N) in pixels,
    x then y; scale (N,); margin in pixels. Returns float images (N, 1, S - 2 margin, S - 2 margin), the central part
    of the transformed ones; bilinear, background 0.
    """
    angle, shear = torch.deg2rad(angle), torch.deg2rad(shear)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # grid_sample wants the inverse map, from output to input coordinates, in units of half the side: xx and xy say how
    # the input's x depends on the output's x and y, yx and yy how its y does.
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
