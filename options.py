"""The recipes, named values of the settings, and the command line of train.py that changes them."""

import argparse
import math

from model import ANTIALIAS

DEFAULT = {
    "widths": [16, 16, 24, 32, 22],
    "dropout": 0.05,
    "separable": False,  # convolutions, all but the first
    "antialias": "none",  # or "second" or "both" of the two poolings
    "deskew": False,  # shear every digit upright first
    "margin": 0,  # pixels cut off on each side of every image
    "epochs": 2,
    "batch_size": 64,
    "lr": 1.0,  # the peak of the one cycle
    "warmup": 0.3,  # the part of the cycle that goes up
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "label_smoothing": 0.1,
    "rotation": 8.0,  # degrees; this and the next three: uniform in ± the value, drawn for every image
    "translate": 0.06,  # of 28 pixels
    "scale": 0.08,
    "shear": 4.0,  # degrees
    "augment_until": 0.7,  # of the run; its last part trains on the images as they are
}
RECIPES = {
    "default": DEFAULT,
    "fast": {  # one epoch: every image once
        **DEFAULT,
        "widths": [16, 16, 32, 24, 24],
        "antialias": "second",
        "margin": 2,
        "epochs": 1,
        "dropout": 0.01,
        "weight_decay": 0.0,
        "augment_until": 0.6,
    },
    "best": {  # the highest accuracy in 20 epochs
        **DEFAULT,
        "widths": [16, 48, 64, 80, 64],
        "separable": True,
        "antialias": "both",
        "epochs": 20,
        "batch_size": 128,
        "dropout": 0.01,
        "augment_until": 0.9,
    },
    "tiny": {  # at most 3,000 parameters
        **DEFAULT,
        "widths": [8, 20, 24, 22, 22],
        "separable": True,
        "antialias": "both",
        "deskew": False,
        "epochs": 20,
        "batch_size": 128,
        "dropout": 0.01,
        "augment_until": 0.9,
    },
}
NET_SETTINGS = ("widths", "dropout", "separable", "antialias")  # the arguments of Net
NOT_SETTINGS = {"out", "show", "resume", "evaluate"}  # flags of one call, not of the run
MAY_DIFFER = {"resume": {"data_dir"}, "evaluate": {"dataset", "data_dir", "device", "precision"}}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line, exit code 2; the usage is a --help away."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def number(kind, low, high, *, above=False):
    """A parser of `kind` (int or float) in low..high; `low` itself excluded if `above`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value <= high if above else low <= value <= high):
            what = "a whole number" if kind is int else "a number"
            bound = f"above {low}, at most {high}" if above else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"found {text}, expected {what} {bound}")
        return value

    return parse


def target(text):
    """A percentage, or None for "none"."""
    return None if text.lower() == "none" else number(float, 0, 100, above=True)(text)


def path(text):
    """A path; not the empty one, which an unset variable of a shell leaves behind."""
    if not text:
        raise argparse.ArgumentTypeError("found an empty path")
    return text


def as_typed(name, value):
    """The setting `name` as on a command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} " + (" ".join(map(str, value)) if isinstance(value, list) else str(value).lower())


