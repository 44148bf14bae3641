"""What every command line shares: signals, the parser, printing, and one line and an exit code for each error."""

import argparse
import contextlib
import functools
import os
import signal
import sys
from pathlib import Path

from experiment.errors import DivergedError, ExperimentError
from experiment.processes import local_rank, rank

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


PREVIOUS = {}  # handlers from before handle_signals


def exit_at_once(number, frame):
    """Signal handler: end the process with a one-line message; used for a second signal and during imports."""
    with contextlib.suppress(OSError):
        if local_rank() == 0:
            os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode(errors="replace"))
    os._exit(128 + number)


def interrupt(number, frame):
    """Signal handler: raise KeyboardInterrupt(number), so that the run shuts down cleanly."""
    handle_signals(exit_at_once)
    raise KeyboardInterrupt(number)


def handle_signals(handler):
    """Install `handler`; a signal that is ignored, such as SIGHUP under nohup, stays so."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            PREVIOUS.setdefault(number, signal.signal(number, handler))


def restore_signals():
    """Install the handlers from before the first `handle_signals`."""
    while PREVIOUS:
        signal.signal(*PREVIOUS.popitem())


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with exit code 2."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def _print_message(self, message, file=None):
        echo(message, file or sys.stderr, end="")


def path(text):
    """argparse type: a path with ~ expanded; rejects the empty string, which an unset shell variable produces."""
    if not text:
        raise argparse.ArgumentTypeError("found an empty path")
    return os.path.expanduser(text)


def echo(line, stream=None, end="\n"):
    """Print `line`, escaped where `stream` cannot encode it; does nothing if it is missing, closed or full.

    Of several processes only the first prints, and on stderr the first of each machine.
    """
    if local_rank() if stream is sys.stderr else rank():
        return
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, end=end, flush=True)
    except (OSError, ValueError):  # what is left in its buffer must not fail at exit
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), stream.fileno())


def is_out_of_memory(error):
    """Whether `error` means that memory is full; torch has a type for that on CUDA, elsewhere only a message."""
    import torch

    full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return full or any(text in str(error) for text in ("out of memory", "DefaultCPUAllocator"))


def command(function):
    """Decorator for a `main(argv=None)`: maps errors to one line on stderr and returns the exit code, 0 by default."""
    name = Path(function.__code__.co_filename).name

    @functools.wraps(function)
    def main(argv=None, **options):
        is_script = any(signal.getsignal(number) is exit_at_once for number in SIGNALS)  # not if it is imported

        def end(line, code):
            echo(f"{name}: {line}", sys.stderr)
            if is_script:  # while Python and torch shut down: no second line
                handle_signals(signal.SIG_DFL)
            return code

        if is_script:
            handle_signals(interrupt)
        try:
            try:
                code = function(argv, **options)
            finally:
                if is_script:
                    handle_signals(exit_at_once)
        except ExperimentError as error:
            if isinstance(error, DivergedError) and local_rank():  # the other processes may not know
                print(f"{name}: error: process {rank()}: {error}", file=sys.stderr)
            return end(f"error: {error}", error.exit_code)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return end("error: out of memory; try a smaller --batch-size or smaller --widths", 2)
        except KeyboardInterrupt as error:
            return end("interrupted", 128 + (error.args[0] if error.args else signal.SIGINT))
        finally:
            if is_script and (hasattr(sys, "ps1") or sys.flags.interactive):  # as in a notebook's %run
                restore_signals()
        return code or 0

    return main
