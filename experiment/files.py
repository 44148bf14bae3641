"""Atomic file writes and file locks."""

import contextlib
import errno
import functools
import json
import os
import threading
import time
from pathlib import Path

import filelock

from experiment.errors import FileError

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # as network file systems refuse them


@contextlib.contextmanager
def writing(path, hint):
    """Turn an OSError into a FileError: `path` cannot be written, why, and the `hint` what to do."""
    try:
        yield
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}; {hint}") from error


def replace_file(path, content):
    """Write `content` (bytes) so that a crash at any moment leaves the old file or the whole new one at `path`."""
    path = Path(os.path.realpath(path))  # of a link, what it points to
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileError(f"{path} is not a regular file; name another")
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")  # of this writer alone
    try:
        with writing(path, "its previous content is unchanged"):
            with open(temporary, "wb") as file:
                file.write(content)
                sync(file)
            try:
                os.replace(temporary, path)
            except PermissionError:  # on Windows, while a virus scanner reads it
                time.sleep(0.2)
                os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # Windows and some network file systems cannot sync a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the new name must survive a power cut too
        finally:
            os.close(descriptor)


def sync(file):
    """Let what was written to `file` survive a power cut, where the file system can."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
        warn(f"{Path(file.name).parent} is on a file system without fsync; a power cut may damage the run")


@functools.cache
def warn(text):
    """Print a warning once, if anyone can read it."""
    with contextlib.suppress(OSError, ValueError):
        print(f"Warning: {text}")


def write_json(path, value):
    """Write strict JSON as replace_file does."""
    replace_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def lock(path):
    """Lock a run's folder or a benchmark's file for this process, until released or until the process ends."""
    path = Path(path)
    file = path / ".lock" if os.path.isdir(path) else path.with_name(f".{path.name}.lock")
    held = filelock.FileLock(file, fallback_to_soft=False)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout as error:
        raise FileError(f"{path} is in use by another process; wait until it ends") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise FileError(f"{path} cannot be written: {error.strerror or error}; restore its permissions") from error
        warn(f"{path} cannot be locked ({error.strerror}); do not use it from a second process")
    return held
