"""What each epoch of a run measured; everything else about accuracy is derived from that."""

import math
from dataclasses import dataclass, field

from experiment.errors import DivergedError


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy and number of correct answers on `count` images."""

    loss: float
    correct: int
    count: int

    @property
    def accuracy(self):
        """In percent."""
        return 100 * self.correct / self.count

    def line(self, split):
        figures = f"Average loss: {self.loss:.4f}, Accuracy: {self.correct}/{self.count} ({self.accuracy:.2f}%)"
        return f"{split.capitalize()} set: {figures}"


@dataclass(frozen=True)
class Epoch:
    """One epoch: its Scores, `lr` of its last step, `curve` as meter.Meter has it, `seconds` of training alone."""

    number: int
    training: Score
    evaluation: Score
    lr: float
    curve: list[dict]
    seconds: float

    @property
    def accuracy(self):
        return self.evaluation.accuracy


@dataclass
class History:
    """The finished epochs of a run, each evaluated on `split`, "test" or "holdout"."""

    split: str
    epochs: list[Epoch] = field(default_factory=list)
    test: Score | None = None  # of a run with held-out images, once, at its end
    total_seconds: float = 0.0  # summed over the run and all its resumptions
    peak_memory_mb: int | None = None

    @classmethod
    def from_dict(cls, values):
        """The inverse of dataclasses.asdict."""
        epochs = [
            Epoch(**{**epoch, "training": Score(**epoch["training"]), "evaluation": Score(**epoch["evaluation"])})
            for epoch in values["epochs"]
        ]
        return cls(**{**values, "epochs": epochs, "test": values["test"] and Score(**values["test"])})

    def add(self, training, evaluation, lr, curve, seconds):
        """Add an epoch; DivergedError if its evaluation has no finite loss."""
        number = len(self.epochs) + 1
        if not math.isfinite(evaluation.loss):
            raise DivergedError(f"the {self.split} loss is {evaluation.loss} after epoch {number}; try a lower --lr")
        self.epochs.append(Epoch(number, training, evaluation, lr, curve, round(seconds, 3)))

    @property
    def best(self):
        """The first epoch of the highest accuracy."""
        return max(self.epochs, key=lambda epoch: epoch.accuracy)

    @property
    def final(self):
        return self.epochs[-1]

    @property
    def train_seconds(self):
        return round(sum(epoch.seconds for epoch in self.epochs), 3)

    def first_at(self, target):
        """Number of the first epoch with an accuracy of at least `target` percent, or None."""
        return next((epoch.number for epoch in self.epochs if target is not None and epoch.accuracy >= target), None)

    def is_over(self, epochs, target):
        """Whether the run has all its `epochs`, or has met a `target` below 100%, at which it stops early."""
        return len(self.epochs) >= epochs or (self.first_at(target) is not None and target < 100)

    def summary(self, target):
        """The closing lines of a log."""
        best, final = self.best, self.final
        names = {"Best and final": final} if best is final else {"Best": best, "Final": final}
        for name, epoch in names.items():
            yield f"{name} {self.split} accuracy: {epoch.accuracy:.2f}% (epoch {epoch.number})"
        if target is not None:
            met = self.first_at(target)
            yield f"Target {target:.2f}%: " + (f"met at epoch {met}" if met else f"not met by epoch {len(self.epochs)}")
        if self.test:
            yield self.test.line("test")

    def metrics(self, target):
        """The entries of metrics.json that derive from the epochs."""
        split = self.split
        epochs = [
            {"epoch": epoch.number, "images": epoch.training.count, "lr": epoch.lr}
            | {"train_loss": epoch.training.loss, "train_accuracy": epoch.training.accuracy}
            | {f"{split}_loss": epoch.evaluation.loss, f"{split}_accuracy": epoch.accuracy}
            | {"seconds": epoch.seconds, "curve": epoch.curve}
            for epoch in self.epochs
        ]
        return {
            "epochs": epochs,
            f"best_{split}_accuracy": self.best.accuracy if epochs else None,
            f"final_{split}_accuracy": self.final.accuracy if epochs else None,
            "target": target,
            "target_epoch": self.first_at(target),
            "train_seconds": self.train_seconds,
            "total_seconds": round(self.total_seconds, 3),
            "peak_memory_mb": self.peak_memory_mb,
            **({"test_loss": self.test.loss, "test_accuracy": self.test.accuracy} if self.test else {}),
        }
