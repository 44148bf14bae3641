"""Training: schedule, steps, augmentation, early stop, held-out images; slow loops and short real runs."""

import copy
import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DIGITS, assert_one_line, idx_bytes, read_metrics, run
from torch import nn

import train
from data import TrainLoader
from experiment.checkpoint import Checkpoint
from experiment.datasets import FILES as DATA_FILES
from experiment.datasets import load_data
from experiment.run_folder import FILES, RunFolder
from experiment.settings import DEFAULT, Settings
from experiment.sources import load_digits_28x28
from model import Net

ARGS = [*DIGITS, "--batch-size", "64", "--widths", "4", "4", "4", "4", "4", "--target", "none"]
STEPS = math.ceil(1437 / 64)  # of an epoch


@pytest.fixture
def ended(monkeypatch):
    """A list of the logits with which runs end."""
    seen, end = [], RunFolder.end
    monkeypatch.setattr(RunFolder, "end", lambda run, logits: seen.append(logits) or end(run, logits))
    return seen


def rates(lr, warmup, steps):
    """The learning rate of each step: up from lr / 25 to lr, if there are steps for that, and down to lr / 250,000."""
    if warmup * steps > 1:
        return np.interp(range(steps), [0, warmup * steps - 1, steps - 1], [lr / 25, lr, lr / 250_000]).tolist()
    return np.interp(range(steps), [-1, max(2, steps) - 1], [lr, lr / 250_000]).tolist()


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.3), (2, 0.5), (3, 1 / 3), (4, 0.3), (100, 0.01), (150, 0.4)])
def test_the_learning_rate_is_one_cycle_over_all_steps_of_a_run(steps, warmup):
    recipe, found = replace(DEFAULT, lr=0.7, warmup=warmup), []
    optimizer = train.make_optimizer(Net(), recipe)
    scheduler = train.make_scheduler(optimizer, recipe, steps)
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(rates(0.7, warmup, steps))


def test_two_epochs_equal_a_slow_loop():
    torch.manual_seed(0)
    images, labels = torch.randint(256, (64, 1, 28, 28), dtype=torch.uint8), torch.randint(10, (64,))
    values = {"epochs": 2, "batch_size": 16, "later_share": 0.5, "augment_until": 0.0, "dropout": 0.0, "lr": 0.1}
    values |= {"warmup": 0.5, "momentum": 0.7, "weight_decay": 0.05, "label_smoothing": 0.3, "separable": True}
    settings = Settings(replace(DEFAULT, **values), device="cpu")
    loader, net = TrainLoader(images, labels, 16, later_share=0.5), Net(**settings.recipe.network)
    epochs = [torch.randperm(64).split(16), torch.randperm(64)[:32].split(16)]
    loader.indices = lambda epoch: epochs[epoch - 1]
    slow, optimizer = copy.deepcopy(net), train.make_optimizer(net, settings.recipe)
    scheduler = train.make_scheduler(optimizer, settings.recipe, 6)
    meters = [train.train_one_epoch(net, loader, optimizer, scheduler, settings, epoch) for epoch in (1, 2)]

    decayed = {id(module.weight) for module in slow.modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    velocity = [torch.zeros_like(parameter) for parameter in slow.parameters()]
    hardness, plain, lrs = torch.zeros(64), [], rates(0.1, 0.5, 6)
    for lr, index in zip(lrs, [batch for batches in epochs for batch in batches], strict=True):
        logits = slow(images[index] / 255)
        losses = F.cross_entropy(logits, labels[index], reduction="none", label_smoothing=0.3)
        hardness[index] = losses.detach() / losses.mean().item()
        plain.append(F.cross_entropy(logits, labels[index]).item())
        gradients = torch.autograd.grad(losses.mean(), list(slow.parameters()))
        for parameter, speed, gradient in zip(slow.parameters(), velocity, gradients):
            gradient = gradient + 0.05 * parameter.detach() * (id(parameter) in decayed)
            speed.mul_(0.7).add_(gradient)
            parameter.data -= lr * (gradient + 0.7 * speed)
    for (name, value), expected in zip(net.state_dict().items(), slow.state_dict().values()):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4, msg=name)
    torch.testing.assert_close(loader.hardness, hardness, rtol=1e-3, atol=1e-4)
    assert [meter.score.loss for meter in meters] == pytest.approx([sum(plain[:4]) / 4, sum(plain[4:]) / 2], rel=1e-3)
    assert [meter.lr for meter in meters] == pytest.approx([lrs[3], lrs[5]])


