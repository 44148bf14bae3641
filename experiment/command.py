"""What every command line shares: the parser, printing, and one line and an exit code for each error."""

import argparse
import functools
import os
import signal
import sys
from pathlib import Path

from experiment.errors import ExperimentError


def exit_at_once(number, frame):
    """Signal handler: end the process by one line. For a second signal, and while a script imports torch."""
    os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode(errors="replace"))
    os._exit(128 + number)


def interrupt(number, frame):
    """Signal handler: raise KeyboardInterrupt(number), so that the run shuts down cleanly."""
    handle_signals(exit_at_once)
    raise KeyboardInterrupt(number)


def handle_signals(handler):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with exit code 2."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def _print_message(self, message, file=None):
        echo(message, file or sys.stderr, end="")


def path(text):
    """argparse type: a path with ~ expanded; not the empty one, as an unset variable of a shell would leave it."""
    if not text:
        raise argparse.ArgumentTypeError("found an empty path")
    return os.path.expanduser(text)


def echo(line, stream=None, end="\n"):
    """Print `line`, escaped where `stream` cannot show it; without a reader (closed pipe, full disk) do nothing."""
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, end=end, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def command(function):
    """Decorator for a `main(argv=None)`: maps errors to one line on stderr and returns the exit code."""
    name = Path(function.__code__.co_filename).name

    @functools.wraps(function)
    def main(argv=None, **options):
        if signal.getsignal(signal.SIGINT) is exit_at_once:  # set by the script; a notebook keeps its own
            handle_signals(interrupt)
        try:
            function(argv, **options)
        except ExperimentError as error:
            echo(f"{name}: error: {error}", sys.stderr)
            return error.exit_code
        except (MemoryError, RuntimeError) as error:
            # torch has a type for a full GPU, none for full memory
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            echo(f"{name}: error: out of memory; try a smaller --batch-size or smaller --widths", sys.stderr)
            return 2
        except KeyboardInterrupt as error:
            echo(f"{name}: interrupted", sys.stderr)
            return 128 + (error.args[0] if error.args else signal.SIGINT)
        return 0

    return main