def parse_args(description, argv=None, settings=None):
    """The settings of a run, as the recipe and the flags say; ends the process with code 2 where they are wrong.

    `settings`, those of the run that --resume or --evaluate names, take the place of the recipe's; a flag that
    contradicts them is wrong.
    """
    parser = Parser(
        prog="train.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(group, flag, **options):
        default = DEFAULT.get(flag.strip("-").replace("-", "_"), options.pop("default", None))
        options["help"] += " (default: %(default)s)" if default is not None else ""
        group.add_argument(flag, default=default, **options)

    add(
        parser,
        "--recipe",
        choices=RECIPES,
        default="default",
        help="named values of the settings; a flag given by hand wins; the defaults shown here are those of `default`",
    )

    group = parser.add_argument_group("model")
    width = number(int, 1, 4096)
    add(group, "--widths", nargs=5, type=width, metavar="N", help="output channels of the five convolution blocks")
    add(
        group,
        "--separable",
        action=argparse.BooleanOptionalAction,
        help="separable convolutions in all blocks but the first, with fewer parameters",
    )
    add(
        group,
        "--antialias",
        choices=ANTIALIAS,
        help="which of the two poolings is an average of 2x2 maxima of 3x3 each, not a maximum of 2x2",
    )
    add(group, "--dropout", type=number(float, 0, 0.99), metavar="P", help="probability to zero a value")

    group = parser.add_argument_group("training")
    add(group, "--epochs", type=number(int, 1, 100_000), metavar="N", help="passes over the training images")
    add(group, "--batch-size", type=number(int, 1, 1_000_000), metavar="N", help="images per step")
    add(
        group, "--lr", type=number(float, 0, 1000, above=True), metavar="LR", help="peak learning rate of the one cycle"
    )
    add(group, "--warmup", type=number(float, 0.01, 0.99), metavar="X", help="part of the cycle before the peak")
    add(group, "--momentum", type=number(float, 0.01, 0.999), metavar="M", help="Nesterov momentum")
    add(group, "--weight-decay", type=number(float, 0, 1), metavar="X", help="of convolution and linear weights")
    add(group, "--label-smoothing", type=number(float, 0, 0.9), metavar="X", help="part spread over all classes")
    add(
        group,
        "--target",
        type=target,
        default=99.4,
        metavar="PCT",
        help="stop at this test accuracy; 100 or none: never",
    )
    add(
        group,
        "--seed",
        type=number(int, 0, 2**63 - 1),
        default=0,
        metavar="N",
        help="of weights, order and augmentation",
    )

    group = parser.add_argument_group("augmentation; the first four uniform in ± the value for every image, 0 is off")
    add(group, "--rotation", type=number(float, 0, 180), metavar="DEG", help="degrees")
    add(group, "--translate", type=number(float, 0, 1), metavar="X", help="part of 28 pixels")
    add(group, "--scale", type=number(float, 0, 0.9), metavar="X", help="part of the size")
    add(group, "--shear", type=number(float, 0, 60), metavar="DEG", help="degrees")
    add(group, "--augment-until", type=number(float, 0, 1), metavar="X", help="part of the run that is augmented")

    group = parser.add_argument_group("data and machine")
    add(group, "--dataset", choices=("mnist", "digits"), default="mnist", help="digits: 1,797 images of scikit-learn's")
    add(
        group,
        "--data-dir",
        type=path,
        metavar="DIR",
        help="look for MNIST-format files only there; else ./data, ../shared/mnist, download",
    )
    add(
        group,
        "--deskew",
        action=argparse.BooleanOptionalAction,
        help="shear every digit upright first, training and test images alike",
    )
    add(
        group,
        "--margin",
        type=number(int, 0, 4),
        metavar="N",
        help="pixels cut off on each side of all images, training and test; MNIST's digits lie in the middle",
    )
    add(
        group,
        "--holdout",
        type=number(int, 1, 1_000_000),
        metavar="N",
        help="hold N training images out; stop and choose the best epoch by them, look at the test set once at the end",
    )
    add(group, "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to train")
    add(
        group,
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 on a CPU where it is faster",
    )

    group = parser.add_argument_group("output")
    add(group, "--out", type=path, metavar="DIR", help="folder of this run (default: runs/<time>-seed<N>)")
    group.add_argument("--show", action="store_true", help="show the curves in a window too")

    group = parser.add_argument_group("an earlier run, with the settings that it had").add_mutually_exclusive_group()
    add(group, "--resume", type=path, metavar="RUN", help="go on in this folder after its last finished epoch")
    add(group, "--evaluate", type=path, metavar="CHECKPOINT", help="only test a last.pt or best.pt")
    if settings is None:
        parser.set_defaults(**RECIPES[parser.parse_args(argv).recipe])
        args = parser.parse_args(argv)
    else:
        args = parser.parse_args(argv, argparse.Namespace(**settings))
        if args.dataset != settings["dataset"] and args.data_dir == settings["data_dir"]:
            args.data_dir = None  # it held the run's own data set
        free = MAY_DIFFER["resume" if args.resume else "evaluate"]
        for name, value in settings.items():
            if getattr(args, name) != value and name not in free:
                given, own = as_typed(name, getattr(args, name)), as_typed(name, value)
                parser.error(f"{given}: contradicts the run's own {own}; drop it")
    if args.out is not None and (args.resume or args.evaluate):
        parser.error("--out: found with --resume or --evaluate, which start no new run; drop it")
    if args.dataset == "digits" and args.data_dir is not None:
        parser.error("--data-dir: found with --dataset digits, which needs no files; drop it or add --dataset mnist")
    return args
