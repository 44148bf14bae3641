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


def test_a_score_is_in_percent_and_one_line():
    score = Score(0.03456, 9941, 10000)
    assert score.accuracy == 99.41
    assert score.line("holdout") == "Holdout set: Average loss: 0.0346, Accuracy: 9941/10000 (99.41%)"


@pytest.mark.parametrize(("correct", "best"), [([60], 1), ([60, 80, 70, 80], 2), ([90, 80], 1), ([50, 50, 50], 1)])
def test_the_best_epoch_is_the_first_of_equals_and_the_final_one_the_last(correct, best):
    history = history_of(*correct)
    assert history.best.number == best and history.best.accuracy == max(correct) / 2
    assert history.final.number == len(correct) and history.final.accuracy == correct[-1] / 2


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
    history.test = Score(0.25, 364, 400)
    assert list(history.summary(target)) == [*lines, history.test.line("test")]


def test_metrics_of_a_run_that_is_evaluated_on_the_test_set():
    def epoch(number, **rest):
        curve = [{"step": 30 * number, "lr": 0.1, "loss": 1.0}]
        return {"epoch": number, "images": 60, "lr": 0.1, "train_accuracy": 10.0 * number, "curve": curve, **rest}

    first = epoch(1, train_loss=2.0, test_loss=1.0, test_accuracy=50.0, seconds=1.0)
    second = epoch(2, train_loss=1.0, test_loss=0.5, test_accuracy=90.0, seconds=2.001)
    assert history_of(100, 180, total_seconds=4.00049, peak_memory_mb=500).metrics(80.0) == {
        **{"epochs": [first, second], "best_test_accuracy": 90.0, "final_test_accuracy": 90.0},
        **{"target": 80.0, "target_epoch": 2, "train_seconds": 3.001, "total_seconds": 4.0, "peak_memory_mb": 500},
    }


def test_metrics_of_a_run_with_held_out_images_show_the_test_set_only_at_the_end():
    history = history_of(100, 190, 160, split="holdout")
    before = history.metrics(None)
    assert before["best_holdout_accuracy"] == 95 and before["final_holdout_accuracy"] == 80
    assert [epoch["holdout_accuracy"] for epoch in before["epochs"]] == [50, 95, 80]
    assert not any(name.startswith("test") or "_test_" in name for name in (*before, *before["epochs"][0]))
    history.test = Score(0.25, 364, 400)
    assert history.metrics(None) == {**before, "test_loss": 0.25, "test_accuracy": 91.0}
    empty = History("holdout").metrics(None)
    assert empty.keys() == before.keys() and empty["epochs"] == [] and empty["best_holdout_accuracy"] is None
