"""Loaders, schedule, early stop, files and errors of train.py, on small data that the tests make."""

import gzip
import hashlib
import http.server
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine as affine_one_by_one

import data
import record
import train
from model import Net
from options import DEFAULT
from record import RUN_FILES

pytestmark = pytest.mark.usefixtures("one_thread")


ROOT = Path(__file__).parent
DIGITS = ["--dataset", "digits", "--batch-size", "64", "--widths", "4", "4", "4", "4", "4"]
DIGITS += ["--device", "cpu", "--precision", "fp32"]


def run(*argv):
    """train.main in this process, with the exit code also where argparse leaves by SystemExit."""
    try:
        return train.main([str(arg) for arg in argv])
    except SystemExit as error:
        return error.code


def epoch_of(checkpoint):
    return len(torch.load(checkpoint, weights_only=True)["metrics"]["epochs"])


def read_metrics(folder):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)


# Data


def test_train_loader_gives_every_image_once_in_a_new_order_each_epoch():
    torch.manual_seed(0)
    labels = torch.arange(103)  # each label names its image
    images = labels.byte().view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    loader = data.Loader(images, labels, 10, shuffle=True)
    epochs = []
    for _ in range(3):
        batches = list(loader)
        assert len(batches) == len(loader) == 11
        for batch_images, batch_labels in batches:
            pixels = (batch_images * data.STD + data.MEAN) * 255
            torch.testing.assert_close(pixels[:, 0, 5, 5].round().long(), batch_labels)
        epochs.append(torch.cat([batch_labels for _, batch_labels in batches]))
        assert torch.equal(epochs[-1].sort().values, labels)
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_test_loader_keeps_the_order_and_the_uneven_tail():
    labels = torch.arange(103)
    loader = data.Loader(torch.zeros(103, 1, 28, 28, dtype=torch.uint8), labels, 50, shuffle=False)
    for _ in range(2):
        assert torch.equal(torch.cat([batch_labels for _, batch_labels in loader]), labels)


