"""Atomic file writes and file locks."""

import contextlib
import errno
import json
import os
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
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with writing(path, "its previous content is unchanged"):
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
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
        print(f"Warning: {path} cannot be locked ({error.strerror}); do not use it from a second process")
    return held
