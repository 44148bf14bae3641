"""The folder of a run: log.txt, metrics.json, checkpoints and curves; every file is whole at every moment."""

import contextlib
import io
import itertools
import json
import os
import pickle
import sys
import time
import zipfile
from pathlib import Path

import filelock
import torch

from model import Net
from options import DEFAULT, NET_SETTINGS

RUN_FILES = ("log.txt", "metrics.json", "curves.png", "last.pt", "best.pt")
FORMAT = 6  # of a checkpoint; another one is refused
CHECKPOINT_KEYS = {"format", "net", "model", "settings", "metrics", "log_bytes", "optimizer", "scheduler", "random"}
METRICS = {"dataset", "sha256", "device", "threads", "precision", "epochs", "target", "target_epoch", "total_seconds"}


class RunError(Exception):
    """A run that cannot start or go on; the message is one line that says what to do."""

    exit_code = 2


class Record:
    """What a run leaves behind in its folder: log.txt, line by line, and metrics.json, whole each time.

    `split` names the `count` images on which every epoch is evaluated; `start` is a time.perf_counter().
    """

    def __init__(self, folder, metrics, split, count, start):
        self.folder, self.metrics, self.split, self.count, self.start = folder, metrics, split, count, start

    def log(self, line):
        path = self.folder / "log.txt"
        try:
            with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}") from error
        say(line)

    def log_epoch(self):
        """Log the last epoch in the metrics."""
        epoch = self.metrics["epochs"][-1]
        self.log(
            f"Epoch {epoch['epoch']}/{self.metrics['config']['epochs']}: Train loss: {epoch['train_loss']:.4f}, "
            f"Accuracy: {epoch['train_accuracy']:.2f}%, lr: {epoch['lr']:.4f}, {epoch['seconds']:.1f} s"
        )
        self.log(evaluation_line(self.split, epoch[f"{self.split}_loss"], epoch[f"{self.split}_accuracy"], self.count))

    def log_bytes(self):
        path = self.folder / "log.txt"
        return path.stat().st_size if path.exists() else 0

    def cut_log(self, size):
        """Take back what was logged after the first `size` bytes."""
        path = self.folder / "log.txt"
        try:
            if size < self.log_bytes():
                os.truncate(path, size)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}") from error

    def write_metrics(self):
        self.metrics["total_seconds"] = round(time.perf_counter() - self.start, 3)
        self.metrics["peak_memory_mb"] = max(self.metrics["peak_memory_mb"] or 0, peak_memory_mb() or 0) or None
        write_json(self.folder / "metrics.json", self.metrics)


def say(line, stream=None):
    """Print `line`; where its reader has gone (a closed pipe, a full disk), the program goes on without printing."""
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def record_epoch(metrics, epoch, split):
    """Enter the record `epoch` into `metrics`; returns whether it is the best so far on `split`."""
    accuracy = epoch[f"{split}_accuracy"]
    is_best = not metrics["epochs"] or accuracy > metrics[f"best_{split}_accuracy"]
    metrics["epochs"].append(epoch)
    metrics[f"final_{split}_accuracy"] = accuracy
    metrics["train_seconds"] = round(metrics["train_seconds"] + epoch["seconds"], 3)
    if is_best:
        metrics[f"best_{split}_accuracy"] = accuracy
    if metrics["target_epoch"] is None and metrics["target"] is not None and accuracy >= metrics["target"]:
        metrics["target_epoch"] = epoch["epoch"]
    return is_best


def evaluation_line(split, loss, accuracy, count):
    correct = round(accuracy * count / 100)
    return f"{split.capitalize()} set: Average loss: {loss:.4f}, Accuracy: {correct}/{count} ({accuracy:.2f}%)"


def summary_lines(metrics, split):
    """The closing lines of the log about `split`."""
    epochs, target, accuracy = metrics["epochs"], metrics["target"], f"{split}_accuracy"
    best = max(epochs, key=lambda epoch: epoch[accuracy])
    yield f"Parameters: {metrics['params']}"
    yield f"Best {split} accuracy: {best[accuracy]:.2f}% (epoch {best['epoch']})"
    yield f"Final {split} accuracy: {epochs[-1][accuracy]:.2f}% (epoch {epochs[-1]['epoch']})"
    if target is not None:
        met = metrics["target_epoch"]
        yield f"Target {target:.2f}%: " + (f"met at epoch {met}" if met else f"not met in {len(epochs)} epochs")


