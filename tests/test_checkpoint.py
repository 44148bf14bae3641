"""Checkpoints and weights: what they hold, which files are refused, --evaluate, and export."""

import importlib
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import DIGITS, ROOT, SMALL, RunsCode, assert_one_line, assert_refused, optional, read_metrics, run, same

from data import TrainLoader
from experiment.checkpoint import FORMAT, Checkpoint
from experiment.datasets import load_data
from experiment.errors import CheckpointError
from experiment.settings import RECIPES, Recipe
from experiment.sources import load_digits_28x28
from experiment.weights import WEIGHTS, load_net
from model import Net, count_parameters
from study import export
from study.export import save_net
from train import make_optimizer, make_scheduler, predict, score


def test_a_checkpoint_holds_the_random_state_of_another_device_too(monkeypatch):
    """For which "meta" stands."""
    states = []
    device = SimpleNamespace(get_rng_state=lambda: torch.ones(1).byte(), set_rng_state=states.append)
    monkeypatch.setattr(torch, "get_device_module", lambda name: {"meta": device}[name])
    optimizer = make_optimizer(Net(), Recipe())
    parts = (optimizer, make_scheduler(optimizer, Recipe(), steps=20), TrainLoader(None, torch.zeros(3), 1))
    run = dict.fromkeys(("settings", "processes", "dataset", "sha256", "history", "log_bytes"))
    checkpoint, expected = Checkpoint.capture(Net().to("meta"), *parts, **run), torch.rand(9)
    replace(checkpoint, model=Net().state_dict()).restore(Net(), *parts)
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
    test = load_digits_28x28().test
    shutil.copytree(whole_run, "best")
    shutil.copy(WEIGHTS / "tiny.pth", "default")
    shutil.copy(WEIGHTS / "tiny.json", "default.json")
    for source, file in {"tiny": WEIGHTS / "tiny.pth", "best": "best/best.pt", "default": "default"}.items():
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


@pytest.mark.parametrize("name", ["default", "best", "tiny"])
def test_torch_hub_gives_them_whatever_else_is_called_model(name, monkeypatch, tmp_path):
    (tmp_path / "model.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.syspath_prepend(tmp_path)
    images, expected = torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8), load_net(WEIGHTS / f"{name}.pth")
    for own in (ModuleType("model"), None):  # imported by the user's program, and still to be imported
        monkeypatch.setitem(sys.modules, "model", own)
        if own is None:
            del sys.modules["model"]
        net = torch.hub.load(str(ROOT), name, source="local", verbose=False)
        assert sys.modules.get("model") is own and torch.equal(net(images), expected(images))
    with pytest.raises(RuntimeError, match="not this one"):
        importlib.import_module("model")


@pytest.fixture
def saved(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "save_net", lambda run: save_net(run, tmp_path))
    assert export.main([str(whole_run)]) == 0
    return tmp_path / "default.pth"


def test_a_finished_run_becomes_weights_and_their_description_and_another_is_refused(whole_run, saved, tmp_path):
    checkpoint = Checkpoint.load(whole_run / "last.pt")
    for file in (saved, whole_run / "last.pt"):
        net = load_net(file)
        assert not net.training and same(dict(net.state_dict()), dict(checkpoint.net().state_dict()))
    about = json.loads(saved.with_suffix(".json").read_text())
    assert about["correct"] == checkpoint.history.final.evaluation.correct
    assert "--widths 4 4 4 4 4" in about["command"] and "--seed 0" in about["command"]
    for flags in (("--holdout", 50), ("--target", 1)):
        assert run(*SMALL, "--dataset", "digits", "--epochs", 2, *flags, "--out", tmp_path / flags[0]) == 0
        with pytest.raises(CheckpointError, match="expected a finished run without --holdout"):
            save_net(tmp_path / flags[0], tmp_path)


@pytest.mark.parametrize(
    ("suffix", "damage", "expected"),
    [
        (".pth", lambda content: content + b"x", "its SHA-256 is not the one in default.json"),
        (".pth", None, "No such file"),
        (".json", None, "No such file"),
        (".json", lambda content: b"{}", "sha256"),
        (".json", lambda content: content.replace(b'"separable": false', b'"separable": true'), "state_dict"),
        (".json", lambda content: content.replace(b"widths", b"width"), "unexpected keyword"),
    ],
)
def test_damaged_weights_are_one_line(saved, suffix, damage, expected):
    content = (file := saved.with_suffix(suffix)).read_bytes()
    file.write_bytes(damage(content)) if damage else file.unlink()
    with pytest.raises(CheckpointError, match=expected) as raised:
        load_net(saved)
    assert str(raised.value).startswith(f"{saved} cannot be read") and "\n" not in str(raised.value)


def test_an_onnx_file_is_whole_takes_any_batch_names_no_path_and_answers_as_its_network(whole_run, tmp_path, capsys):
    runtime, *_ = map(optional, ("onnxruntime", "onnx", "onnxscript"))
    out, wrong, net = tmp_path / "net.onnx", tmp_path / "net.pt", load_net(whole_run / "best.pt")
    with pytest.raises(SystemExit, match="2"):
        export.main([str(whole_run / "best.pt"), "--out", str(wrong)])  # which might be a checkpoint
    assert_one_line(capsys.readouterr(), f"found {wrong}, expected a name that ends in .onnx", name="export.py")
    assert export.main([str(whole_run / "best.pt"), "--out", str(out)]) == 0
    content = out.read_bytes()
    assert [*tmp_path.iterdir()] == [out] and b".py" not in content and str(ROOT).encode() not in content
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for count in (1, 7):
        images = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8)
        found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        torch.testing.assert_close(found, predict(net, images, "fp32"), atol=1e-4, rtol=0)


def test_the_temperature_is_that_of_logits_whose_probabilities_are_known(tmp_path, monkeypatch):
    assert run(*DIGITS, "--epochs", 1, "--recipe", "tiny", "--holdout", 700, "--out", tmp_path / "run") == 0
    labels = load_data(Checkpoint.load(tmp_path / "run" / "last.pt").settings).holdout.labels
    fair = 4 * torch.nn.functional.one_hot(labels, 10) + torch.zeros(700, 10)
    wrong = torch.randperm(700)[: round(700 * 9 / (9 + math.exp(4)))]  # as many as such logits say
    fair[wrong] = fair[wrong].roll(1, 1)
    monkeypatch.setattr(export, "predict", lambda net, images, precision: 0.6 * fair)
    (tmp_path / "tiny.json").write_text('{"correct": 1}')
    file = export.fit_temperature(tmp_path / "run", tmp_path)
    about = json.loads(file.read_text())
    assert about["correct"] == 1 and about["temperature"] == pytest.approx(0.6, abs=0.02)
