"""Training: schedule, batches, augmentation, early stop and held-out images, in short real runs."""

import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import DIGITS, ROOT, assert_one_line, idx_bytes, read_metrics, run
from torch import nn

import train
from data import Loader
from experiment.checkpoint import Checkpoint
from experiment.datasets import FILES as DATA_FILES
from experiment.datasets import load_data, load_digits_28x28
from experiment.run_folder import FILES, RunFolder
from experiment.settings import DEFAULT, Settings
from model import MEAN, STD, Net

ARGS = [*DIGITS, "--batch-size", "64", "--widths", "4", "4", "4", "4", "4"]
STEPS = math.ceil(1437 / 64)  # of an epoch


def without_seconds(history):
    return [replace(epoch, seconds=0) for epoch in history.epochs]


# Schedule and optimizer


def rates(recipe, steps):
    """The learning rates of all steps of a run, which are exactly `steps`."""
    optimizer = train.make_optimizer(Net(), recipe)
    scheduler = train.make_scheduler(optimizer, recipe, steps)
    for _ in range(steps):
        yield scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
    with pytest.raises(ValueError):
        scheduler.step()


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nearly_nothing():
    of_steps = list(rates(replace(DEFAULT, lr=0.7, warmup=0.4), 150))
    peak = of_steps.index(max(of_steps))
    assert max(of_steps) == pytest.approx(0.7) and peak == round(0.4 * 150) - 1
    assert of_steps[: peak + 1] == sorted(of_steps[: peak + 1]) and of_steps[peak:] == sorted(of_steps[peak:])[::-1]
    assert of_steps[-1] < 0.7 / 1000


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.3), (2, 0.5), (3, 1 / 3), (4, 0.25), (10, 0.1), (100, 0.01)])
def test_very_short_runs_have_a_schedule_too(steps, warmup):
    *_, last = rates(replace(DEFAULT, warmup=warmup), steps)
    assert 0 < last < DEFAULT.lr / 1000


def test_weights_of_convolutions_and_the_classifier_decay_and_nothing_else():
    model = Net(separable=True)
    groups = train.make_optimizer(model, replace(DEFAULT, weight_decay=0.01)).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(decay) == len(list(model.parameters()))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            decays = name == "weight" and isinstance(module, (nn.Conv2d, nn.Linear))
            assert decay[id(parameter)] == (0.01 if decays else 0)


# What a run computes


def test_evaluate_counts_as_a_slow_loop_does():
    torch.manual_seed(0)
    images, labels = torch.randint(256, (53, 1, 28, 28), dtype=torch.uint8), torch.randint(10, (53,))
    model = Net()
    model(images)  # in training mode: BatchNorm has seen images
    evaluation = train.evaluate(model, Loader(images, labels, 20), "fp32")
    losses, hits = [], []
    for image, label in zip(images, labels):
        features = (image[None] / 255 - MEAN) / STD
        for block in model.blocks:
            features = block(features)
        logits = model.classifier(features.mean((2, 3)))
        losses.append(-logits.log_softmax(1)[0, label].item())
        hits.append(logits.argmax().item() == label.item())
    assert not model.training
    assert (evaluation.correct, evaluation.count) == (sum(hits), 53)
    assert evaluation.loss == pytest.approx(sum(losses) / 53, rel=1e-4)


def test_a_run_trains_on_every_image_in_a_new_order_and_evaluates_in_order(tmp_path, on_forward):
    passes = []
    on_forward(lambda net, images, logits: passes.append((net.training, images)))
    argv = [*ARGS, "--epochs", 2, "--later-share", 1, "--augment-until", 0, "--margin", 0]
    assert run(*argv, "--out", tmp_path / "run") == 0
    epoch = [True] * STEPS + [False]
    assert [training for training, _ in passes] == epoch + epoch + [False]  # the last for the pictures
    digits = load_digits_28x28()
    expected = sorted(image.numpy().tobytes() for image in digits.train.images / 255)
    orders = []
    for first in (0, STEPS + 1):
        images = torch.cat([images for _, images in passes[first : first + STEPS]])
        orders.append([image.numpy().tobytes() for image in images])
        assert sorted(orders[-1]) == expected
        assert torch.equal(passes[first + STEPS][1], digits.test.images / 255)
    assert orders[0] != orders[1]
    assert Checkpoint.load(tmp_path / "run" / "last.pt").scheduler["last_epoch"] == 2 * STEPS


