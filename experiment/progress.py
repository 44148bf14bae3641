"""Running loss and accuracy of an epoch, shown as a progress bar on a terminal."""

import math
import sys

import torch
from tqdm import tqdm

from experiment.distributed import total
from experiment.errors import DivergedError
from experiment.processes import rank


class Progress(tqdm):
    """A bar for an epoch of `steps` steps: `add` each batch, then read mean loss, accuracy and the last lr.

    The values stay on the device for 25 steps at a time.
    """

    def __init__(self, steps, title):
        layout = "{desc}: {percentage:3.0f}%|{bar}| {remaining} left{postfix}"  # fits a terminal of 80 columns
        super().__init__(total=steps, desc=title, bar_format=layout, leave=False, disable=not on_terminal())
        self.pending, self.total_loss, self.correct, self.count, self.lr = [], 0.0, 0, 0, None

    def add(self, step, lr, loss, logits, labels):
        """Count one batch: mean `loss` (scalar), `logits` (B, 10), `labels` (B,); `step` is the run's."""
        self.count += len(labels)
        self.correct = self.correct + (logits.argmax(1) == labels).sum()
        self.pending.append((step, lr, loss.detach() * len(labels)))
        self.lr = lr
        self.update()
        if len(self.pending) == 25:
            self.flush()

    def flush(self):
        """Add the pending losses, which must be finite, and show the means so far."""
        values = torch.stack([loss for _, _, loss in self.pending]).tolist() if self.pending else []
        for (step, lr, _), value in zip(self.pending, values):
            if not math.isfinite(value):
                raise DivergedError(f"the loss is {value} at step {step}, learning rate {lr:.4g}; try a lower --lr")
        self.total_loss += sum(values)
        self.pending = []
        self.set_postfix_str(f"loss={self.loss:.4f}, acc={self.accuracy:.2f}%, lr={self.lr:.4f}")

    def finish(self):
        """Add what is pending, and the counts of the other processes."""
        self.flush()
        self.total_loss, self.correct, self.count = total(self.total_loss, int(self.correct), self.count)

    @property
    def loss(self):
        return self.total_loss / self.count

    @property
    def accuracy(self):
        return 100 * int(self.correct) / self.count


def on_terminal():
    """Whether this process shows a bar: stderr is a terminal; it may be missing or closed."""
    try:
        return rank() == 0 and sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False