def test_a_run_augments_its_first_part_and_evaluates_each_epoch_once(tmp_path, on_forward):
    passes, test = [], load_digits_28x28().test.images

    def look(net, images, logits):
        assert net.blocks[1][0].weight.stride() == (36, 1, 12, 4)  # channels last
        assert net.dropout.p == 0.3 and logits.dtype == torch.float32
        if net.training:
            whole = torch.equal((images * 255).round() / 255, images)  # interpolated pixels are others
            passes.append("plain" if whole else "augmented")
            assert images.shape[-1] == (28 if whole else 24)  # no work on what the margin crops
        else:
            passes.append("test" if torch.equal(images, test) else "other")

    on_forward(look)
    argv = [*ARGS, "--epochs", 2, "--later-share", 0.5, "--augment-until", 0.8, "--dropout", 0.3]
    assert run(*argv, "--out", tmp_path / "run") == 0
    later = math.ceil(round(0.5 * 1437) / 64)
    augmented = math.ceil(0.8 * (STEPS + later)) - STEPS
    second = ["augmented"] * augmented + ["plain"] * (later - augmented)
    assert passes == ["augmented"] * STEPS + ["test"] + second + ["test"]


def test_held_out_images_choose_the_weights_that_see_the_test_set_once(tmp_path, mnist_dir, on_forward, ended):
    """No training image shows anything: on such images all epochs are equally good, and the first is the best."""
    (mnist_dir / DATA_FILES[0]).write_bytes(idx_bytes(torch.full((70, 28, 28), 2, dtype=torch.uint8)))
    evaluated, histories, folder = [], [], tmp_path / "run"
    on_forward(lambda net, images, logits: None if net.training else evaluated.append(len(images)))
    argv = [*ARGS[2:], "--data-dir", mnist_dir, "--epochs", 4, "--lr", 0.1, "--batch-size", 25, "--holdout", 20]
    assert run(*argv, "--out", folder, on_epoch=histories.append) == 0
    assert evaluated == [20] * 4 + [30]
    nets = [Checkpoint.load(folder / name).net() for name in ("best.pt", "last.pt")]
    images, labels = load_data(Settings(data_dir=str(mnist_dir)), False).test
    best, last = (train.predict(net, images, "fp32") for net in nets)
    torch.testing.assert_close(ended, [best])
    assert not torch.allclose(best, last, rtol=0.01)
    history, metrics, log = histories[-1], read_metrics(folder), (folder / "log.txt").read_text()
    assert history.best.number == 1 and metrics["best_holdout_accuracy"] == 10
    assert history.test == train.score(ended[0], labels) and metrics["test_loss"] == history.test.loss
    assert f"\n{history.test.line('test')}\n" in log and "50 training, 20 held-out and 30 test images" in log


