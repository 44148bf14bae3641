"""Running loss and accuracy of an epoch, shown as a progress bar on a terminal."""

import math

import torch
from tqdm import tqdm

from experiment.errors import DivergedError

EVERY = 25  # steps between two looks; until then the values stay on the device


class Progress:
    """Mean loss and accuracy of an epoch of `steps` steps: update it in each, read it after the last."""

    def __init__(self, steps, title):
        # disable=None: no bar where the output is not a terminal
        self.bar = tqdm(total=steps, desc=title, unit="batch", leave=False, disable=None)
        self.pending, self.total_loss, self.correct, self.count, self.lr = [], 0.0, 0, 0, None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def update(self, step, lr, loss, logits, labels):
        """Count one batch: mean `loss` (scalar), `logits` (B, 10), `labels` (B,); `step` is the run's."""
        self.count += len(labels)
        self.correct = self.correct + (logits.argmax(1) == labels).sum()
        self.pending.append((step, lr, loss.detach() * len(labels)))
        self.lr = lr
        self.bar.update()
        if len(self.pending) == EVERY:
            self.flush()

    def flush(self):
        """Add the pending losses, which must be finite, and show the means so far."""
        values = torch.stack([loss for _, _, loss in self.pending]).tolist() if self.pending else []
        for (step, lr, _), value in zip(self.pending, values):
            if not math.isfinite(value):
                raise DivergedError(
                    f"the loss is {value} at step {step}, learning rate {lr:.4g}; "
                    "earlier epochs are kept, try a lower --lr"
                )
        self.total_loss += sum(values)
        self.pending = []
        self.bar.set_postfix_str(f"loss={self.loss:.4f}, acc={self.accuracy:.2f}%, lr={self.lr:.4f}")

    @property
    def loss(self):
        return self.total_loss / self.count

    @property
    def accuracy(self):
        return 100 * int(self.correct) / self.count
