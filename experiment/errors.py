"""The errors that end a command with one line on stderr; each message says what is wrong and what to do."""

import contextlib


def reason(error):
    """The message of an exception, on one line."""
    return getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def reading(path, hint, kind):
    """Turn any error, of which libraries have a dozen types, into a `kind`: `path` cannot be read, why, the `hint`."""
    try:
        yield
    except Exception as error:
        raise kind(f"{path} cannot be read ({reason(error)}); {hint}") from error


class ExperimentError(Exception):
    """Base class of the errors that end a command."""

    exit_code = 2


class SettingError(ExperimentError):
    """A setting is out of range, contradicts another one, or is not available on this machine."""


class DataError(ExperimentError):
    """The data set is missing, damaged or of another format."""


class DownloadError(DataError):
    """The data set is missing and cannot be downloaded."""

    exit_code = 1


class FileError(ExperimentError):
    """A file or folder cannot be read or written, is damaged, or is in use by another process."""


class CheckpointError(FileError):
    """A checkpoint is damaged, of another format, or of another run."""


class DivergedError(ExperimentError):
    """A loss is no longer finite."""