def test_evaluate_counts_as_a_slow_loop_does():
    torch.manual_seed(0)
    images = torch.randint(256, (53, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(10, (53,))
    model = Net()
    loss, accuracy = train.evaluate(model, data.Loader(images, labels, 20, shuffle=False), "fp32")
    losses, answers = [], []
    for image, label in zip(images, labels):
        logits = model(((image[None] / 255) - data.MEAN) / data.STD)
        losses.append(-logits.log_softmax(1)[0, label].item())
        answers.append(logits.argmax().item() == label.item())
    assert accuracy == 100 * sum(answers) / 53
    assert loss == pytest.approx(sum(losses) / 53, rel=1e-4)


def test_affine_equals_torchvision_image_by_image():
    generator = torch.Generator().manual_seed(0)
    count = 20
    images = torch.zeros(count, 1, 28, 28)
    images[:, :, 4:24, 4:24] = torch.rand(count, 1, 20, 20, generator=generator)
    uniform = torch.rand(5, count, generator=generator) * 2 - 1
    angle, translate, scale, shear = 20 * uniform[0], 3 * uniform[1:3].round(), 1 + 0.2 * uniform[3], 10 * uniform[4]
    ours = data.affine(images, angle, translate, scale, shear)
    for i, image in enumerate(images):
        theirs = affine_one_by_one(
            image,
            angle=angle[i].item(),
            translate=translate[:, i].tolist(),
            scale=scale[i].item(),
            shear=[shear[i].item(), 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(ours[i], theirs, rtol=0, atol=1e-4)


def test_deskew_undoes_the_slant_of_each_digit():
    digits = data.load_dataset("digits").train_images[:100]
    still, slant = torch.zeros(100), torch.linspace(-25, 25, 100)
    leaning = data.affine(digits.float(), still, torch.zeros(2, 100), still + 1, slant).round().byte()
    upright = data.deskew(leaning)
    y, x = np.mgrid[:28, :28].reshape(2, -1)

    def slants(images):
        moments = (np.cov(x, y, aweights=image.flatten()) for image in images.numpy())
        return np.array([cov[0, 1] / cov[1, 1] for cov in moments])

    assert abs(slants(leaning)).max() > 0.4
    assert abs(slants(upright)).max() < 0.02
    blank = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    blank[1, 0, 5, 3:9] = 200  # one row has no slant
    assert torch.equal(data.deskew(blank), blank)


def test_augmentation_differs_between_samples_and_keeps_labels():
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[:, :, 8:20, 12:16] = 255
    images, labels = image.repeat(16, 1, 1, 1), torch.arange(16)
    loader = data.Loader(images, labels, 16, shuffle=True, augment=data.RandomAffine(10, 0.1, 0.1, 5))
    [(batch, batch_labels)] = list(loader)
    assert len({tuple(sample.flatten().tolist()) for sample in batch}) == 16
    assert torch.equal(batch_labels.sort().values, labels)
    plain = data.Loader(images, labels, 16, shuffle=False, augment=data.RandomAffine(0, 0, 0, 0))
    unchanged = (images.float() / 255 - data.MEAN) / data.STD
    torch.testing.assert_close(next(iter(plain))[0], unchanged, rtol=0, atol=1e-4)


def test_digits_are_real_digits_in_28x28():
    digits = data.load_dataset("digits")
    assert digits.name == "digits"
    assert len(digits.train_images) + len(digits.test_images) == 1797
    assert digits.train_images.shape[1:] == (1, 28, 28) and digits.train_images.dtype == torch.uint8
    assert digits.train_images.max() == 255
    shares = digits.test_labels.bincount(minlength=10) / len(digits.test_labels)
    expected = digits.train_labels.bincount(minlength=10) / len(digits.train_labels)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.005)


@pytest.mark.parametrize("layout", [".", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_data_dir_layouts(mnist_dir, layout, packed):
    expected = data.load_idx_files(data.find_files(mnist_dir))
    (mnist_dir / layout).mkdir(parents=True, exist_ok=True)
    for name in data.FILES:
        content = (mnist_dir / name).read_bytes()
        (mnist_dir / name).unlink()
        target = mnist_dir / layout / (name + ".gz" * packed)
        target.write_bytes(gzip.compress(content) if packed else content)
    loaded = data.load_dataset(data_dir=mnist_dir)
    assert loaded.name == "small (MNIST format)"  # never called MNIST
    assert all(torch.equal(a, b) for a, b in zip(expected[2:], loaded[2:])) and expected.sha256 == loaded.sha256


def test_data_is_looked_for_in_data_then_in_shared(mnist_dir, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert data.find_files() is None
    shared = shutil.copytree(mnist_dir, tmp_path / "shared" / "mnist" / "MNIST" / "raw")
    assert data.find_files()[0].resolve() == shared / data.FILES[0]
    own = shutil.copytree(mnist_dir, work / "data")
    assert data.find_files()[0].resolve() == own / data.FILES[0]
    (own / data.FILES[2]).unlink()
    assert data.find_files()[0].resolve() == shared / data.FILES[0]


def test_a_run_shuffles_train_only_and_trains_in_training_mode(tmp_path, monkeypatch):
    loaders, modes = {}, []
    forward = Net.forward

    class Recorder(data.Loader):
        def __init__(self, images, *args, **options):
            super().__init__(images, *args, **options)
            loaders[len(images)] = options["shuffle"]

    monkeypatch.setattr(train, "Loader", Recorder)
    monkeypatch.setattr(Net, "forward", lambda self, x: modes.append((self.training, len(x))) or forward(self, x))
    assert run(*DIGITS, "--epochs", 2, "--target", "none", "--out", tmp_path / "run") == 0
    assert loaders == {1437: True, 360: False}
    assert all(training == (count != 360) for training, count in modes) and len(modes) == 2 * (23 + 1)


@pytest.mark.parametrize(("bf16_seconds", "expected"), [(0.5, "bf16"), (0.9, "fp32"), (5.0, "fp32")])
def test_precision_is_bf16_only_where_it_is_much_faster(monkeypatch, bf16_seconds, expected):
    clock = itertools.accumulate(itertools.cycle([0.0, 1.0, 0.0, bf16_seconds]))  # start and end, fp32 then bf16
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(clock))
    precision, why = train.choose_precision("auto", torch.device("cpu"), Net())
    assert precision == expected and why == f"bf16 takes {bf16_seconds:.2f} times as long"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_flag_forces_the_precision(precision, tmp_path):
    assert run(*DIGITS, "--epochs", 1, "--precision", precision, "--out", tmp_path / "run") == 0
    assert read_metrics(tmp_path / "run")["precision"] == precision
    assert f"{precision} (as asked for)" in (tmp_path / "run" / "log.txt").read_text()


# Schedule and early stop


def test_schedule_peaks_at_the_maximum_and_ends_near_zero():
    config = {**DEFAULT, "epochs": 3, "lr": 0.7}
    optimizer = train.make_optimizer(Net(), config)
    scheduler = train.make_scheduler(optimizer, config, batches=50)
    rates = []
    for _ in range(150):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.7)
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.7 / 1000
    with pytest.raises(ValueError):  # exactly as many steps as batches
        scheduler.step()


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.3), (2, 0.5), (3, 1 / 3), (4, 0.25), (10, 0.1), (100, 0.01)])
def test_schedule_of_very_short_runs(steps, warmup):
    config = {**DEFAULT, "epochs": 1, "warmup": warmup}
    optimizer = train.make_optimizer(Net(), config)
    scheduler = train.make_scheduler(optimizer, config, steps)
    for _ in range(steps):
        rate = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
    assert 0 < rate < config["lr"] / 1000


def test_one_step_per_batch_and_decay_on_weights_only(tmp_path, monkeypatch):
    made = {}
    make_optimizer, make_scheduler = train.make_optimizer, train.make_scheduler
    monkeypatch.setattr(train, "make_optimizer", lambda *args: made.setdefault("optimizer", make_optimizer(*args)))
    monkeypatch.setattr(train, "make_scheduler", lambda *args: made.setdefault("scheduler", make_scheduler(*args)))
    assert run(*DIGITS, "--epochs", 2, "--out", tmp_path / "run") == 0
    assert made["scheduler"].last_epoch == 2 * math.ceil(1437 / 64)
    for group in made["optimizer"].param_groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] > 0) == (parameter.ndim > 1)


