"""The command line: flags for all settings, and one line with an exit code for every known error."""

import argparse
import contextlib
import errno
import functools
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

from experiment.errors import ExperimentError, SettingError
from experiment.machine import memory_errors
from experiment.settings import RECIPES, Number, Recipe, Settings, flag, setting_fields, typed


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with exit code 2."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def path(text):
    """argparse type: a path with ~ expanded; rejects the empty string, which an unset shell variable produces."""
    if not text:
        raise argparse.ArgumentTypeError("found an empty path")
    return os.path.expanduser(text)


def number(allowed, optional=False):
    """argparse type: a number that is `allowed`; "none" is None if `optional`."""

    def parse(text):
        if optional and text.lower() == "none":
            return None
        with contextlib.suppress(ValueError):
            if (value := allowed.kind(text)) in allowed:
                return value
        raise argparse.ArgumentTypeError(f"found {text}, expected {allowed}")

    return parse


def whole_number(low, high):
    """argparse type: an integer from `low` to `high`."""
    return number(Number(low, high, int))


def add_flags(parser, *classes):
    """Add a flag for each setting of the dataclasses; flags not given are absent from the namespace."""
    group = functools.cache(parser.add_argument_group)  # one for each title
    for f in (f for cls in classes for f in setting_fields(cls)):
        title, allowed, default = f.metadata["group"], f.metadata["allowed"], f.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        options = {"help": f.metadata["help"] + ("" if default is None else f" (default: {shown})")}
        if isinstance(allowed, Number):
            options |= {"type": number(allowed, f.metadata["optional"]), "metavar": "N" if allowed.kind is int else "X"}
        elif isinstance(allowed, tuple):
            options["choices"] = allowed
        elif allowed is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": path, "metavar": "DIR"}
        if isinstance(default, tuple):
            options["nargs"] = len(default)
        group(title).add_argument(flag(f.name), default=argparse.SUPPRESS, **options)


def parse_args(description, argv=None):
    """(options, given): a namespace of what is no setting, such as out, and a dict of the settings given as flags."""
    parser = Parser(prog="train.py", description=description)
    about = "named set of values, which other flags override; the defaults shown are those of `default`"
    parser.add_argument("--recipe", choices=RECIPES, default=argparse.SUPPRESS, help=about)
    add_flags(parser, Recipe, Settings)
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=path, metavar="DIR", help="folder of this run (default: runs/<time>-seed<N>)")
    group.add_argument("--no-plots", dest="plots", action="store_false", help="draw no pictures into that folder")
    group = parser.add_argument_group("an earlier run, with its own settings").add_mutually_exclusive_group()
    about = "continue the run in this folder after its last completed epoch"
    group.add_argument("--resume", type=path, metavar="RUN", help=about)
    about = "only test a net: a run's folder, its best.pt, or trained weights: default, best, tiny, a NAME.pth"
    group.add_argument("--evaluate", type=path, metavar="NET", help=about)
    given = vars(parser.parse_args(argv))
    options = argparse.Namespace(**{name: given.pop(name) for name in ("out", "plots", "resume", "evaluate")})
    if options.out and (options.resume or options.evaluate):
        parser.error("--out cannot be combined with --resume or --evaluate, which do not start a new run")
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
        agrees = value == own[name] or (name == "device" and value == "auto")
        if not agrees and name not in may_change:
            raise SettingError(f"{typed(name, value)}: contradicts the run's {typed(name, own[name])}; drop it")
    changes = {name: given[name] for name in may_change if name in given}
    if changes.get("dataset", settings.dataset) != settings.dataset:
        changes.setdefault("data_dir", None)  # the run's own folder holds its own data set
    return replace(settings, **changes)


@contextlib.contextmanager
def signals_as_interrupts():
    """Let signals that end a job raise KeyboardInterrupt(number), unless they are ignored or handled already."""

    def interrupt(number, frame):
        raise KeyboardInterrupt(number)

    names = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")  # the last two are those of batch systems, such as Slurm
    is_main = threading.current_thread() is threading.main_thread()  # which alone may install handlers
    numbers = [s for s in signal.Signals if is_main and s.name in names and signal.getsignal(s) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def command(function):
    """Decorator for a `main(argv=None)` that returns an exit code, or None for 0.

    A known error becomes one line on stderr and its exit code; signals that end a job end the command as Ctrl-C does.
    """
    name = Path(function.__code__.co_filename).name

    @functools.wraps(function)
    def main(argv=None, **options):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # missing, a notebook's, or closed
            sys.stdout.reconfigure(errors="backslashreplace")  # a character that its encoding lacks must not end a run
        try:
            with signals_as_interrupts(), memory_errors():
                code = function(argv, **options) or 0
                print(end="", flush=True)  # here, as a reader that has gone is noticed only then
                return code
        except ExperimentError as error:
            message, code = f"error: {error}", error.exit_code
        except KeyboardInterrupt as interrupt:
            message, code = "interrupted", 128 + (interrupt.args or [signal.SIGINT])[0]
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ENOSPC):
                raise
            sys.stdout = None  # so that nothing is left to flush at exit
            if error.errno == errno.EPIPE:  # the reader of the output has gone
                return 141  # as a shell reports SIGPIPE
            message, code = f"error: the output cannot be written: {error.strerror}", 2
        with contextlib.suppress(OSError, ValueError):  # closed, or its reader has gone
            print(f"{name}: {message}", file=sys.stderr)
        return code

    return main