@pytest.mark.parametrize(("until", "augmented"), [(0.6, math.ceil(0.6 * 3 * STEPS)), (1, 3 * STEPS), (0, 0)])
def test_only_the_first_part_of_a_run_is_augmented_and_no_evaluation(tmp_path, on_forward, until, augmented):
    plain = []

    def look(net, images, logits):
        whole = torch.equal((images * 255).round() / 255, images)  # interpolated pixels are not whole numbers
        assert net.training or whole
        assert images.shape[-1] == (28 if whole else 24)  # no work on what the margin crops
        if net.training:
            plain.append(whole)

    on_forward(look)
    argv = [*ARGS, "--epochs", 3, "--later-share", 1, "--augment-until", until, "--margin", 2]
    assert run(*argv, "--out", tmp_path / "run") == 0
    assert plain == [False] * augmented + [True] * (3 * STEPS - augmented)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_flag_decides_the_precision(tmp_path, on_forward, precision, dtype):
    dtypes = set()
    on_forward(lambda net, images, logits: dtypes.add(logits.dtype))
    assert run(*ARGS, "--epochs", 1, "--precision", precision, "--out", tmp_path / "run") == 0
    assert dtypes == {dtype} and read_metrics(tmp_path / "run")["precision"] == precision
    assert f", {precision}\n" in (tmp_path / "run" / "log.txt").read_text()


# Which epoch a run stops at and keeps


def test_a_run_stops_at_the_epoch_that_meets_the_target_and_its_digits_are_those_of_its_seed(tmp_path):
    def epochs(name, *argv):
        histories = []
        assert run(*ARGS, "--epochs", 4, *argv, "--out", tmp_path / name, on_epoch=histories.append) == 0
        metrics = read_metrics(tmp_path / name)
        assert len(metrics["epochs"]) == len(histories) == len(histories[-1].epochs)
        return without_seconds(histories[-1]), metrics

    whole, _ = epochs("whole", "--seed", 5, "--target", "none")
    assert len(whole) == 4
    target = whole[1].accuracy
    expected = next(epoch.number for epoch in whole if epoch.accuracy >= target)
    stopped, metrics = epochs("stopped", "--seed", 5, "--target", target)
    assert stopped == whole[:expected] and metrics["target_epoch"] == expected < 4
    log = (tmp_path / "stopped" / "log.txt").read_text()
    assert f"\nTarget {target:.2f}%: met at epoch {expected}\n" in log and "Epoch 4/4" not in log
    other, _ = epochs("other", "--seed", 6, "--target", 100)
    assert len(other) == 4 and other != whole


@pytest.fixture
def blank(mnist_dir):
    """blank(split): the small data set with nothing in the images of one split, on which all nets are equally good."""

    def make(name, count):
        path = mnist_dir / name
        path.write_bytes(idx_bytes(torch.zeros(count, 28, 28, dtype=torch.uint8)))
        return ["--data-dir", mnist_dir, *ARGS[2:], "--epochs", 4, "--lr", 0.1, "--target", "none"]

    return lambda split: make(DATA_FILES[0], 70) if split == "train" else make(DATA_FILES[2], 30)


def test_the_checkpoint_best_is_of_the_first_of_the_best_epochs(tmp_path, blank):
    def look(history):
        best, last = (Checkpoint.load(tmp_path / "run" / name) for name in ("best.pt", "last.pt"))
        assert (len(best.history.epochs), len(last.history.epochs)) == (1, len(history.epochs))

    assert run(*blank("test"), "--out", tmp_path / "run", on_epoch=look) == 0
    metrics = read_metrics(tmp_path / "run")
    assert [epoch["test_accuracy"] for epoch in metrics["epochs"]] == [10] * 4 and metrics["best_test_accuracy"] == 10


def test_best_follows_the_accuracy_while_it_rises(tmp_path):
    def look(history):
        best, last = (Checkpoint.load(tmp_path / "run" / name) for name in ("best.pt", "last.pt"))
        assert len(last.history.epochs) == len(history.epochs)
        assert best.history.final.accuracy == max(epoch.accuracy for epoch in history.epochs)

    assert run(*ARGS, "--epochs", 3, "--out", tmp_path / "run", on_epoch=look) == 0
    assert len(Checkpoint.load(tmp_path / "run" / "best.pt").history.epochs) > 1


def test_held_out_images_choose_the_epoch_and_the_test_set_is_seen_once_by_its_weights(tmp_path, blank, on_forward):
    evaluated, histories = [], []
    on_forward(lambda net, images, logits: None if net.training else evaluated.append(len(images)))
    argv = [*blank("train"), "--batch-size", 25, "--holdout", 20, "--out", tmp_path / "run"]
    assert run(*argv, on_epoch=histories.append) == 0
    assert evaluated == [20] * 4 + [30]
    history, metrics = histories[-1], read_metrics(tmp_path / "run")
    assert history.best.number == 1 and metrics["best_holdout_accuracy"] == 10
    best, last = (Checkpoint.load(tmp_path / "run" / name) for name in ("best.pt", "last.pt"))
    test = Loader(*load_data(best.settings).test, 1000)
    by_best, by_last = (train.evaluate(checkpoint.net(), test, "fp32") for checkpoint in (best, last))
    assert history.test.loss == pytest.approx(by_best.loss, rel=1e-5) and history.test.correct == by_best.correct
    assert abs(by_last.loss - by_best.loss) > 1e-3 * by_best.loss
    assert (metrics["test_loss"], metrics["test_accuracy"]) == (history.test.loss, history.test.accuracy)
    assert f"\n{history.test.line('test')}\n" in (tmp_path / "run" / "log.txt").read_text()
    assert "50 training, 20 held-out and 30 test images" in (tmp_path / "run" / "log.txt").read_text()


