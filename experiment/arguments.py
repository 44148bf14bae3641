"""The command line of train.py: a flag for each setting, and the Settings that a command line asks for."""

import argparse
import math
from dataclasses import fields, replace

from experiment.command import Parser, path
from experiment.errors import SettingError
from experiment.settings import RECIPES, Limits, Recipe, Settings, flag, typed

GROUPS = {  # title of a group of flags by its first setting
    "widths": "model",
    "epochs": "training",
    "rotation": "augmentation; the first four are drawn from ±value per image, 0 disables",
    "target": "run",
    "dataset": "data and machine",
}


def number(limits):
    """argparse type: a number within `limits`."""

    def parse(text):
        if limits.optional and text.lower() == "none":
            return None
        try:
            value = limits.kind(text)
        except ValueError:
            value = math.nan
        if not limits.allow(value):
            raise argparse.ArgumentTypeError(f"found {text}, expected {limits}")
        return value

    return parse


def whole_number(low, high):
    """argparse type: an integer in [low, high]."""
    return number(Limits("", low, high, kind=int))


def add_flags(parser, *classes):
    """Add a flag for each setting of the dataclasses; flags not given are absent from the namespace."""
    for f in (f for cls in classes for f in fields(cls) if "limits" in f.metadata):
        if f.name in GROUPS:
            group = parser.add_argument_group(GROUPS[f.name])
        limits, default = f.metadata["limits"], f.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        options = {"help": limits.help + ("" if default is None else f" (default: {shown})")}
        if limits.kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif limits.choices:
            options["choices"] = limits.choices
        else:
            options["type"] = path if limits.kind is str else number(limits)
            options["metavar"] = {int: "N", float: "X", str: "DIR"}[limits.kind]
        if isinstance(default, tuple):
            options["nargs"] = len(default)
        group.add_argument(flag(f.name), default=argparse.SUPPRESS, **options)


def parse_args(description, argv=None):
    """(options, given): a namespace of what is no setting, such as out, and a dict of the settings given as flags."""
    parser = Parser(prog="train.py", description=description)
    about = "named set of values, which other flags override; the defaults shown are those of `default`"
    parser.add_argument("--recipe", choices=RECIPES, default=argparse.SUPPRESS, help=about)
    add_flags(parser, Recipe, Settings)
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=path, metavar="DIR", help="folder of this run (default: runs/<time>-seed<N>)")
    group.add_argument("--show", action="store_true", help="also show the curves in a window")
    group.add_argument("--no-plots", dest="plots", action="store_false", help="draw no pictures into that folder")
    group = parser.add_argument_group("an earlier run, with its own settings").add_mutually_exclusive_group()
    group.add_argument(
        "--resume", type=path, metavar="RUN", help="continue the run in this folder after its last completed epoch"
    )
    about = "only evaluate this checkpoint (last.pt or best.pt) on the test set"
    group.add_argument("--evaluate", type=path, metavar="CHECKPOINT", help=about)
    given = vars(parser.parse_args(argv))
    options = argparse.Namespace(**{name: given.pop(name) for name in ("out", "show", "plots", "resume", "evaluate")})
    if options.out and (options.resume or options.evaluate):
        parser.error("--out cannot be combined with --resume or --evaluate, which do not start a new run")
    if options.show and options.evaluate:
        parser.error("--show cannot be combined with --evaluate, which draws no curves")
    return options, {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def new_settings(given):
    """The Settings that the dict `given` asks for: a recipe and changes to it."""
    given = dict(given)
    recipe = RECIPES[given.pop("recipe", "default")]
    recipe = replace(recipe, **{name: given.pop(name) for name in recipe.values if name in given})
    return Settings(recipe, **given)


def earlier_settings(settings, given, may_change):
    """The Settings of an earlier run; `given` may repeat them, and change those named in `may_change`."""
    own = {**vars(settings.recipe), **vars(settings), "recipe": settings.recipe.name}
    for name, value in given.items():
        if name not in may_change and value not in (own[name], "auto"):
            raise SettingError(f"{typed(name, value)}: contradicts the run's {typed(name, own[name])}; drop it")
    changes = {name: given[name] for name in may_change if name in given}
    if changes.get("dataset", settings.dataset) != settings.dataset:
        changes.setdefault("data_dir", None)  # the run's own folder holds its own data set
    return replace(settings, **changes)
