"""The folder of a run: log.txt, metrics.json, checkpoints and curves."""

import itertools
import json
import os
import sys
import time
from pathlib import Path

import torch

RUN_FILES = ("log.txt", "metrics.json", "curves.png", "last.pt", "best.pt")


class RunError(Exception):
    """A run that cannot start or go on; the message is one line that says what to do."""

    exit_code = 2


class Record:
    """What a run leaves behind in its folder: log.txt, line by line, and metrics.json, whole each time."""

    def __init__(self, folder, metrics, start):
        self.folder, self.metrics, self.start = folder, metrics, start

    def log(self, line):
        print(line, flush=True)
        with open(self.folder / "log.txt", "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")

    def write_metrics(self):
        self.metrics["total_seconds"] = round(time.perf_counter() - self.start, 3)
        self.metrics["peak_memory_mb"] = peak_memory_mb()
        write_json(self.folder / "metrics.json", self.metrics)


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
        (folder / "log.txt").touch()
    except OSError as error:
        raise RunError(f"--out {folder} cannot be written: {error.strerror}; choose another folder") from error
    return folder


def write_json(path, value):
    """Write strict JSON, first beside `path`, so that no half-written file ever bears its name."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def save_checkpoint(path, model, metrics):
    """Save weights and what rebuilds the net: Net(**checkpoint["net"]).load_state_dict(checkpoint["model"])."""
    config = metrics["config"]
    checkpoint = {
        "net": {name: config[name] for name in ("widths", "dropout", "margin")},
        "model": {name: value.cpu() for name, value in model.state_dict().items()},
        "dataset": metrics["dataset"],
        **metrics["epochs"][-1],
    }
    temporary = path.with_suffix(".tmp")
    torch.save(checkpoint, temporary)
    os.replace(temporary, path)


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
