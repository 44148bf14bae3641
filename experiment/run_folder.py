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

from experiment.checkpoint import Checkpoint
from experiment.errors import CheckpointError, DivergedError, ExperimentError, FileError, SettingError
from experiment.files import lock, replace_file, sync, write_json, writing
from experiment.history import History
from experiment.machine import allowed_cpus, memory_errors, peak_memory_mb
from experiment.meter import busy
from model import count_parameters

PICTURES = ("curves.png", "mistakes.png", "confusion.png", "augmented.png")
LAST_LINE = "Training time:"  # so begins the last line of a finished run's log.txt
FILES = ("log.txt", "metrics.json", "last.pt", "best.pt", *PICTURES)


class RunFolder:
    """Where a run writes, and the checkpoint it starts from if it is resumed.

    A new run creates its folder, `out` or runs/<time>-seed<N>, in `open`: one rejected before leaves nothing on disk.
    `resume` is the folder of an earlier run. Without `pictures`, none are drawn. Its total seconds count from `began`,
    by time.perf_counter(), by default from now. `processes` train together.
    """

    def __init__(self, out=None, resume=None, pictures=True, began=None, processes=1):
        self.out, self.pictures, self.processes = out, pictures, processes
        self.began = time.perf_counter() if began is None else began
        self.path, self.checkpoint, self.ended = resume and Path(resume), None, False
        if resume is None:
            return
        self.checkpoint = Checkpoint.load(self.path / "last.pt")
        if (expected := self.checkpoint.processes) != processes:
            found = f"found {processes}, expected {expected} as in the run"
            raise SettingError(f"processes: {found}; resume it with {how_to_resume(resume, expected)}")
        with contextlib.suppress(OSError):
            self.ended = f"\n{LAST_LINE}".encode() in (self.path / "log.txt").read_bytes()

    def share(self, settings, dataset, loader, net):
        """The loader and the model of this process: both as they are, unless parallel.ParallelRun takes this place."""
        return loader, net

    @contextlib.contextmanager
    def open(self, settings, dataset, *parts):
        """Create the folder, or restore the checkpoint; a context that holds the folder's lock, and logs errors.

        `parts`: network, optimizer, scheduler and training loader, which every checkpoint captures. Yields the History
        of the run so far.
        """
        self.settings, self.dataset, self.parts = settings, dataset, parts
        if self.checkpoint:
            held = lock(self.path)
        else:
            self.path, held = create_folder(self.out, settings.seed)
        try:
            self.history = self.restore() if self.checkpoint else History("holdout" if dataset.holdout else "test")
            with self.logged_errors(), memory_errors():
                if not self.checkpoint:
                    self.save_checkpoint("last.pt")
                self.log_start()
                self.write_metrics()
                yield self.history
        finally:
            held.release()

    def restore(self):
        """Restore the state of `checkpoint`, and cut from the log what came after it; returns its History."""
        data, checkpoint, log = self.dataset, self.checkpoint, self.path / "log.txt"
        if data.sha256 != checkpoint.sha256:
            found = f"found other data ({data.name}, SHA-256 {data.sha256})"
            expected = f"expected {checkpoint.dataset} with {checkpoint.sha256}; name its folder with --data-dir"
            raise CheckpointError(f"--resume {self.path}: {found}, {expected}")
        if Checkpoint.load(self.path / "last.pt").history != checkpoint.history:
            raise FileError(f"--resume {self.path}: another process has just trained it; resume it again")
        checkpoint.restore(*self.parts)
        self.began -= checkpoint.history.total_seconds
        with writing(log, "restore its permissions"):
            if log.exists() and log.stat().st_size > checkpoint.log_bytes:
                os.truncate(log, checkpoint.log_bytes)
        return checkpoint.history

    @contextlib.contextmanager
    def logged_errors(self):
        """Log why a run ends early, and how to resume it."""
        try:
            yield
        except (ExperimentError, KeyboardInterrupt) as error:
            what = "Interrupted" if isinstance(error, KeyboardInterrupt) else f"Stopped: {error}"
            how = f"remove {self.path} and start again"
            if isinstance(error, DivergedError):  # which would only happen again
                how = f"epochs finished: {len(self.history.epochs)}"
            elif (self.path / "last.pt").exists():
                how = f"to resume: {how_to_resume(self.path, self.processes)}"
            with contextlib.suppress(FileError):  # the disk may be full; the line is printed all the same
                self.log(f"{what}; {how}")
            raise

    def log_start(self):
        settings, data, epochs = self.settings, self.dataset, self.history.epochs
        if epochs:  # the checkpoint was written before their last lines, which restore has cut
            self.log_epoch()
        else:
            held = f", {len(data.holdout.labels)} held-out" if data.holdout else ""
            several = f"{self.processes} processes, each " if self.processes > 1 else ""
            machine = f"{several}{settings.device}, {settings.threads} CPU thread{'s' * (settings.threads > 1)}"
            self.log(f"Run: {self.path}, seed {settings.seed}")
            self.log(f"Recipe: {settings.description}")
            images = f"{len(data.train.labels)} training{held} and {len(data.test.labels)} test images"
            self.log(f"Data: {data.name}, {images}")
            self.log(f"Model: {count_parameters(self.parts[0])} parameters")
            self.log(f"Device: {machine}, torch {torch.__version__}, {settings.precision}")
            if settings.threads < (allowed := allowed_cpus()):
                why = "as many as were idle, or as --threads says"
                self.log(f"Threads: {settings.threads} of {allowed}, {why}; the digits of a run depend on their number")
        if self.checkpoint:
            self.log(f"Resumed after epoch {len(epochs)}, torch {torch.__version__}")

    def add_epoch(self, training, evaluation, lr, curve, seconds):
        """Add an epoch to the history, and write what it measured and its checkpoints."""
        self.history.add(training, evaluation, lr, curve, seconds)
        self.write_metrics()
        if self.history.best is self.history.final:
            self.save_checkpoint("best.pt")
        self.save_checkpoint("last.pt")  # without it the epoch is trained again, to the same bits
        self.log_epoch()  # logged last, so every logged epoch is already saved

    def log_epoch(self):
        epoch = self.history.final
        training = f"Train loss: {epoch.training.loss:.4f}, Accuracy: {epoch.training.accuracy:.2f}%"
        what = f"Epoch {epoch.number}/{self.settings.recipe.epochs}: {epoch.training.count} images"
        self.log(f"{what}, {training}, lr: {epoch.lr:.4f}, {epoch.seconds:.1f} s")
        self.log(epoch.evaluation.line(self.history.split))

    def best_weights(self):
        """state_dict of the network after its best epoch."""
        best, expected = Checkpoint.load(self.path / "best.pt"), self.history.best.number
        if len(best.history.epochs) != expected:  # an epoch was lost, and trained again to other bits
            raise CheckpointError(f"{self.path / 'best.pt'}: found another epoch than {expected}; train anew")
        return best.model

    def end(self, logits):
        """Log the summary, draw the pictures, and write the final metrics.json; `logits` (N, 10) of the test images."""
        history = self.history
        for line in history.summary(self.settings.target):
            self.log(line)
        if self.pictures:
            self.draw(logits)
        self.write_metrics()
        memory = f", peak memory {history.peak_memory_mb} MB" if history.peak_memory_mb else ""
        self.log(f"{LAST_LINE} {history.train_seconds:.1f} s, in total {history.total_seconds:.1f} s{memory}")

    def draw(self, logits):
        from experiment import plots  # needed here alone

        for name, draw in zip(PICTURES, plots.PICTURES):
            try:
                with busy("Drawing"):
                    replace_file(self.path / name, plots.drawn(draw, self.metrics(), self.dataset, logits.cpu()))
            except Exception as error:  # a matplotlib failure must not fail a finished run
                self.log(f"Warning: {name} could not be drawn ({type(error).__name__}: {error})")

    def log(self, line):
        """Print `line` and write it to log.txt."""
        try:
            print(line, flush=True)
        except (OSError, ValueError):  # the output is closed, or its reader has gone: go on in silence
            sys.stdout = None
        log = self.path / "log.txt"
        with writing(log, "make room"), open(log, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")
            sync(file)

    def metrics(self):
        """The content of metrics.json."""
        settings, data, recipe = self.settings, self.dataset, self.settings.recipe
        facts = {"recipe": recipe.name, "config": recipe.values, "dataset": data.name, "sha256": data.sha256}
        facts |= {name: getattr(settings, name) for name in ("seed", "device", "threads", "precision")}
        facts |= {"train_images": len(data.train.labels), "params": count_parameters(self.parts[0])}
        facts |= {"processes": self.processes, "torch": str(torch.__version__)}
        held_out = settings.holdout if data.holdout else None  # they may have taken the place of test images
        return {**facts, "holdout": held_out, **self.history.metrics(settings.target)}

    def write_metrics(self):
        history = self.history
        history.total_seconds = time.perf_counter() - self.began
        history.peak_memory_mb = max(history.peak_memory_mb or 0, peak_memory_mb() or 0) or None
        write_json(self.path / "metrics.json", self.metrics())

    def save_checkpoint(self, name):
        log, data = self.path / "log.txt", self.dataset
        run = {"settings": self.settings, "processes": self.processes, "dataset": data.name, "sha256": data.sha256}
        run |= {"history": self.history, "log_bytes": log.stat().st_size if log.exists() else 0}
        Checkpoint.capture(*self.parts, **run).save(self.path / name)


def how_to_resume(folder, processes):
    """The shell command that resumes the run in `folder`, with this interpreter and script."""
    launcher = [sys.orig_argv[0]] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes)]
    script = sys.argv[0] if os.path.basename(sys.argv[0]) == "train.py" else "train.py"
    option = [f"--resume={folder}"] if str(folder).startswith("-") else ["--resume", str(folder)]
    words = [*launcher, script, *option]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def create_folder(out, seed):
    """Create the folder of a run, `out` or a new one under runs/, with an empty log.txt: (path, its lock)."""
    folder = Path(out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-seed{seed}")
    if found := [file for file in FILES if out and os.path.exists(folder / file)]:
        raise FileError(f"--out {out} already holds a run ({', '.join(found)}); choose another folder or remove it")
    with writing(folder, "choose another folder with --out"):
        if out:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = make_new_folder(folder)
        log = folder / "log.txt"
        log.touch(exist_ok=False)  # the one step that two runs at once cannot both take
        try:
            return folder, lock(folder)
        except FileError:  # a refused start leaves nothing behind
            log.unlink()
            (folder / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty: the user's own
                folder.rmdir()
            raise


def make_new_folder(path):
    """Create the folder `path`, or `path`-2, -3, … if there is one already; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):  # of a run that started in the same second
            folder.mkdir()
            return folder
