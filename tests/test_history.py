"""What is derived from the epochs: the best, the target, the early stop, the closing lines, metrics.json."""

import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from experiment.errors import DivergedError
from experiment.history import Epoch, History, Score


def training(lr, loss, accuracy):
    """What the Progress of an epoch measured."""
    curve = [{"step": 25, "lr": 2 * lr, "loss": loss}, {"step": 30, "lr": lr, "loss": loss / 2}]
    return SimpleNamespace(count=60, lr=lr, loss=loss, accuracy=accuracy, curve=curve)


def history_of(*correct, split="test", **rest):
    """A History of epochs with so many correct answers out of 200."""
    history = History(split, **rest)
    for number, hits in enumerate(correct, 1):
        seen = training(0.1 * number, 2.0 / number, 10.0 * number)
        history.add(seen, Score(1.0 / number, hits, 200), 1.00049 * number)
    return history


def test_an_evaluation_is_in_percent_and_one_line():
    evaluation = Score(0.03456, 9941, 10000)
    assert evaluation.accuracy == 99.41
    assert evaluation.line("test") == "Test set: Average loss: 0.0346, Accuracy: 9941/10000 (99.41%)"
    assert Score(0.5, 190, 200).line("holdout").startswith("Holdout set: Average loss: 0.5000, Accuracy: 190/200 ")


@pytest.mark.parametrize(
    ("correct", "best"), [([60], 1), ([60, 80, 70, 80], 2), ([90, 80, 70], 1), ([60, 70, 80], 3), ([50, 50, 50], 1)]
)
def test_the_best_epoch_is_the_first_of_equals_and_the_final_one_the_last(correct, best):
    history = history_of(*correct)
    assert history.best.number == best and history.best.accuracy == max(correct) / 2
    assert history.final.number == len(correct) and history.final.accuracy == correct[-1] / 2
    assert [epoch.number for epoch in history.epochs] == list(range(1, len(correct) + 1))


@pytest.mark.parametrize("target", [25, 47.5, 90, 90.25, 95, 99.999, 100, 100.0, None])
def test_the_target_is_met_first_where_a_slow_search_meets_it_and_100_stops_no_run(target):
    correct = [100, 179, 180, 190, 200]
    history = History("test")
    met = None
    for number, hits in enumerate(correct, 1):
        assert history.first_at(target) is None or history.first_at(target) == met
        history.add(training(0.1, 1.0, 50.0), Score(1.0, hits, 200), 1.0)
        if met is None and target is not None and 100 * hits / 200 >= target:
            met = number
        assert history.first_at(target) == met
        assert history.stops_at(target) == (met is not None and target != 100)
    assert (met is None) == (target is None)


def test_nothing_is_met_before_the_first_epoch():
    history = History("test")
    assert history.first_at(1) is None and not history.stops_at(1) and history.train_seconds == 0


@pytest.mark.parametrize(
    ("correct", "target", "line"),
    [
        ([100, 180, 180, 170], 90, "Target 90.00%: met at epoch 2"),
        ([100, 180, 180, 170], 100, "Target 100.00%: not met in 4 epochs"),
        ([180], 99.4, "Target 99.40%: not met in 1 epoch"),
        ([180], None, None),
    ],
)
def test_the_closing_lines_tell_best_final_and_target(correct, target, line):
    history = history_of(*correct)
    lines = list(history.summary(target))
    assert lines[:2] == [
        f"Best test accuracy: 90.00% (epoch {min(2, len(correct))})",
        f"Final test accuracy: {correct[-1] / 2:.2f}% (epoch {len(correct)})",
    ]
    assert lines[2:] == ([line] if line else [])


def test_metrics_of_a_run_that_is_evaluated_on_the_test_set():
    assert history_of(100, 180, total_seconds=4.00049, peak_memory_mb=500).metrics(80.0) == {
        "epochs": [
            {
                "epoch": 1,
                "images": 60,
                "lr": 0.1,
                "train_loss": 2.0,
                "train_accuracy": 10.0,
                "test_loss": 1.0,
                "test_accuracy": 50.0,
                "seconds": 1.0,
                "curve": [{"step": 25, "lr": 0.2, "loss": 2.0}, {"step": 30, "lr": 0.1, "loss": 1.0}],
            },
            {
                "epoch": 2,
                "images": 60,
                "lr": 0.2,
                "train_loss": 1.0,
                "train_accuracy": 20.0,
                "test_loss": 0.5,
                "test_accuracy": 90.0,
                "seconds": 2.001,
                "curve": [{"step": 25, "lr": 0.4, "loss": 1.0}, {"step": 30, "lr": 0.2, "loss": 0.5}],
            },
        ],
        "best_test_accuracy": 90.0,
        "final_test_accuracy": 90.0,
        "target": 80.0,
        "target_epoch": 2,
        "train_seconds": 3.001,
        "total_seconds": 4.0,
        "peak_memory_mb": 500,
    }


def test_metrics_of_a_run_with_held_out_images_show_the_test_set_only_at_the_end():
    history = history_of(100, 190, 160, split="holdout")
    before = history.metrics(None)
    assert before["best_holdout_accuracy"] == 95 and before["final_holdout_accuracy"] == 80
    assert [epoch["holdout_accuracy"] for epoch in before["epochs"]] == [50, 95, 80]
    assert before["target"] is before["target_epoch"] is None
    assert not any(name.startswith("test") or "_test_" in name for name in (*before, *before["epochs"][0]))
    history.test = Score(0.25, 364, 400)
    assert history.metrics(None) == {**before, "test_loss": 0.25, "test_accuracy": 91.0}


def test_metrics_before_the_first_epoch_have_the_same_entries():
    empty = History("test").metrics(90)
    assert empty.keys() == history_of(100).metrics(90).keys()
    assert empty["epochs"] == [] and empty["best_test_accuracy"] is empty["final_test_accuracy"] is None


@pytest.mark.parametrize("test", [None, Score(0.25, 364, 400)])
@pytest.mark.parametrize("correct", [[], [100, 190]])
def test_a_history_comes_back_from_its_dict(correct, test):
    history = history_of(*correct, split="holdout", test=test, total_seconds=4.5, peak_memory_mb=500)
    again = History.from_dict(asdict(history))
    assert again == history and type(again.test) is type(test)
    assert all(type(epoch) is Epoch and type(epoch.evaluation) is Score for epoch in again.epochs)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_refused_and_the_epochs_before_it_stay(loss):
    history = history_of(100, 180, split="holdout")
    with pytest.raises(DivergedError, match=rf"^the holdout loss is {loss} after epoch 3.*try a lower --lr"):
        history.add(training(0.1, 1.0, 50.0), Score(loss, 20, 200), 1.0)
    assert history == history_of(100, 180, split="holdout")
