"""Five published recipes for 99.4% on MNIST under 20,000 parameters.

Networks and settings are those of the READMEs that publish them; a value that a README leaves out is marked "assumed".
`python -m study.train_published NAME` trains one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR


def conv(c_in, c_out, *after, kernel_size=3, padding=1, bias=True):
    """A convolution and what follows it, "relu", "bn" or a module."""
    named = {"relu": nn.ReLU(), "bn": nn.BatchNorm2d(c_out)}
    return [nn.Conv2d(c_in, c_out, kernel_size, padding=padding, bias=bias), *(named.get(item, item) for item in after)]


def net_11034():
    after = ("relu", "bn", nn.Dropout(0.1))
    return nn.Sequential(
        *conv(1, 8, *after),
        *conv(8, 16, *after, nn.MaxPool2d(2)),
        *conv(16, 16, *after),
        *conv(16, 16, *after, nn.MaxPool2d(2)),
        *conv(16, 32, *after, nn.AvgPool2d(5), padding=0),
        *conv(32, 10, kernel_size=1, padding=0),
        nn.Flatten(),
    )


def net_14314():
    dropout = nn.Dropout(0.1)
    return nn.Sequential(
        *conv(1, 8, "bn", "relu", dropout),
        *conv(8, 16, "bn", "relu", dropout, nn.MaxPool2d(2), dropout),
        *conv(16, 16, "bn", "relu"),
        *conv(16, 32, "bn", "relu", nn.MaxPool2d(2), dropout),
        *conv(32, 16, "bn", "relu", kernel_size=1, padding=0),
        *conv(16, 32, "bn", "relu", nn.MaxPool2d(2), dropout),
        *conv(32, 16, "relu", kernel_size=1, padding=0),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


def net_19576():
    dropout = nn.Dropout2d(0.15)
    return nn.Sequential(
        *conv(1, 10, "bn", "relu", padding=0),
        *conv(10, 18, "relu", nn.MaxPool2d(2), dropout, padding=0),
        *conv(18, 18, "relu", padding=0),
        *conv(18, 18, "bn", "relu", nn.MaxPool2d(2), dropout, padding=0),
        *conv(18, 18, "relu"),
        *(nn.Flatten(), nn.Linear(288, 30), nn.ReLU(), nn.Linear(30, 10)),
    )


def net_10170():
    dropout = nn.Dropout(0.1)  # assumed, as is the order of the layers
    return nn.Sequential(
        *conv(1, 8, "bn", "relu", bias=False),
        *conv(8, 12, "bn", "relu", nn.MaxPool2d(2), dropout, bias=False),
        *conv(12, 16, "bn", "relu", nn.MaxPool2d(2), dropout, bias=False),
        *conv(16, 16, kernel_size=1, padding=0, bias=False),
        *conv(16, 16, "bn", "relu", bias=False),
        *conv(16, 16, "bn", "relu", bias=False),
        *conv(16, 16, "bn", "relu", dropout, bias=False),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


def net_9720():
    after = ("relu", "bn", nn.Dropout2d(0.05))  # the rate is assumed
    return nn.Sequential(
        *conv(1, 8, *after, bias=False),
        *conv(8, 16, *after, nn.MaxPool2d(2), bias=False),
        *conv(16, 16, *after, bias=False),
        *conv(16, 16, *after, nn.MaxPool2d(2), bias=False),
        *conv(16, 16, *after, padding=0, bias=False),
        *conv(16, 10, nn.AdaptiveAvgPool2d(1), nn.Flatten(), padding=0, bias=False),
    )


@dataclass(frozen=True)
class Published:
    """A published recipe; without `one_cycle` the learning rate is constant."""

    net: Callable
    optimizer: Callable
    epochs: int = 20
    batch_size: int = 128
    one_cycle: dict | None = None
    label_smoothing: float = 0.0
    affine: tuple | None = None  # degrees, translate, scale, shear
    held_out: int = 0  # training images set aside by a split with seed 42

    def scheduler(self, optimizer, steps):
        if self.one_cycle is None:
            return LambdaLR(optimizer, lambda step: 1.0)
        return OneCycleLR(optimizer, total_steps=steps, **self.one_cycle)

    @property
    def values(self):
        """The settings as they go into JSON."""
        return {name: value for name, value in vars(self).items() if not callable(value)}


ADAM = partial(Adam, lr=0.001)
PUBLISHED = {
    "net-11034": Published(
        net_11034, partial(SGD, lr=0.1, momentum=0.9), epochs=15, one_cycle={"max_lr": 0.1, "pct_start": 0.2}
    ),
    "net-14314": Published(
        net_14314, partial(ADAM, weight_decay=1e-4), one_cycle={"max_lr": 0.01, "pct_start": 0.2}, held_out=10_000
    ),
    "net-19576": Published(
        net_19576,
        partial(AdamW, lr=0.001, weight_decay=0.01),
        batch_size=1024,
        one_cycle={"max_lr": 0.01, "pct_start": 0.3, "div_factor": 10, "final_div_factor": 100},
        label_smoothing=0.1,
        affine=(10, 0.1, 0.1, 5),
    ),
    "net-10170": Published(net_10170, partial(SGD, lr=0.01, momentum=0.9)),
    "net-9720": Published(net_9720, ADAM),  # lr and batch size assumed
}