def test_the_last_part_of_the_run_is_not_augmented(tmp_path, monkeypatch):
    augmented = []
    affine = data.affine
    monkeypatch.setattr(data, "affine", lambda images, **to: augmented.append(len(images)) or affine(images, **to))
    assert run(*DIGITS, "--epochs", 4, "--augment-until", 0.6, "--out", tmp_path / "run") == 0
    assert len(augmented) == math.ceil(0.6 * 4 * math.ceil(1437 / 64))
    augmented.clear()
    assert run(*DIGITS, "--epochs", 1, "--augment-until", 0, "--out", tmp_path / "plain") == 0
    assert augmented == []


@pytest.mark.parametrize(
    ("target", "epochs", "target_epoch"),
    [("90", 3, 3), ("90.01", 4, 4), ("100", 5, 5), ("none", 5, None)],
)
def test_early_stop_at_the_epoch_that_meets_the_target(tmp_path, monkeypatch, target, epochs, target_epoch):
    accuracies = iter([50.0, 89.9, 90.0, 95.0, 100.0])
    monkeypatch.setattr(train, "evaluate", lambda *args: (0.5, next(accuracies)))
    assert run(*DIGITS, "--epochs", 5, "--target", target, "--out", tmp_path / "run") == 0
    metrics = read_metrics(tmp_path / "run")
    assert len(metrics["epochs"]) == epochs and metrics["target_epoch"] == target_epoch


def test_holdout_decides_and_the_test_set_is_seen_once(tmp_path, monkeypatch, capsys):
    sizes, accuracies = [], iter([70.0, 95.0, 80.0, 60.0, 91.0])

    def evaluate(model, loader, precision):
        sizes.append(len(loader.images))
        return 0.5, next(accuracies)

    monkeypatch.setattr(train, "evaluate", evaluate)
    assert run(*DIGITS, "--epochs", 4, "--holdout", 200, "--target", "none", "--out", tmp_path / "run") == 0
    assert sizes == [200] * 4 + [360]
    metrics = read_metrics(tmp_path / "run")
    assert metrics["best_holdout_accuracy"] == 95 and metrics["test_accuracy"] == 91
    assert epoch_of(tmp_path / "run" / "best.pt") == 2
    assert "Holdout set: Average loss: 0.5000, Accuracy: 190/200 (95.00%)" in capsys.readouterr().out


