"""Checkpoints: what they hold, which files are refused, and --evaluate."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import DIGITS, RunsCode, assert_refused, read_metrics, run, same

from data import TrainLoader
from experiment.checkpoint import FORMAT, WEIGHTS, Checkpoint, load_net
from experiment.datasets import load_digits_28x28
from experiment.errors import CheckpointError
from experiment.history import History
from experiment.settings import RECIPES, Recipe, Settings
from model import Net, count_parameters
from train import make_optimizer, make_scheduler, predict, score


def test_a_checkpoint_holds_the_random_state_of_the_cpu_and_of_another_device(tmp_path, monkeypatch):
    """For which "meta" stands."""
    states = []
    device = SimpleNamespace(get_rng_state=lambda: torch.ones(1).byte(), set_rng_state=states.append)
    monkeypatch.setattr(torch, "get_device_module", lambda name: {"meta": device}[name])
    net = Net(widths=(4,) * 5)
    optimizer = make_optimizer(net, Recipe())
    parts = (optimizer, make_scheduler(optimizer, Recipe(), steps=20), TrainLoader(None, torch.zeros(3), 1))
    run = {"settings": Settings(Recipe(widths=(4,) * 5)), "processes": 2, "dataset": "digits", "sha256": "0"}
    run |= {"history": History("test"), "log_bytes": 7}
    checkpoint, expected = Checkpoint.capture(net.to("meta"), *parts, **run), torch.rand(9)
    replace(checkpoint, model=Net(widths=(4,) * 5).state_dict()).save(tmp_path / "last.pt")
    loaded = Checkpoint.load(tmp_path / "last.pt")
    assert all(same(getattr(loaded, name), value) for name, value in run.items())
    loaded.restore(Net(widths=(4,) * 5), *parts)
    assert torch.equal(torch.rand(9), expected) and same(states, [torch.ones(1).byte()])


def test_content_that_does_not_fit_is_refused(whole_run, tmp_path):
    """test_faults.py damages more of it."""
    path, trap = tmp_path / "last.pt", tmp_path / "trap"
    for change, expected in (
        (lambda content: content.update(format=FORMAT - 1), f"found format {FORMAT - 1}, expected {FORMAT}"),
        (lambda content: content["model"].update(mean=torch.zeros(()).double()), "weights"),
        (lambda content: content["hardness"][:1].fill_(math.inf), "hardness"),
        (lambda content: content["settings"]["recipe"].update(lr=-1.0), "--lr: found -1.0"),
        (lambda content: content.update(history=RunsCode(trap)), "cannot be read"),
    ):
        content = torch.load(whole_run / "last.pt", weights_only=True)
        change(content)
        torch.save(content, path)
        with pytest.raises(CheckpointError) as refused:
            Checkpoint.load(path)
        assert str(path) in str(refused.value) and expected in str(refused.value)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap itself works


def test_evaluate_gives_the_logged_figures_and_writes_nothing(whole_run, capsys):
    def state():
        return {path: path.stat().st_mtime_ns for path in [whole_run, *whole_run.iterdir()]}

    before, path = state(), whole_run / "last.pt"
    assert run("--evaluate", path, "--device", "auto", "--precision", "fp32", "--epochs", 8) == 0
    output, metrics = capsys.readouterr().out, read_metrics(whole_run)
    assert f"Net: {path}, epoch 8 of a run on digits\n" in output
    assert re.search(r"^Test set: .*\n", output, re.M)[0] in (whole_run / "log.txt").read_text()
    classes = re.findall(r"^Class (\d): (\d+)/(\d+) \((\d+\.\d\d)%\)$", output, re.M)
    labels, hits, counts, percents = ([*map(float, column)] for column in zip(*classes))
    assert labels == [*range(10)] and percents == [round(100 * hit / count, 2) for hit, count in zip(hits, counts)]
    assert sum(counts) == 360 and 100 * sum(hits) / 360 == metrics["final_test_accuracy"]
    assert_refused(capsys, ["--evaluate", path, "--margin", 3], "--margin 3: contradicts the run's --margin 2; drop it")
    assert state() == before


def test_evaluate_takes_what_is_here_or_published_weights(whole_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    best, tiny, test = whole_run / "best.pt", WEIGHTS / "tiny.pth", load_digits_28x28().test
    Path("best").mkdir()
    for file, here in ((best, "best"), (WEIGHTS / "best.pth", "default"), (WEIGHTS / "best.json", "default.json")):
        shutil.copy(file, here)
    files = {whole_run: best, best: best, tiny: tiny, "tiny": tiny, "best": "best/best.pt", "default": "default"}
    for source, file in files.items():
        assert run("--evaluate", source, *DIGITS) == 0
        expected = score(predict(load_net(file), test.images, "fp32"), test.labels).line("test")
        assert re.match(rf"Net: {file}, .*\n.*\n{re.escape(expected)}\n", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["default", "tiny", "best"])
def test_published_weights_get_as_many_test_images_right_as_they_say(name, mnist_test):
    about, net = json.loads((WEIGHTS / f"{name}.json").read_text()), load_net(WEIGHTS / f"{name}.pth")
    assert about["network"] == json.loads(json.dumps(RECIPES[name].network))
    assert count_parameters(net) == about["parameters"] and (WEIGHTS / f"{name}.pth").stat().st_size < 100_000
    if name != "best":  # test_demo.py counts its answers
        again = score(predict(net, mnist_test.images, "fp32"), mnist_test.labels)
        assert (again.correct, again.count) == (about["correct"], about["test_images"])
