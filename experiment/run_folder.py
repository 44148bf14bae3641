"""The folder of a run: log.txt, metrics.json, last.pt, best.pt and pictures, for a new run or a resumed one."""

import contextlib
import itertools
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

from experiment import plots
from experiment.checkpoint import Checkpoint
from experiment.command import echo
from experiment.distributed import lost_process
from experiment.errors import CheckpointError, DivergedError, ExperimentError, FileError
from experiment.files import lock, replace_file, write_json, writing
from experiment.history import History
from experiment.machine import peak_memory_mb
from experiment.processes import world_size
from model import count_parameters

FILES = ("log.txt", "metrics.json", "last.pt", "best.pt", *plots.PICTURES)


class RunFolder:
    """Where a run writes, and which checkpoint it starts from if it is resumed.

    A new run creates its folder, `out` or runs/<time>-seed<N>, in `start`: a run rejected before that leaves nothing
    on disk. `resume`, the folder of an earlier run, is locked and its last.pt loaded at once. Without `plots`, no
    pictures are drawn.
    """

    def __init__(self, out=None, resume=None, plots=True):
        self.began, self.out, self.lock, self.checkpoint = time.perf_counter(), out, None, None
        self.plots = plots
        if resume is None:
            return
        if not os.path.exists(Path(resume, "last.pt")):
            raise CheckpointError(
                f"--resume {resume}: no last.pt found; expected the folder of a run; "
                "a run that ended before its first checkpoint must be restarted"
            )
        self.path, self.lock = Path(resume), lock(resume)
        try:
            self.checkpoint = Checkpoint.load(self.path / "last.pt")
        except BaseException:
            self.close()
            raise

    def close(self):
        """Release the lock."""
        if self.lock:
            self.lock.release()

    @contextlib.contextmanager
    def start(self, settings, dataset, *parts):
        """Create the folder or restore the checkpoint's state; a context that yields the History of the run so far.

        `parts`: model, optimizer, scheduler and training loader, captured in every checkpoint.
        """
        self.settings, self.dataset, self.parts = settings, dataset, parts
        with contextlib.closing(self):
            if self.checkpoint:
                self.restore()
            else:
                self.history = History("holdout" if dataset.holdout else "test")
                self.path, self.lock = create_folder(self.out, settings.seed)
            try:
                if not self.checkpoint:
                    self.save_checkpoint("last.pt")
                self.log_start()
                self.write_metrics()
                with lost_process():
                    yield self.history
            except DivergedError as error:
                self.log(f"Stopped: {error}; epochs finished: {len(self.history.epochs)}")
                raise
            except (ExperimentError, KeyboardInterrupt) as error:
                what = "Interrupted" if isinstance(error, KeyboardInterrupt) else f"Stopped: {error}"
                begun = (self.path / "last.pt").exists()
                how = f"to resume: {how_to_resume(self.path)}" if begun else f"remove {self.path} and start again"
                with contextlib.suppress(FileError):  # the disk may be full; the line is printed all the same
                    self.log(f"{what}; {how}")
                raise

    def restore(self):
        """Restore the state of `checkpoint`, and cut from the log what came after it."""
        found, checkpoint = self.dataset, self.checkpoint
        if found.sha256 != checkpoint.sha256:
            raise CheckpointError(
                f"--resume {self.path}: found other data ({found.name}, SHA-256 {found.sha256}), expected "
                f"{checkpoint.dataset} with {checkpoint.sha256}; name its folder with --data-dir"
            )
        self.history = checkpoint.history
        self.began -= self.history.total_seconds
        checkpoint.restore(*self.parts)
        log = self.path / "log.txt"
        with writing(log, "restore its permissions"):
            if log.exists() and log.stat().st_size > checkpoint.log_bytes:
                os.truncate(log, checkpoint.log_bytes)

    def log_start(self):
        settings, data, epochs = self.settings, self.dataset, self.history.epochs
        if epochs:  # last.pt was written before these lines, so restore has cut them
            self.log_epoch()
        else:
            held = f", {len(data.holdout.labels)} held-out" if data.holdout else ""
            images = f"{len(data.train.labels)} training{held} and {len(data.test.labels)} test images"
            several = f"{settings.processes} processes, each " if settings.processes > 1 else ""
            machine = f"{several}{settings.device}, {settings.threads} CPU threads, torch {torch.__version__}"
            self.log(f"Run: {self.path}, seed {settings.seed}")
            self.log(f"Recipe: {settings.description}")
            self.log(f"Data: {data.name}, {images}")
            self.log(f"Model: {count_parameters(self.parts[0])} parameters")
            self.log(f"Device: {machine}, {settings.precision}")
        if self.checkpoint:
            self.log(f"Resumed after epoch {len(epochs)}, torch {torch.__version__}")

    def save_epoch(self):
        """Write what the history's last epoch measured, and checkpoints."""
        self.write_metrics()
        if self.history.best is self.history.final:
            self.save_checkpoint("best.pt")
        self.save_checkpoint("last.pt")  # without it the epoch is trained again, to the same bits
        self.log_epoch()  # logged last, so every logged epoch is already saved

    def log_epoch(self):
        epoch = self.history.final
        self.log(
            f"Epoch {epoch.number}/{self.settings.recipe.epochs}: {epoch.images} images, "
            f"Train loss: {epoch.train_loss:.4f}, Accuracy: {epoch.train_accuracy:.2f}%, "
            f"lr: {epoch.lr:.4f}, {epoch.seconds:.1f} s"
        )
        self.log(epoch.evaluation.line(self.history.split))

    def best_weights(self):
        """state_dict of the model after its best epoch."""
        return Checkpoint.load(self.path / "best.pt").model

    def finish(self, logits):
        """Log the summary, draw the pictures, and write the final metrics.json; `logits` (N, 10) of the test images."""
        history = self.history
        self.log(f"Parameters: {count_parameters(self.parts[0])}")
        for line in history.summary(self.settings.target):
            self.log(line)
        for name, draw in plots.PICTURES.items() if self.plots else ():
            try:
                replace_file(self.path / name, plots.drawn(draw, self.metrics(), self.dataset, logits))
            except Exception as error:  # a matplotlib failure must not fail a finished run
                self.log(f"Warning: {name} could not be drawn ({type(error).__name__}: {error})")
        self.write_metrics()
        memory = f", peak memory {history.peak_memory_mb} MB" if history.peak_memory_mb else ""
        self.log(f"Training time: {history.train_seconds:.1f} s, in total {history.total_seconds:.1f} s{memory}")

    def log(self, line):
        echo(line)
        log = self.path / "log.txt"
        with writing(log, "make room"), open(log, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self):
        """The content of metrics.json."""
        settings = self.settings
        return {
            "recipe": settings.recipe.name,
            "dataset": self.dataset.name,
            "sha256": self.dataset.sha256,
            "seed": settings.seed,
            "train_images": len(self.dataset.train.labels),
            "params": count_parameters(self.parts[0]),
            "device": settings.device,
            "threads": settings.threads,
            "processes": settings.processes,
            "precision": settings.precision,
            "torch": str(torch.__version__),
            "config": settings.recipe.values,
            "holdout": settings.holdout,
            **self.history.metrics(settings.target),
        }

    def write_metrics(self):
        history = self.history
        history.total_seconds = time.perf_counter() - self.began
        history.peak_memory_mb = max(history.peak_memory_mb or 0, peak_memory_mb() or 0) or None
        write_json(self.path / "metrics.json", self.metrics())

    def save_checkpoint(self, name):
        log = self.path / "log.txt"
        checkpoint = Checkpoint.capture(
            *self.parts,
            settings=self.settings,
            dataset=self.dataset.name,
            sha256=self.dataset.sha256,
            history=self.history,
            log_bytes=log.stat().st_size if log.exists() else 0,
        )
        checkpoint.save(self.path / name)


