"""Running loss and accuracy of an epoch, shown as a progress bar on a terminal."""

import math
import sys

import torch
import torch.nn.functional as F
from tqdm import tqdm

from experiment.distributed import total
from experiment.errors import DivergedError
from experiment.processes import rank

STEPS = 25


class Progress(tqdm):
    """A bar for an epoch of `steps` steps: `add` each batch, then read mean loss, accuracy and the last lr.

    The values stay on the device for 25 steps, on a GPU for the whole epoch, because reading one waits for it. Every 25
    steps are a point of `curve`: the run's step, its lr, and the mean cross-entropy without label smoothing.
    """

    def __init__(self, steps, title):
        layout = "{desc}: {percentage:3.0f}%|{bar}| {remaining} left{postfix}"  # fits a terminal of 80 columns
        super().__init__(total=steps, desc=title, bar_format=layout, leave=False, disable=not on_terminal())
        self.pending, self.total_loss, self.correct, self.count, self.lr = [], 0.0, 0, 0, None
        self.curve = []

    def add(self, step, lr, loss, logits, labels):
        """Count one batch: mean `loss` (scalar), `logits` (B, 10), `labels` (B,); `step` is the run's."""
        self.count += len(labels)
        self.correct = self.correct + (logits.argmax(1) == labels).sum()
        unsmoothed = F.cross_entropy(logits, labels, reduction="sum")
        self.pending.append((step, lr, len(labels), loss * len(labels), unsmoothed))
        self.lr = lr
        self.update()
        if len(self.pending) == STEPS and loss.device.type == "cpu":
            self.flush()

    def flush(self):
        """Add the pending losses, which must be finite, and show the means so far."""
        while self.pending:
            steps, lrs, counts, losses, unsmoothed = zip(*self.pending[:STEPS])
            losses, unsmoothed = torch.stack([torch.stack(losses), torch.stack(unsmoothed)]).tolist()
            for step, lr, loss in zip(steps, lrs, losses):
                if not math.isfinite(loss):
                    raise DivergedError(f"the loss is {loss} at step {step}, learning rate {lr:.4g}; try a lower --lr")
            self.total_loss += sum(losses)
            self.curve.append({"step": step, "lr": lr, "loss": sum(unsmoothed) / sum(counts)})
            del self.pending[:STEPS]
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
    """Whether this process shows a bar: stderr is a terminal or a notebook's; it may be missing or closed."""
    try:
        shown = sys.stderr.isatty() or type(sys.stderr).__module__ == "ipykernel.iostream"
        return shown and rank() == 0
    except (AttributeError, ValueError):
        return False
