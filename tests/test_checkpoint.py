"""Checkpoints: what they hold, which files are refused, and --evaluate."""

import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import RunsCode, assert_refused, read_metrics, run, same

from data import RandomAffine, TrainLoader
from experiment.checkpoint import FORMAT, Checkpoint
from experiment.datasets import load_digits_28x28
from experiment.errors import CheckpointError
from experiment.history import Epoch, History, Score
from experiment.settings import Recipe, Settings
from model import Net
from train import make_optimizer, make_scheduler

RECIPE = Recipe(widths=(4, 4, 4, 4, 4), dropout=0.5)


def make_parts(seed):
    torch.manual_seed(seed)
    model = Net(**RECIPE.network).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, RECIPE)
    loader = TrainLoader(torch.zeros(32, 1, 28, 28, dtype=torch.uint8), torch.arange(32) % 10, 32)
    return model, optimizer, make_scheduler(optimizer, RECIPE, steps=20), loader


def train_a_step(model, optimizer, scheduler, loader):
    images, (_, labels) = RandomAffine(8, 0.1, 0.1, 4)(torch.rand(32, 1, 28, 28)), next(iter(loader))
    losses = F.cross_entropy(model(images), labels, reduction="none")
    losses.mean().backward()
    loader.record(losses.detach())
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()


def test_restored_parts_train_on_to_the_same_bits(tmp_path):
    parts, others, history = make_parts(seed=0), make_parts(seed=1), History("test")
    curve = [{"step": 1, "lr": 0.1, "loss": 2.0}]
    history.epochs.append(Epoch(1, 60, 0.1, 2.0, 30.0, Score(1.5, 4, 10), 0.5, curve))
    run = {"settings": Settings(RECIPE), "dataset": "digits", "sha256": "0", "history": history, "log_bytes": 7}
    train_a_step(*parts)
    Checkpoint.capture(*parts, **run).save(tmp_path / "last.pt")
    train_a_step(*parts)
    expected = Checkpoint.capture(*parts, **run)
    for _ in range(2):
        train_a_step(*others)
    loaded = Checkpoint.load(tmp_path / "last.pt")
    assert all(same(getattr(loaded, name), value) for name, value in run.items())
    loaded.restore(*others)
    train_a_step(*others)
    assert same(Checkpoint.capture(*others, **run), expected)


def test_the_net_of_a_checkpoint_gives_the_logged_accuracy(whole_run):
    checkpoint, test = Checkpoint.load(whole_run / "best.pt"), load_digits_28x28().test
    net = checkpoint.net()
    assert not net.training
    with torch.inference_mode():
        correct = (net(test.images).argmax(1) == test.labels).sum()
    assert correct == checkpoint.history.final.evaluation.correct == checkpoint.history.best.evaluation.correct


def load_plainly(path):
    return torch.load(path, weights_only=True)


CHANGES = {  # of the content of a checkpoint, and what is then said of it
    "older format": (
        lambda content: content.update(format=FORMAT - 1),
        f"found format {FORMAT - 1}, expected {FORMAT}",
    ),
    "no format": (lambda content: content.pop("format"), f"found format None, expected {FORMAT}"),
    "another net": (lambda content: content.update(model=Net(widths=(4, 4, 4, 4, 5)).state_dict()), "weights"),
    "fewer weights": (lambda content: content["model"].pop("classifier.bias"), "weights"),
    "more weights": (lambda content: content["model"].update(more=torch.zeros(1)), "weights"),
    "double weights": (lambda content: content["model"].update(mean=torch.zeros(()).double()), "weights"),
    "no hardness": (lambda content: content.update(hardness=None), "hardness"),
    "hardness that is not finite": (lambda content: content["hardness"].fill_(math.nan), "hardness"),
    "huge net": (lambda content: content["settings"]["recipe"].update(widths=(10**9,) * 5), "--widths: found 10"),
    "wrong setting": (lambda content: content["settings"]["recipe"].update(lr=-1.0), "--lr: found -1.0"),
    "unknown setting": (lambda content: content["settings"].update(unknown=1), "unknown"),
    "no random state": (lambda content: content.pop("random"), "random"),
    "no epochs": (lambda content: content["history"].pop("epochs"), "epochs"),
    "wrong size of the log": (lambda content: content.update(log_bytes="none"), ""),
}


