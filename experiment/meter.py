"""Loss and accuracy of an epoch in training, and the progress bar that shows them."""

import math
import sys

import torch
from tqdm import tqdm

from experiment.errors import DivergedError
from experiment.history import Score

STEPS = 25


class Meter:
    """Sums up an epoch: `add` every batch, then read `score`, `lr` (of the last step) and `curve`.

    Every 25 steps are a point of `curve`: the run's step, its lr, and the mean loss. Values stay on the device for 25
    steps, because reading one waits for it.
    """

    def __init__(self, step=0):
        self.step, self.lr, self.curve = step, None, []  # step: those of the run so far
        self.pending, self.loss, self.correct, self.count = [], 0.0, 0, 0  # sums over what has been read

    def add(self, lr, losses, logits, labels):
        """Add a batch: losses (B,), logits (B, 10) and labels (B,), trained on with the learning rate `lr`."""
        self.step, self.lr = self.step + 1, lr
        self.pending.append((self.step, lr, len(labels), losses.sum(), (logits.argmax(1) == labels).sum()))
        if len(self.pending) == STEPS:
            self.read()

    def read(self):
        """Read the pending values from the device; DivergedError if a loss is not finite."""
        if self.pending:
            steps, lrs, counts, losses, correct = zip(*self.pending)
            losses, correct = torch.stack(losses).tolist(), torch.stack(correct).tolist()
            for step, lr, loss in zip(steps, lrs, losses):
                if not math.isfinite(loss):
                    raise DivergedError(f"the loss is {loss} at step {step}, learning rate {lr:.4g}; try a lower --lr")
            self.curve.append({"step": steps[-1], "lr": lrs[-1], "loss": sum(losses) / sum(counts)})
            self.loss += sum(losses)
            self.correct += sum(correct)
            self.count += sum(counts)
            self.pending = []

    @property
    def score(self):
        """The Score of all batches so far."""
        self.read()
        return Score(self.loss / self.count, self.correct, self.count)

    def __str__(self):
        """Loss, accuracy and learning rate for a bar, always as wide: of what has been read, or of the first batch."""
        loss, correct, count = self.loss, self.correct, self.count
        if not count and self.pending:
            _, _, count, loss, correct = self.pending[0]
        loss = f"{loss / max(1, count):.4f}"[:6]  # a loss of 10 has a digit less
        return f"loss {loss}, {100 * correct / max(1, count):6.2f}%, lr {self.lr or 0:6.4f}"


def progress(batches, total, title, meter):
    """Yield the batches; on a terminal a bar shows `title`, how far the run of `total` steps is, and `meter`."""
    layout = "{desc}: {percentage:3.0f}%|{bar}| {remaining:>5} left{postfix}"  # fits a terminal of 80 columns
    options = {"desc": title, "postfix": str(meter), "bar_format": layout, "leave": False, "disable": not on_terminal()}
    with tqdm(total=total, initial=meter.step, **options) as bar:
        for batch in batches:
            yield batch
            if not bar.disable:
                bar.set_postfix_str(str(meter), refresh=False)
                bar.update()


def busy(what):
    """A context during which a terminal says `what` takes so long."""
    return tqdm(desc=what, bar_format="{desc} …", leave=False, disable=not on_terminal())


def on_terminal():
    """Whether a bar is shown: stderr is a terminal or a notebook's; it may be missing or closed."""
    try:
        return sys.stderr.isatty() or type(sys.stderr).__module__ == "ipykernel.iostream"
    except (AttributeError, ValueError):
        return False
