"""The trained weights are what their descriptions say, and damage is named."""

import json

import pytest
import torch
from conftest import ROOT, run, same

from data import Loader
from experiment.checkpoint import WEIGHTS, Checkpoint, load_net
from experiment.errors import CheckpointError
from experiment.settings import RECIPES
from model import count_parameters
from study.release import main, save_net
from train import predict

NAMES = ("default", "best", "tiny")


@pytest.mark.parametrize("name", NAMES)
def test_weights_get_as_many_test_images_right_as_they_say(name, mnist_test):
    about, net = json.loads((WEIGHTS / f"{name}.json").read_text()), load_net(WEIGHTS / f"{name}.pth")
    answers = predict(net, Loader(*mnist_test, 1000), "fp32").argmax(1)
    assert ((answers == mnist_test.labels).sum(), len(answers)) == (about["correct"], about["test_images"])
    assert about["network"] == json.loads(json.dumps(RECIPES[name].network))
    assert count_parameters(net) == about["parameters"]
    assert (WEIGHTS / f"{name}.pth").stat().st_size < 100_000


@pytest.mark.parametrize("name", NAMES)
def test_torch_hub_gives_them(name):
    net = torch.hub.load(str(ROOT), name, source="local", verbose=False)
    assert not net.training and same(net.state_dict(), load_net(WEIGHTS / f"{name}.pth").state_dict())


@pytest.fixture
def saved(whole_run, tmp_path):
    return save_net(whole_run, tmp_path)


def test_the_weights_of_a_run_are_those_of_its_last_epoch(whole_run, saved):
    assert saved.name == "default.pth"
    checkpoint = Checkpoint.load(whole_run / "last.pt")
    assert same(dict(load_net(saved).state_dict()), dict(checkpoint.net().state_dict()))
    assert same(load_net(whole_run / "last.pt").state_dict(), checkpoint.net().state_dict())
    about = json.loads(saved.with_suffix(".json").read_text())
    assert about["correct"] == checkpoint.history.final.evaluation.correct
    assert "--widths 4 4 4 4 4" in about["command"] and "--seed 0" in about["command"]


def test_a_run_that_is_not_whole_is_refused(tmp_path, capsys):
    flags = ["--dataset", "digits", "--device", "cpu", "--widths", 4, 4, 4, 4, 4, "--epochs", 2, "--no-plots"]
    assert run(*flags, "--target", "none", "--holdout", 50, "--out", tmp_path / "holdout") == 0
    assert run(*flags, "--target", 1, "--out", tmp_path / "stopped") == 0
    for name in ("holdout", "stopped"):
        capsys.readouterr()
        assert main([str(tmp_path / name)]) == 2
        assert "expected a finished run without --holdout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"), "its SHA-256 is not the one in default.json"),
        (lambda file: file.unlink(), "No such file"),
        (lambda file: file.with_suffix(".json").unlink(), "No such file"),
        (lambda file: file.with_suffix(".json").write_text("{}"), "sha256"),
        (lambda file: replace(file, "network", {"widths": [4, 4, 4, 4, 8]}), "size mismatch|loading state_dict"),
        (lambda file: replace(file, "network", {"width": 4}), "unexpected keyword"),
    ],
)
def test_damaged_weights_are_one_line(saved, damage, expected):
    damage(saved)
    with pytest.raises(CheckpointError, match=expected) as raised:
        load_net(saved)
    assert str(raised.value).startswith(f"{saved} cannot be loaded") and "\n" not in str(raised.value)


def replace(file, name, value):
    about = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps({**about, name: value}))