def create_folder(out, seed):
    """Create the folder of a run, `out` or a new one under runs/, with an empty log.txt: (path, its lock)."""
    folder, name = Path(out or "runs"), f"{time.strftime('%Y%m%d-%H%M%S')}-seed{seed}"
    if out and (found := [file for file in FILES if os.path.exists(folder / file)]):
        raise FileError(f"--out {folder} already holds a run ({', '.join(found)}); choose another folder or remove it")
    with writing(folder, "choose another folder with --out"):
        folder.mkdir(parents=True, exist_ok=True)
        if not out:
            folder = make_new_folder(folder / name)
        log = folder / "log.txt"
        log.touch(exist_ok=False)  # the one step that two runs at once cannot both take
        try:
            return folder, lock(folder)
        except FileError:  # a refused start leaves nothing behind
            log.unlink()
            with contextlib.suppress(OSError):  # not empty: the user's own
                folder.rmdir()
            raise


def make_new_folder(path):
    """Create the folder `path`, or `path`-2, -3, … if there is one already; returns its path."""
    for suffix in itertools.chain([""], (f"-{number}" for number in itertools.count(2))):
        with contextlib.suppress(FileExistsError):  # of a run that started in the same second
            folder = Path(f"{path}{suffix}")
            folder.mkdir()
            return folder


def how_to_resume(folder):
    """The shell command that resumes the run in `folder`, with this interpreter and script."""
    script = sys.argv[0] if os.path.basename(sys.argv[0]) == "train.py" else "train.py"
    launcher = [sys.orig_argv[0]] if world_size() == 1 else ["torchrun", "--nproc-per-node", str(world_size())]
    words = [*launcher, script, "--resume", str(folder)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
