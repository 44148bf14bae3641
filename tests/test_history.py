"""What is derived from the epochs: the best, the target, the early stop, the closing lines, metrics.json."""

import pytest

from experiment.history import History, Score


def history_of(*correct, split="test", **rest):
    """A History of epochs with so many correct answers out of 200."""
    history = History(split, **rest)
    for number, hits in enumerate(correct, 1):
        curve = [{"step": 30 * number, "lr": 0.1, "loss": 1.0}]
        history.add(Score(2.0 / number, 6 * number, 60), Score(1.0 / number, hits, 200), 0.1, curve, 1.00049 * number)
    return history


@pytest.mark.parametrize(("target", "met"), [(50, 1), (50.5, 2), (89.5, 2), (90, 3), (99.9, 5), (100, 5), (None, None)])
def test_a_run_is_over_after_all_epochs_or_at_its_target_and_100_stops_none(target, met):
    correct = [100, 179, 180, 190, 200]
    for count in range(len(correct) + 1):
        history, reached = history_of(*correct[:count]), met is not None and count >= met
        assert history.first_at(target) == (met if reached else None)
        assert history.is_over(6, target) == (reached and target != 100)
        assert history.is_over(max(count, 1), target) == (count > 0)


@pytest.mark.parametrize(
    ("correct", "target", "last"),
    [
        ([100, 180, 180, 170], 90, "Target 90.00%: met at epoch 2"),
        ([100, 180, 180, 170], 100, "Target 100.00%: not met by epoch 4"),
        ([180], 99.4, "Target 99.40%: not met by epoch 1"),
        ([180], None, None),
    ],
)
def test_the_closing_lines_tell_best_final_target_and_test(correct, target, last):
    history = history_of(*correct, split="holdout")
    lines = ["Best holdout accuracy: 90.00% (epoch 2)", "Final holdout accuracy: 85.00% (epoch 4)"]
    lines = lines if len(correct) > 1 else ["Best and final holdout accuracy: 90.00% (epoch 1)"]
    lines += [last] * (last is not None)
    assert list(history.summary(target)) == lines
    history.test = Score(0.03456, 3641, 4000)
    lines.append("Test set: Average loss: 0.0346, Accuracy: 3641/4000 (91.03%)")
    assert list(history.summary(target)) == lines


@pytest.mark.parametrize("split", ["test", "holdout"])
def test_metrics_are_those_of_the_epochs_and_of_the_test_set_once_it_was_seen(split):
    def epoch(number, accuracy, seconds):
        figures = {"train_loss": 2.0 / number, "train_accuracy": 10.0 * number, "lr": 0.1, "seconds": seconds}
        figures |= {f"{split}_loss": 1.0 / number, f"{split}_accuracy": accuracy}
        return {"epoch": number, "images": 60, "curve": [{"step": 30 * number, "lr": 0.1, "loss": 1.0}], **figures}

    epochs = [epoch(1, 50.0, 1.0), epoch(2, 90.0, 2.001), epoch(3, 80.0, 3.001)]
    expected = {
        **{"epochs": epochs, f"best_{split}_accuracy": 90.0, f"final_{split}_accuracy": 80.0},
        **{"target": 80.0, "target_epoch": 2, "train_seconds": 6.002, "total_seconds": 4.0, "peak_memory_mb": 500},
    }
    history = history_of(100, 180, 160, split=split, total_seconds=4.00049, peak_memory_mb=500)
    assert history.metrics(80.0) == expected
    history.test = Score(0.25, 364, 400)
    assert history.metrics(80.0) == {**expected, "test_loss": 0.25, "test_accuracy": 91.0}
    empty = History(split).metrics(None)
    assert empty.keys() == expected.keys() and empty["epochs"] == [] and empty[f"best_{split}_accuracy"] is None
