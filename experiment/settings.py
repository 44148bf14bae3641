"""The settings of a run as frozen dataclasses: default, help and allowed values of each, and the named recipes."""

from dataclasses import dataclass, field, fields, replace

from experiment.errors import SettingError


@dataclass(frozen=True)
class Number:
    """Numbers of type `kind` from `low` to `high`; above `low` if `above`."""

    low: float
    high: float
    kind: type = float
    above: bool = False

    def __contains__(self, value):
        is_number = type(value) in ((int, float) if self.kind is float else (int,))
        return is_number and self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self):
        what = "a whole number" if self.kind is int else "a number"
        return f"{what} " + (f"above {self.low}, at most" if self.above else f"from {self.low} to") + f" {self.high}"


def setting(group, default, allowed, help, optional=False):
    """A dataclass field that holds one of the `allowed` values, or None if that is the default or it is `optional`.

    `allowed` is a Number, a tuple of strings, or a type. If the default is a tuple, the field holds as many of them.
    `group` is that of its flag in --help.
    """
    optional = optional or default is None
    return field(default=default, metadata={"group": group, "help": help, "allowed": allowed, "optional": optional})


def setting_fields(cls):
    """The fields of the dataclass `cls` that `setting` made."""
    return [f for f in fields(cls) if "allowed" in f.metadata]


class Checked:
    """A dataclass that checks its values."""

    def __post_init__(self):
        for f in setting_fields(self):
            value, allowed, several = getattr(self, f.name), f.metadata["allowed"], isinstance(f.default, tuple)
            if value is None and f.metadata["optional"]:
                continue
            if several and not (isinstance(value, tuple) and len(value) == len(f.default)):
                raise SettingError(f"{flag(f.name)}: found {value}, expected a tuple of {len(f.default)} values")
            for item in value if several else [value]:
                fits = type(item) is allowed if isinstance(allowed, type) else item in allowed
                if not fits:
                    expected = f"one of {', '.join(allowed)}" if isinstance(allowed, tuple) else allowed
                    raise SettingError(f"{flag(f.name)}: found {item}, expected {expected}")


@dataclass(frozen=True)
class Recipe(Checked):
    """Hyperparameters of the network, its training and its augmentation."""

    name: str = "default"  # key in RECIPES of this recipe, or of the one it was derived from

    widths: tuple = setting("model", (16, 16, 32, 24, 24), Number(1, 4096, int), "output channels of the five blocks")
    dropout: float = setting("model", 0.01, Number(0, 0.99), "probability of zeroing a pooled feature")
    separable: bool = setting("model", False, bool, "separable convolutions in all blocks but the first")
    antialias: str = setting("model", "second", ("none", "second", "both"), "which poolings are antialiased")
    margin: int = setting("model", 2, Number(0, 4, int), "pixels cropped from each side of every image")

    epochs: int = setting("training", 7, Number(1, 100_000, int), "epochs")
    first_share: float = setting("training", 1.0, Number(0, 1, above=True), "share of the images in the first epoch")
    later_share: float = setting("training", 0.15, Number(0, 1, above=True), "in each later one, mostly the hardest")
    memory: float = setting("training", 0.0, Number(0, 0.99), "share of an image's earlier hardness that it keeps")
    batch_size: int = setting("training", 128, Number(1, 1_000_000, int), "images per step")
    lr: float = setting("training", 1.0, Number(0, 1000, above=True), "peak learning rate of the one cycle")
    warmup: float = setting("training", 0.3, Number(0.01, 0.99), "fraction of the cycle before the peak")
    momentum: float = setting("training", 0.9, Number(0.01, 0.999), "Nesterov momentum")
    weight_decay: float = setting("training", 0.0, Number(0, 1), "weight decay of convolution and linear weights")
    label_smoothing: float = setting("training", 0.1, Number(0, 0.9), "probability spread over all classes")

    rotation: float = setting("augmentation", 8.0, Number(0, 180), "degrees at most, drawn for each image")
    translate: float = setting("augmentation", 0.06, Number(0, 1), "fraction of 28 pixels at most")
    scale: float = setting("augmentation", 0.08, Number(0, 0.9), "fraction of the size at most, larger or smaller")
    shear: float = setting("augmentation", 4.0, Number(0, 60), "degrees at most")
    augment_until: float = setting("augmentation", 0.6, Number(0, 1), "fraction of the run that is augmented")

    @property
    def values(self):
        """All settings, without the name."""
        return {name: value for name, value in vars(self).items() if name != "name"}

    @property
    def network(self):
        """The arguments of model.Net."""
        return {name: getattr(self, name) for name in ("widths", "dropout", "separable", "antialias", "margin")}

    @property
    def selection(self):
        """The arguments of data.TrainLoader besides the images and labels."""
        return {name: getattr(self, name) for name in ("batch_size", "epochs", "first_share", "later_share", "memory")}

    @property
    def augmentation(self):
        """The arguments of data.random_affine."""
        return {name: getattr(self, name) for name in ("rotation", "translate", "scale", "shear", "margin")}


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
    "tiny": replace(LONG, name="tiny", widths=(8, 16, 16, 16, 16), epochs=153, later_share=0.125, memory=0.5),
}


@dataclass(frozen=True)
class Settings(Checked):
    """A run: a recipe and what it is applied to."""

    recipe: Recipe = DEFAULT

    target: float | None = setting("run", 99.4, Number(0, 100, above=True), "stop at this accuracy; none: never", True)
    seed: int = setting("run", 0, Number(0, 2**63 - 1, int), "seed of weights, data order, augmentation and holdout")

    dataset: str = setting("data", "mnist", ("mnist", "digits"), "digits: 1,797 images, part of scikit-learn")
    data_dir: str | None = setting("data", None, str, "MNIST's files, mnist.npz, train.csv, pictures (default: ./data)")
    holdout: int | None = setting("data", None, Number(1, 1_000_000, int), "training images that choose the epoch")

    threads: int | None = setting("machine", None, Number(1, 1024, int), "CPU threads (default: as CPUs are free)")
    device: str = setting("machine", "auto", ("auto", "cpu", "cuda", "mps"), "where to train")
    precision: str = setting("machine", "fp32", ("fp32", "bf16"), "bf16 is faster on some processors")

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.recipe, Recipe) or self.recipe.name not in RECIPES:
            raise SettingError(f"recipe: found {self.recipe}, expected a Recipe, such as RECIPES['default']")
        if self.data_dir == "":
            raise SettingError("--data-dir: found an empty path")
        if self.dataset == "digits" and self.data_dir is not None:
            raise SettingError("--data-dir: found with --dataset digits, which needs no files; drop one of them")

    @property
    def description(self):
        """The recipe's name and the flags that change it."""
        own = RECIPES[self.recipe.name].values
        changed = [typed(name, value) for name, value in self.recipe.values.items() if value != own[name]]
        return " ".join([self.recipe.name, *changed])


def flag(name):
    """The flag of the setting `name`."""
    return "--" + name.replace("_", "-")


def typed(name, value):
    """The setting `name` as on a command line."""
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    return f"{flag(name)} " + (" ".join(map(str, value)) if isinstance(value, tuple) else str(value).lower())