def test_holdout_is_a_stratified_partition_fixed_by_the_seed():
    digits = data.load_dataset("digits")
    ordered = digits._replace(train_labels=torch.arange(1437) % 10)
    numbered = ordered._replace(train_images=torch.arange(1437).view(-1, 1, 1, 1))
    rest, images, labels = data.hold_out(numbered, 500, seed=1)
    assert torch.equal(torch.cat([rest.train_images, images]).flatten().sort().values, torch.arange(1437))
    assert torch.equal(images.flatten() % 10, labels) and labels.bincount().tolist() == [50] * 10
    assert torch.equal(images, data.hold_out(numbered, 500, seed=1)[1])
    assert not torch.equal(images, data.hold_out(numbered, 500, seed=2)[1])


def test_target_100_does_not_stop_at_100(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda *args: (0.5, 100.0))
    assert run(*DIGITS, "--epochs", 3, "--target", 100, "--out", tmp_path / "run") == 0
    assert len(read_metrics(tmp_path / "run")["epochs"]) == 3


def test_best_checkpoint_is_of_the_best_epoch(tmp_path, monkeypatch):
    accuracies = iter([60.0, 80.0, 70.0, 80.0])
    monkeypatch.setattr(train, "evaluate", lambda *args: (0.5, next(accuracies)))
    assert run(*DIGITS, "--epochs", 4, "--out", tmp_path / "run") == 0
    best, last = (epoch_of(tmp_path / "run" / name) for name in ("best.pt", "last.pt"))
    assert (best, last) == (2, 4)
    assert read_metrics(tmp_path / "run")["best_test_accuracy"] == 80


# Files of a run


def test_full_run_as_a_user_sees_it(tmp_path):
    """By subprocess: the log lines, the files, and a checkpoint that gives the logged figures again."""
    command = [sys.executable, ROOT / "train.py", *DIGITS, "--deskew", "--margin", "3", "--epochs", "2", "--seed", "3"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stderr == ""  # no bar where there is no terminal
    [folder] = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-seed3", folder.name)
    assert sorted(path.name for path in folder.iterdir()) == sorted([".lock", *RUN_FILES])
    assert (folder / "log.txt").read_text() == result.stdout
    lines = re.findall(
        r"^Test set: Average loss: (\d+\.\d{4}), Accuracy: (\d+)/360 \((\d+\.\d\d)%\)$", result.stdout, re.M
    )
    assert len(lines) == 2
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")

    metrics = read_metrics(folder)
    assert metrics["dataset"] == "digits" and metrics["seed"] == 3 and metrics["device"] == "cpu"
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2]
    assert metrics["final_test_accuracy"] == metrics["epochs"][-1]["test_accuracy"] == 100 * int(lines[-1][1]) / 360
    epoch_seconds = sum(epoch["seconds"] for epoch in metrics["epochs"])
    assert 0 < epoch_seconds < metrics["train_seconds"] < metrics["total_seconds"]  # deskewing counts

    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    model = Net(**checkpoint["net"])
    model.load_state_dict(checkpoint["model"])
    digits = data.load_dataset("digits")
    images = data.prepare(digits.test_images, checkpoint["settings"])
    assert torch.equal(images, data.deskew(digits.test_images)[:, :, 3:25, 3:25])
    loader = data.Loader(images, digits.test_labels, 1000, shuffle=False)
    loss, accuracy = train.evaluate(model, loader, metrics["precision"])
    assert accuracy == metrics["final_test_accuracy"] and f"{loss:.4f}" == lines[-1][0]

    example = re.search("```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    example = example.replace("runs/NAME/best.pt", str(folder / "last.pt")).replace('"mnist"', '"digits"')
    exec(example, names := {})
    torch.testing.assert_close(names["logits"], train.predict(model, loader, "fp32")[:100])


def test_the_same_seed_gives_the_same_digits(tmp_path):
    def epochs(name, seed):
        assert run(*DIGITS, "--epochs", 2, "--seed", seed, "--out", tmp_path / name) == 0
        return [{**epoch, "seconds": 0} for epoch in read_metrics(tmp_path / name)["epochs"]]

    first = epochs("first", 5)
    assert first == epochs("second", 5)
    assert first != epochs("third", 6)


def test_two_runs_in_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record.time, "strftime", lambda _: "20260101-000000")
    folders = [record.create_run_folder(None, 0) for _ in range(3)]
    assert len(set(folders)) == 3


