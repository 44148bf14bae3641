"""The trained weights are what their descriptions say, and damage is named."""

import importlib
import json
import sys
from types import ModuleType

import pytest
import torch
from conftest import ROOT, SMALL, run, same

from experiment.checkpoint import WEIGHTS, Checkpoint, load_net
from experiment.errors import CheckpointError
from study import export
from study.export import save_net

NAMES = ("default", "best", "tiny")


@pytest.mark.parametrize("name", NAMES)
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


def test_a_finished_run_becomes_weights_and_their_description(whole_run, saved):
    checkpoint = Checkpoint.load(whole_run / "last.pt")
    for file in (saved, whole_run / "last.pt"):
        net = load_net(file)
        assert not net.training and same(dict(net.state_dict()), dict(checkpoint.net().state_dict()))
    about = json.loads(saved.with_suffix(".json").read_text())
    assert about["correct"] == checkpoint.history.final.evaluation.correct
    assert "--widths 4 4 4 4 4" in about["command"] and "--seed 0" in about["command"]


@pytest.mark.parametrize("flags", [("--holdout", 50), ("--target", 1)])
def test_a_run_that_is_not_whole_is_refused(flags, tmp_path):
    assert run(*SMALL, "--dataset", "digits", "--epochs", 2, *flags, "--out", tmp_path) == 0
    with pytest.raises(CheckpointError, match="expected a finished run without --holdout"):
        save_net(tmp_path, tmp_path)


def replace(file, old, new):
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda file: file.write_bytes(file.read_bytes() + b"x"), "its SHA-256 is not the one in default.json"),
        (lambda file: file.unlink(), "No such file"),
        (lambda file: file.with_suffix(".json").unlink(), "No such file"),
        (lambda file: file.with_suffix(".json").write_text("{}"), "sha256"),
        (lambda file: replace(file.with_suffix(".json"), '"separable": false', '"separable": true'), "state_dict"),
        (lambda file: replace(file.with_suffix(".json"), "widths", "width"), "unexpected keyword"),
    ],
)
def test_damaged_weights_are_one_line(saved, damage, expected):
    damage(saved)
    with pytest.raises(CheckpointError, match=expected) as raised:
        load_net(saved)
    assert str(raised.value).startswith(f"{saved} cannot be read") and "\n" not in str(raised.value)