@pytest.mark.parametrize("name", CHANGES)
def test_content_that_does_not_fit_is_refused(whole_run, tmp_path, name):
    content, path, (change, expected) = load_plainly(whole_run / "last.pt"), tmp_path / "last.pt", CHANGES[name]
    change(content)
    torch.save(content, path)
    with pytest.raises(CheckpointError) as refused:
        Checkpoint.load(path)
    assert str(path) in str(refused.value) and expected in str(refused.value)


@pytest.mark.parametrize("content", [7, [1], {}, torch.zeros(3)])
def test_a_file_of_torch_that_is_no_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="last.pt"):
        Checkpoint.load(tmp_path / "last.pt")


def test_a_flipped_bit_in_the_weights_is_seen(whole_run, tmp_path):
    """torch.load alone takes them as they come."""
    path = tmp_path / "last.pt"
    content = bytearray((whole_run / "last.pt").read_bytes())
    content[content.index(load_plainly(whole_run / "last.pt")["model"]["classifier.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    assert not same(load_plainly(path)["model"], load_plainly(whole_run / "last.pt")["model"])
    with pytest.raises(CheckpointError, match="bad checksum"):
        Checkpoint.load(path)


def test_code_in_a_checkpoint_is_refused_and_never_runs(whole_run, tmp_path, capsys):
    content, path, trap = load_plainly(whole_run / "last.pt"), tmp_path / "last.pt", tmp_path / "trap"
    torch.save({**content, "history": RunsCode(trap)}, path)
    for argv in (["--resume", tmp_path], ["--evaluate", path]):
        assert_refused(capsys, argv, f"{path} cannot be loaded")
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap itself works


def test_evaluate_gives_the_logged_figures_and_writes_nothing(whole_run, capsys):
    def state():
        return {path: path.stat().st_mtime_ns for path in [whole_run, *whole_run.iterdir()]}

    before = state()
    assert run("--evaluate", whole_run / "last.pt") == 0
    output, metrics = capsys.readouterr().out, read_metrics(whole_run)
    assert f"Checkpoint: {whole_run / 'last.pt'}, epoch 8 of a run on digits\n" in output
    assert re.search(r"^Test set: .*\n", output, re.M)[0] in (whole_run / "log.txt").read_text()
    classes = re.findall(r"^Class (\d): (\d+)/(\d+) \((\d+\.\d\d)%\)$", output, re.M)
    assert [label for label, *_ in classes] == list("0123456789")
    assert all(float(percent) == round(100 * int(hits) / int(count), 2) for _, hits, count, percent in classes)
    assert sum(int(count) for _, _, count, _ in classes) == 360
    assert 100 * sum(int(hits) for _, hits, _, _ in classes) / 360 == metrics["final_test_accuracy"]
    assert state() == before


def test_evaluate_on_another_data_set(whole_run, mnist_dir, tmp_path, capsys):
    """The run's own folder of data does not stand in the way."""
    assert run("--evaluate", whole_run / "last.pt", "--dataset", "mnist", "--data-dir", mnist_dir) == 0
    assert "Data: small (MNIST format), 30 test images" in capsys.readouterr().out
    checkpoint = Checkpoint.load(whole_run / "last.pt")
    settings = replace(checkpoint.settings, dataset="mnist", data_dir=str(tmp_path / "gone"))
    replace(checkpoint, settings=settings).save(tmp_path / "last.pt")
    assert run("--evaluate", tmp_path / "last.pt", "--dataset", "digits") == 0
    assert "Data: digits, 360 test images" in capsys.readouterr().out


def test_evaluate_takes_a_machine_but_no_settings_of_its_own(whole_run, tmp_path, capsys):
    path = whole_run / "last.pt"
    assert run("--evaluate", path, "--device", "auto", "--precision", "fp32", "--epochs", 8) == 0
    capsys.readouterr()
    contradiction = "--widths 4 4 4 4 5: contradicts the run's --widths 4 4 4 4 4; drop it"
    assert_refused(capsys, ["--evaluate", path, "--widths", 4, 4, 4, 4, 5], contradiction)


@pytest.mark.parametrize("name", ["none.pt", ".", "file", "a" * 300])
def test_evaluate_of_what_is_no_checkpoint(tmp_path, capsys, name):
    (tmp_path / "file").touch()
    assert_refused(capsys, ["--evaluate", tmp_path / name], str(tmp_path / name))