def test_a_run_is_never_overwritten(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text("old")
    assert run(*DIGITS, "--out", tmp_path) == 2
    assert "already holds a run (metrics.json)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert (tmp_path / "metrics.json").read_text() == "old"


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    forward, calls = Net.forward, []

    def poisoned(self, images):
        calls.append(1)
        return forward(self, images) * (math.nan if self.training and len(calls) > 50 else 1)

    monkeypatch.setattr(Net, "forward", poisoned)
    assert run(*DIGITS, "--epochs", 9, "--out", tmp_path / "run") == 2
    assert re.search(r"error: the loss is nan at step \d+, learning rate 0\.\d+", capsys.readouterr().err)
    metrics = read_metrics(tmp_path / "run")
    assert len(metrics["epochs"]) == epoch_of(tmp_path / "run" / "last.pt") == 2


def test_a_test_loss_that_is_not_finite_stops_too(tmp_path, monkeypatch, capsys):
    losses = iter([0.5, 0.4, math.inf])
    monkeypatch.setattr(train, "evaluate", lambda *args: (next(losses), 50.0))
    assert run(*DIGITS, "--epochs", 5, "--out", tmp_path / "run") == 2
    assert "error: the test loss is inf after epoch 3" in capsys.readouterr().err
    metrics = read_metrics(tmp_path / "run")
    assert len(metrics["epochs"]) == epoch_of(tmp_path / "run" / "last.pt") == 2


# Bad input: one line, exit code 2, nothing written


def assert_one_line(captured, *expected):
    """`captured` holds one line on stderr, with every string of `expected`."""
    assert captured.err.count("\n") == 1 and captured.err.startswith("train.py: error: "), captured.err
    for text in expected:
        assert text in captured.err, captured.err


def assert_refused(capsys, code, argv, *expected):
    """`argv` ends with `code` and one line on stderr that holds every string of `expected`."""
    assert run(*argv) == code
    assert_one_line(capsys.readouterr(), *expected)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--epoch", "3"], "--epoch"),
        (["--nonsense"], "--nonsense"),
        (["--epochs", "0"], "--epochs: found 0, expected a whole number from 1"),
        (["--epochs", "1.5"], "--epochs"),
        (["--batch-size", "-1"], "--batch-size"),
        (["--batch-size", "1438"], "expected at most 1437"),
        (["--lr", "nan"], "--lr: found nan"),
        (["--lr", "0"], "--lr"),
        (["--lr", "inf"], "--lr"),
        (["--target", "100.1"], "--target"),
        (["--target", "nan"], "--target"),
        (["--dropout", "1"], "--dropout"),
        (["--widths", "4", "4"], "--widths"),
        (["--seed", "-1"], "--seed"),
        (["--data-dir", "data"], "--data-dir"),
        (["--out", ""], "--out: found an empty path"),
        (["--holdout", "0"], "--holdout: found 0"),
        (["--holdout", "9"], "--holdout 9: expected 10 to 1427"),
        (["--holdout", "1437"], "--holdout 1437: expected 10 to 1427"),
        (["--recipe", "slow"], "invalid choice: 'slow' (choose from"),
    ],
)
def test_bad_flags(tmp_path, monkeypatch, capsys, argv, expected):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, 2, ["--dataset", "digits", *argv], expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_that_is_not_there(capsys):
    assert_refused(capsys, 2, [*DIGITS, "--device", "cuda"], "--device cuda", "finds only", "--device auto")


def test_out_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_refused(capsys, 2, [*DIGITS, "--out", out], f"--out {out} cannot be written")


