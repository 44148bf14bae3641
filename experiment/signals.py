"""SIGINT and SIGTERM: the first one shuts down cleanly, the second one ends the process at once. Needs no torch."""

import os
import signal
import sys


def _handle(handler):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _exit_at_once(number, frame):
    os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode(errors="replace"))
    os._exit(128 + number)


def _interrupt(number, frame):
    _handle(_exit_at_once)
    raise KeyboardInterrupt(number)


def exit_at_once():
    """Until `interrupt` is called, end the process by one line: for scripts whose imports take seconds."""
    _handle(_exit_at_once)


def interrupt():
    """From now on, raise KeyboardInterrupt(signal number) on the first signal; only where `exit_at_once` was called."""
    if signal.getsignal(signal.SIGINT) is _exit_at_once:
        _handle(_interrupt)
