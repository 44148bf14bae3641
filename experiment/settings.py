"""The settings of a run as frozen dataclasses: default, help and limits of each, and the named recipes."""

from dataclasses import dataclass, field, fields, replace

from experiment.errors import SettingError


@dataclass(frozen=True)
class Limits:
    """The values a setting may have: one of `choices`, or of `kind` in [low, high], or (low, high] if `above`."""

    help: str
    low: float | None = None
    high: float | None = None
    above: bool = False
    choices: tuple = ()
    kind: type = float
    optional: bool = False  # None is allowed, "none" on a command line

    def allow(self, value):
        if value is None or type(value) not in ((int, float) if self.kind is float else (self.kind,)):
            return value is None and self.optional
        if self.choices or self.low is None:
            return value in self.choices if self.choices else value != ""
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self):
        if self.choices or self.kind in (bool, str):
            return f"one of {', '.join(self.choices)}" if self.choices else f"a {self.kind.__name__}"
        what = "a whole number" if self.kind is int else "a number"
        return f"{what} " + (
            f"above {self.low}, at most {self.high}" if self.above else f"from {self.low} to {self.high}"
        )


def setting(default, help, low=None, high=None, *, kind=None, **limits):
    """A dataclass field with default, help text and Limits; a tuple has as many values as its default."""
    kind = kind or type(default[0] if isinstance(default, tuple) else default)
    return field(default=default, metadata={"limits": Limits(help, low, high, kind=kind, **limits)})


def flag(name):
    return "--" + name.replace("_", "-")


class Checked:
    """A dataclass that checks its values against their limits."""

    def __post_init__(self):
        for f in (f for f in fields(self) if "limits" in f.metadata):
            value, limits, several = getattr(self, f.name), f.metadata["limits"], isinstance(f.default, tuple)
            if several and not (isinstance(value, tuple) and len(value) == len(f.default)):
                raise SettingError(f"{flag(f.name)}: found {value}, expected a tuple of {len(f.default)} values")
            for item in value if several else (value,):
                if not limits.allow(item):
                    raise SettingError(f"{flag(f.name)}: found {item}, expected {limits}")


@dataclass(frozen=True)
class Recipe(Checked):
    """Hyperparameters of the network, its training and its augmentation."""

    name: str = "default"  # key in RECIPES of this recipe, or of the one it was derived from
    # model
    widths: tuple[int, ...] = setting((16, 16, 32, 24, 24), "output channels of the five convolution blocks", 1, 4096)
    dropout: float = setting(0.01, "probability of zeroing a pooled feature", 0, 0.99)
    separable: bool = setting(False, "separable convolutions in all blocks but the first, with fewer parameters")
    antialias: str = setting("second", "which of the two poolings are antialiased", choices=("none", "second", "both"))
    margin: int = setting(2, "pixels cropped from each side of every image", 0, 4)
    # training
    epochs: int = setting(7, "epochs", 1, 100_000)
    first_share: float = setting(1.0, "share of the images that the first epoch takes", 0, 1, above=True)
    later_share: float = setting(0.15, "share that each later one takes, mostly the hardest", 0, 1, above=True)
    batch_size: int = setting(128, "images per step", 1, 1_000_000)
    lr: float = setting(1.0, "peak learning rate of the one cycle", 0, 1000, above=True)
    warmup: float = setting(0.3, "fraction of the cycle before the peak", 0.01, 0.99)
    momentum: float = setting(0.9, "Nesterov momentum", 0.01, 0.999)
    weight_decay: float = setting(0.0, "weight decay of convolution and linear weights", 0, 1)
    label_smoothing: float = setting(0.1, "probability spread over all classes", 0, 0.9)
    # augmentation
    rotation: float = setting(8.0, "degrees", 0, 180)
    translate: float = setting(0.06, "fraction of 28 pixels", 0, 1)
    scale: float = setting(0.08, "fraction of the size", 0, 0.9)
    shear: float = setting(4.0, "degrees", 0, 60)
    augment_until: float = setting(0.6, "fraction of the run that is augmented", 0, 1)

    @property
    def values(self):
        """All settings, without the name."""
        return {name: value for name, value in vars(self).items() if name != "name"}

    @property
    def network(self):
        """The arguments of model.Net."""
        return {name: getattr(self, name) for name in ("widths", "dropout", "separable", "antialias", "margin")}


DEFAULT = Recipe()
SHORT = replace(DEFAULT, batch_size=64)
LONG = replace(DEFAULT, separable=True, antialias="both", margin=0, weight_decay=1e-4, augment_until=0.9)
RECIPES = {
    # 99.4% in every run
    "default": DEFAULT,
    # 99.4% on average, in the least time
    "fast": replace(SHORT, name="fast", epochs=4, first_share=0.4, later_share=0.1),
    # every image exactly once
    "one-epoch": replace(SHORT, name="one-epoch", epochs=1),
    # the highest accuracy
    "best": replace(LONG, name="best", widths=(16, 48, 64, 80, 64), epochs=25, later_share=1 / 3),
    # the fewest parameters
    "tiny": replace(LONG, name="tiny", widths=(7, 18, 22, 20, 20), epochs=20, later_share=1.0),
}


@dataclass(frozen=True)
class Settings(Checked):
    """A run: a recipe and what it is applied to."""

    recipe: Recipe = DEFAULT
    # run
    target: float | None = setting(
        99.4, "stop at this test accuracy in percent; 100 or none: never", 0, 100, above=True, optional=True
    )
    seed: int = setting(0, "seed for weight initialisation, data order and augmentation", 0, 2**63 - 1)
    # data and machine
    dataset: str = setting("mnist", "digits: the 1,797 images bundled with scikit-learn", choices=("mnist", "digits"))
    data_dir: str | None = setting(
        None, "directory with MNIST-format files (default: ./data, ../shared/mnist, download)", kind=str, optional=True
    )
    holdout: int | None = setting(
        None,
        "hold out N training images for early stopping and model selection; test once at the end",
        1,
        1_000_000,
        kind=int,
        optional=True,
    )
    threads: int | None = setting(
        None, "CPU threads (default: the CPUs that are free for this process)", 1, 1024, kind=int, optional=True
    )
    device: str = setting("auto", "where to train", choices=("auto", "cpu", "cuda", "mps"))
    precision: str = setting("fp32", "bf16 is faster on some processors", choices=("fp32", "bf16"))
    processes: int | None = None  # of a torchrun job; None before the run has begun

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.recipe, Recipe) or self.recipe.name not in RECIPES:
            raise SettingError(f"recipe: found {self.recipe}, expected a Recipe, such as RECIPES['default']")
        if self.dataset == "digits" and self.data_dir is not None:
            raise SettingError("--data-dir: found with --dataset digits, which needs no files; drop one of them")

    @property
    def description(self):
        """The recipe's name and the flags that change it."""
        own = RECIPES[self.recipe.name].values
        changed = [typed(name, value) for name, value in self.recipe.values.items() if value != own[name]]
        return " ".join([self.recipe.name, *changed])


def typed(name, value):
    """The setting `name` as on a command line."""
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    return f"{flag(name)} " + (" ".join(map(str, value)) if isinstance(value, tuple) else str(value).lower())