# A run as a whole


def test_a_full_run_as_a_user_sees_it(tmp_path):
    """By subprocess: the log lines, the files, and a checkpoint that gives the logged figures again."""
    command = [sys.executable, ROOT / "train.py", "--recipe", "fast", *ARGS, "--epochs", "2", "--seed", "3"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stderr == ""  # no bar where there is no terminal
    [folder] = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-seed3", folder.name)
    assert sorted(path.name for path in folder.iterdir()) == sorted([".lock", *FILES])
    assert (folder / "log.txt").read_text() == result.stdout

    lines = re.findall(
        r"^Test set: Average loss: (\d+\.\d{4}), Accuracy: (\d+)/360 \((\d+\.\d\d)%\)$", result.stdout, re.M
    )
    assert len(lines) == len(re.findall(r"^Epoch \d/2: \d+ images, Train loss: ", result.stdout, re.M)) == 2
    checkpoint, metrics = Checkpoint.load(folder / "last.pt"), read_metrics(folder)
    parameters = sum(parameter.numel() for parameter in checkpoint.net().parameters())
    for line in (
        f"Run: {folder.relative_to(tmp_path)}, seed 3",
        "Recipe: fast --widths 4 4 4 4 4 --epochs 2",
        "Data: digits, 1437 training and 360 test images",
        f"Model: {parameters} parameters",
        f"Device: cpu, 1 CPU threads, torch {torch.__version__}, fp32",
        f"Final test accuracy: {lines[-1][2]}% (epoch 2)",
        "Target 99.40%: not met in 2 epochs",
    ):
        assert f"{line}\n" in result.stdout

    expected = {"recipe": "fast", "dataset": "digits", "seed": 3, "params": parameters, "device": "cpu", "threads": 1}
    assert expected.items() <= metrics.items()
    assert metrics["config"]["margin"] == 2 and metrics["config"]["widths"] == [4] * 5
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2]
    assert metrics["final_test_accuracy"] == metrics["epochs"][-1]["test_accuracy"] == 100 * int(lines[-1][1]) / 360
    assert sum(epoch["seconds"] for epoch in metrics["epochs"]) == pytest.approx(metrics["train_seconds"])
    assert 0 < metrics["train_seconds"] < metrics["total_seconds"]

    evaluation = train.evaluate(checkpoint.net(), Loader(*load_digits_28x28().test, 1000), "fp32")
    assert evaluation.accuracy == metrics["final_test_accuracy"]
    assert evaluation.loss == pytest.approx(float(lines[-1][0]), abs=1e-4)


def test_train_is_a_function_that_returns_the_history(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, lengths = replace(DEFAULT, widths=(4,) * 5, batch_size=96, epochs=2, later_share=1.0), []
    settings = Settings(recipe, target=None, dataset="digits", threads=1, device="cpu")
    history = train.train(settings, on_epoch=lambda history: lengths.append(len(history.epochs)))
    of_steps = list(rates(recipe, 30))
    assert [epoch.lr for epoch in history.epochs] == [of_steps[14], of_steps[29]]  # of the last step
    assert lengths == [1, 2] and history.final.number == 2 and history.test is None
    [folder] = (tmp_path / "runs").iterdir()
    metrics, checkpoint = read_metrics(folder), Checkpoint.load(folder / "last.pt")
    assert history.metrics(None).items() <= metrics.items()
    assert checkpoint.settings == replace(settings, processes=1) and checkpoint.history.epochs == history.epochs

    named = train.train(settings, RunFolder(tmp_path / "named"))
    assert without_seconds(named) == without_seconds(history)
    assert sorted(path.name for path in (tmp_path / "named").iterdir()) == sorted([".lock", *FILES])


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        (True, f"the loss is nan at step {2 * STEPS + 1}, learning rate 0."),
        (False, "the test loss is nan after epoch 3"),
    ],
)
def test_a_loss_that_is_nan_stops_the_run_and_keeps_the_epochs_before_it(
    tmp_path, capsys, on_forward, training, expected
):
    epochs = []
    on_forward(lambda net, images, logits: logits * math.nan if (net.training, len(epochs)) == (training, 2) else None)
    argv = [*ARGS, "--epochs", 9, "--later-share", 1, "--out", tmp_path / "run"]
    assert run(*argv, on_epoch=lambda _: epochs.append(1)) == 2
    assert_one_line(capsys.readouterr(), expected, "try a lower --lr")
    last_line = (tmp_path / "run" / "log.txt").read_text().splitlines()[-1]
    assert last_line.startswith(f"Stopped: {expected}") and last_line.endswith("epochs finished: 2")
    checkpoint, metrics = Checkpoint.load(tmp_path / "run" / "last.pt"), read_metrics(tmp_path / "run")
    assert len(metrics["epochs"]) == len(checkpoint.history.epochs) == 2
    assert all(value.isfinite().all() for value in checkpoint.model.values())