def test_a_run_as_a_user_sees_it(tmp_path, monkeypatch, capsys):
    fsync, synced = os.fsync, []

    def record(descriptor):
        fsync(descriptor)
        for log in tmp_path.glob("runs/*/log.txt"):
            synced.extend([log.read_text()] * os.path.samestat(os.fstat(descriptor), log.stat()))

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.chdir(tmp_path)
    assert run("--recipe", "fast", *ARGS, "--epochs", 2, "--target", 99.9, "--seed", 3, plots=True) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # no bar where there is no terminal
    [folder] = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-seed3", folder.name)
    assert sorted(path.name for path in folder.iterdir()) == sorted([".lock", *FILES])
    net, metrics, test = Checkpoint.load(folder / "last.pt").net(), read_metrics(folder), load_digits_28x28().test
    line = train.score(train.predict(net, test.images, "fp32"), test.labels).line("test")
    expected = f"""Run: runs/{folder.name}, seed 3
Recipe: fast --widths 4 4 4 4 4 --epochs 2
Data: digits, 1437 training and 360 test images
Model: {sum(parameter.numel() for parameter in net.parameters())} parameters
Device: cpu, 1 CPU thread, torch {torch.__version__}, fp32
Epoch 1/2: 575 images, Train loss: #, Accuracy: #%, lr: #, # s
Test set: Average loss: #, Accuracy: #/360 (#%)
Epoch 2/2: 144 images, Train loss: #, Accuracy: #%, lr: 0.0000, # s
{line}
Best test accuracy: {metrics["best_test_accuracy"]:.2f}% (epoch 1)
Final test accuracy: {metrics["final_test_accuracy"]:.2f}% (epoch 2)
Target 99.90%: not met by epoch 2
Training time: # s, in total # s, peak memory # MB
"""
    assert re.fullmatch(re.escape(expected).replace(r"\#", r"[\d.]+"), printed.out), printed.out
    lines = printed.out.splitlines(keepends=True)  # each is on the disk before the run goes on
    assert synced == ["".join(lines[:count]) for count in range(1, len(lines) + 1)]
    assert metrics["recipe"] == "fast" and 0 < metrics["train_seconds"] < metrics["total_seconds"]


def test_train_returns_the_history_of_its_seed_and_ends_with_the_last_logits(tmp_path, on_forward, ended):
    dtypes, lengths, recipe = set(), [], replace(DEFAULT, widths=(4,) * 5, epochs=2)
    on_forward(lambda net, images, logits: dtypes.add(logits.dtype))
    settings = Settings(recipe, target=None, dataset="digits", threads=1, device="cpu", precision="bf16")
    run = RunFolder(tmp_path / "run", pictures=False)
    history = train.train(settings, run, on_epoch=lambda history: lengths.append(len(history.epochs)))
    checkpoint = Checkpoint.load(tmp_path / "run" / "last.pt")
    assert lengths == [1, 2] and checkpoint.settings == settings and checkpoint.history.epochs == history.epochs
    assert train.train(settings, RunFolder(resume=tmp_path / "run", pictures=False)).epochs == history.epochs
    expected = train.predict(checkpoint.net(), load_digits_28x28().test.images, "bf16")
    assert dtypes == {torch.bfloat16} and expected.dtype == torch.float32
    torch.testing.assert_close(ended, [expected] * 2)
    other = train.train(replace(settings, seed=1), RunFolder(tmp_path / "other", pictures=False))
    assert other.final.training.loss != history.final.training.loss


@pytest.mark.parametrize("training", [True, False])
def test_a_loss_that_is_nan_stops_the_run_and_keeps_the_epochs_before_it(tmp_path, capsys, on_forward, training):
    epochs, step = [], 2 * STEPS + 1
    on_forward(lambda net, images, logits: logits * math.nan if (net.training, len(epochs)) == (training, 2) else None)
    argv = [*ARGS, "--epochs", 9, "--later-share", 1, "--out", tmp_path / "run"]
    assert run(*argv, on_epoch=lambda _: epochs.append(1)) == 2
    expected = f"the loss is nan at step {step}, learning rate 0." if training else "the test loss is nan after epoch 3"
    assert_one_line(capsys.readouterr(), expected, "try a lower --lr")
    last_line = (tmp_path / "run" / "log.txt").read_text().splitlines()[-1]
    assert re.fullmatch(rf"Stopped: {expected}.*; epochs finished: 2", last_line)
    checkpoint = Checkpoint.load(tmp_path / "run" / "last.pt")
    assert len(read_metrics(tmp_path / "run")["epochs"]) == len(checkpoint.history.epochs) == 2
    assert all(value.isfinite().all() for value in checkpoint.model.values())