def test_data_dir_that_is_not_there_or_a_file_or_incomplete(mnist_dir, tmp_path, capsys):
    assert_refused(capsys, 2, ["--data-dir", tmp_path / "no"], f"--data-dir {tmp_path / 'no'} does not exist")
    assert_refused(capsys, 2, ["--data-dir", mnist_dir / data.FILES[0]], "is not a directory")
    for name in (data.FILES[1], data.FILES[2]):
        (mnist_dir / name).unlink()
    assert_refused(capsys, 2, ["--data-dir", mnist_dir], f"lacks {data.FILES[1]}, {data.FILES[2]} ", "MNIST/raw")


def set_bytes(position, value):
    return lambda content: content[:position] + value + content[position + len(value) :]


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        (data.FILES[0], lambda content: content[:-1], "found only 54879 bytes of data, expected 54880"),
        (data.FILES[0], lambda content: content + b"x", "found more than 54880 bytes"),
        (data.FILES[0], lambda content: b"", "found magic number 0x, expected 0x00000803"),
        (data.FILES[0], lambda content: content[:9], "found a header of 9 bytes, expected 16"),
        (data.FILES[3], set_bytes(2, b"\x09"), "found magic number 0x00000901, expected 0x00000801"),
        (data.FILES[2], set_bytes(8, b"\0\0\0\x20"), "found images of 32x28, expected 28x28"),
        (data.FILES[0], set_bytes(4, b"\xff\xff\xff\xff"), "found only 54880 bytes of data, expected"),
        (data.FILES[1], set_bytes(4, bytes(4)), "found no items"),
        (data.FILES[1], set_bytes(20, b"\x0a"), "label 12 is 10, expected 0 to 9"),
        (data.FILES[3], lambda content: content[:7] + b"\x1d" + content[8:-1], "holds 29 labels"),
    ],
)
def test_damaged_idx_files(mnist_dir, tmp_path, capsys, name, damage, expected):
    path = mnist_dir / name
    path.write_bytes(damage(path.read_bytes()))
    assert_refused(capsys, 2, ["--data-dir", mnist_dir, "--out", tmp_path / "run"], str(path), expected)
    assert not (tmp_path / "run").exists()


def test_damaged_gzip(mnist_dir, capsys):
    path = mnist_dir / data.FILES[0]
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    for content in (packed[:-9], b"not gzip", packed[:100] + b"\0\0\0\0" + packed[104:]):
        Path(f"{path}.gz").write_bytes(content)
        assert_refused(capsys, 2, ["--data-dir", mnist_dir], f"{path}.gz")


def test_no_network_and_no_data(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "below" / "work"  # ../shared/mnist is not there either
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    expected = ["http://127.0.0.1:9/", "Connection refused", *data.FILES, "data/MNIST/raw", "--dataset digits"]
    assert_refused(capsys, 1, [], *expected)
    assert list(folder.iterdir()) == []


def test_two_first_downloads_at_once(mnist_dir, tmp_path, monkeypatch):
    """From a server on this machine, with the check sums of the small files."""
    served = tmp_path / "served"
    served.mkdir()
    resources = []
    for name in data.FILES:
        packed = gzip.compress((mnist_dir / name).read_bytes())
        (served / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *args: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=served))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = tmp_path / "below" / "work"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    both_miss_them = threading.Barrier(2, timeout=30)
    download = data.download
    monkeypatch.setattr(data, "download", lambda *args: (both_miss_them.wait(), download(*args))[1])
    with ThreadPoolExecutor(2) as pool:
        loaded = [future.result() for future in [pool.submit(data.load_dataset) for _ in range(2)]]
    server.shutdown()
    server.server_close()
    expected = data.load_idx_files(data.find_files(mnist_dir))
    assert expected.sha256 == loaded[0].sha256 == loaded[1].sha256
    assert sorted(path.name for path in (folder / "data/MNIST/raw").iterdir()) == sorted(data.FILES)


def test_torchvision_that_does_not_fit_torch(tmp_path, mnist_dir):
    (tmp_path / "torchvision").mkdir()
    message = "operator torchvision::nms does not exist"
    (tmp_path / "torchvision" / "__init__.py").write_text(f"raise RuntimeError({message!r})")
    command = [sys.executable, ROOT / "train.py", "--data-dir", mnist_dir]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    for text in (
        message,
        f"found torch {torch.__version__} and torchvision ",
        "pip install --upgrade --force-reinstall torch torchvision",
    ):
        assert text in result.stderr