def peak_memory_mb():
    """Most memory this process has held so far, in MB; None on Windows, which does not say."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def create_run_folder(out, seed):
    """Create the folder of this run; RunError where it holds a run already or cannot be written."""
    name = out if out is not None else f"runs/{time.strftime('%Y%m%d-%H%M%S')}-seed{seed}"
    folder = Path(name)
    held = [file for file in RUN_FILES if os.path.exists(folder / file)]
    if out is not None and held:
        raise RunError(f"--out {folder} already holds a run ({', '.join(held)}); choose another folder or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(2):
            try:
                folder.mkdir(exist_ok=out is not None)
                break
            except FileExistsError:
                if out is not None:
                    raise
                folder = Path(f"{name}-{number}")  # another run of this second has the name
        (folder / "log.txt").touch(exist_ok=False)  # the one step that two runs at once cannot both take
    except OSError as error:
        raise RunError(f"--out {folder} cannot be written: {error.strerror}; choose another folder") from error
    return folder


def lock(path):
    """Lock a run's folder or a benchmark's file: a context manager; a process that dies lets go.

    Raises RunError while another process holds it.
    """
    path = Path(path)
    name = path / ".lock" if os.path.isdir(path) else path.with_name(f".{path.name}.lock")
    try:
        return filelock.FileLock(name).acquire(timeout=0)
    except filelock.Timeout as error:
        raise RunError(f"{path} is in use by another process; wait until it ends") from error
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}; restore its permissions") from error


def replace_file(path, content):
    """Write `content` (bytes) so that a crash at any moment leaves the file at `path` as it was or whole and new."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}; what it held before is kept") from error
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


def save_checkpoint(path, checkpoint):
    """Write a dict of CHECKPOINT_KEYS as replace_file does; Net(**["net"]).load_state_dict(["model"]) is the net."""
    buffer = io.BytesIO()  # torch.save reports a full disk by errors of its own, replace_file by one line
    torch.save(checkpoint, buffer)
    replace_file(path, buffer.getvalue())


def load_checkpoint(path):
    """The checkpoint at `path`, on the CPU; RunError where it is damaged or of another format. Runs no code from it."""
    if not os.path.isfile(path):
        found = "is not a file" if os.path.exists(path) else "does not exist"
        raise RunError(f"{path} {found}; expected last.pt or best.pt of a run")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load compares no check sums
        if damaged is not None:
            raise zipfile.BadZipFile(f"bad check sum of {damaged}")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(
            f"{path} cannot be loaded: it holds more than tensors and plain values, or is damaged"
        ) from error
    except Exception as error:  # zipfile and torch have a dozen types for what is wrong with a file
        reason = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path} cannot be loaded: {reason}; expected a whole last.pt or best.pt of a run") from error
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if found != FORMAT:
        raise RunError(
            f"{path}: found format {found}, expected {FORMAT}; load it with the version of this project that wrote it"
        )
    missing = sorted(CHECKPOINT_KEYS - set(checkpoint))
    if missing:
        raise RunError(f"{path} lacks {', '.join(missing)}; expected a last.pt or best.pt of a run")
    settings, metrics = checkpoint["settings"], checkpoint["metrics"]
    if not (isinstance(settings, dict) and isinstance(metrics, dict) and isinstance(checkpoint["log_bytes"], int)):
        raise RunError(f"{path}: its settings and metrics are no dicts; expected a last.pt or best.pt of a run")
    missing = sorted((DEFAULT.keys() - settings.keys()) | (METRICS - metrics.keys()))
    if missing:
        raise RunError(f"{path} lacks {', '.join(missing)} in settings or metrics; expected a last.pt or best.pt")
    if checkpoint["net"] != {name: settings[name] for name in NET_SETTINGS}:
        raise RunError(f"{path}: its network is not that of its settings; expected a last.pt or best.pt of a run")
    try:
        with torch.device("meta"):  # shapes alone: a wrong width must not claim memory
            expected = Net(**checkpoint["net"]).state_dict()
        found = {name: (value.shape, value.dtype) for name, value in checkpoint["model"].items()}
    except Exception as error:  # whatever a net of wrong arguments, or weights that are none, may raise
        raise RunError(f"{path} describes no network: {type(error).__name__}: {error}; use another file") from error
    for name, value in expected.items():
        if found.pop(name, None) != (value.shape, value.dtype):
            raise RunError(f"{path}: {name} is not of shape {tuple(value.shape)}, as its network has it")
    if found:
        raise RunError(f"{path} holds {', '.join(found)}, which its network does not have; use another file")
    return checkpoint


def draw_curves(figure, metrics, split):
    """Draw loss and accuracy over the epochs into the empty `figure`, in training and on `split`."""
    epochs = [epoch["epoch"] for epoch in metrics["epochs"]]
    left, right = figure.subplots(1, 2)
    for axes, quantity, unit in ((left, "loss", ""), (right, "accuracy", " (%)")):
        for name in ("train", split):
            values = [epoch[f"{name}_{quantity}"] for epoch in metrics["epochs"]]
            smoothed = name == "train" and quantity == "loss" and metrics["config"]["label_smoothing"] > 0
            axes.plot(epochs, values, marker="o", label=name + " (smoothed labels)" * smoothed)
        axes.set(xlabel="epoch", ylabel=quantity + unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    if metrics["target"] is not None:
        right.axhline(metrics["target"], color="grey", linestyle="--", label=f"target {metrics['target']:g}%")
    left.legend(loc="upper right")
    right.legend(loc="lower right")
    figure.suptitle(f"{metrics['dataset']}: {metrics['params']} parameters, seed {metrics['seed']}")
