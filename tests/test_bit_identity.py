"""Short runs of every recipe give the numbers that they gave before, to the last bit.

python -m tests.test_bit_identity    records what this machine computes; only for a change that is meant

Processors and versions of torch round differently. A canary, a few training steps without any code of this project,
tells whether this machine rounds as one on which the numbers were recorded; if not, training losses must agree to 3%.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import train
from experiment.checkpoint import Checkpoint
from experiment.settings import RECIPES

RECORDED = Path(__file__).with_name("bit_identity.json")
ARGS = ["--dataset", "digits", "--batch-size", "96", "--epochs", "3", "--lr", "0.1", "--seed", "11"]
ARGS += ["--device", "cpu", "--target", "none"]


def sha256(tensors):
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def canary():
    """Hash of what a few steps of training with the operations of the project's net leave behind."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.SiLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.Conv2d(16, 24, 1, bias=False)),
        *(nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2), nn.BatchNorm2d(24), nn.SiLU(), nn.Conv2d(24, 22, 3, bias=False)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.05), nn.Linear(22, 10)),
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), 0.5, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)
    for _ in range(8):
        turn = torch.randn(96, 2, 3).div_(9) + torch.eye(2, 3)
        images = F.grid_sample(
            torch.rand(96, 1, 28, 28), F.affine_grid(turn, (96, 1, 28, 28), False), align_corners=False
        )
        logits = net(images.contiguous(memory_format=torch.channels_last))
        F.cross_entropy(logits, torch.randint(10, (96,)), label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()
    return sha256(net.state_dict())


def measure(folder):
    """What the run in `folder` computed: per epoch losses, accuracies and learning rate; a hash of the weights."""
    epochs = json.loads((folder / "metrics.json").read_text())["epochs"]
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr")
    weights = Checkpoint.load(folder / "last.pt").model
    weights = {name: value for name, value in weights.items() if name not in ("mean", "std")}
    return {"epochs": [[epoch[name] for name in names] for epoch in epochs], "weights": sha256(weights)}


def run(recipe, folder):
    assert train.main(["--recipe", recipe, *ARGS, "--out", str(folder)]) == 0
    return measure(folder)


def assert_as_recorded(recipe, measured):
    recorded, rounding = json.loads(RECORDED.read_text()), canary()
    if rounding in recorded:
        assert measured == recorded[rounding][recipe]
    else:
        elsewhere = next(iter(recorded.values()))[recipe]
        for here, there in zip(measured["epochs"], elsewhere["epochs"], strict=True):
            assert here[0] == pytest.approx(there[0], rel=0.03) and here[-1] == there[-1]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_gives_the_recorded_bits(recipe, tmp_path):
    assert_as_recorded(recipe, run(recipe, tmp_path / "run"))


def test_a_run_resumed_after_every_epoch_gives_the_recorded_bits(tmp_path):
    def interrupt(history):
        raise KeyboardInterrupt

    assert train.main([*ARGS, "--out", str(tmp_path / "run")], on_epoch=interrupt) == 130
    assert train.main(["--resume", str(tmp_path / "run")], on_epoch=interrupt) == 130
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    assert_as_recorded("default", measure(tmp_path / "run"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
        recorded[canary()] = {recipe: run(recipe, Path(folder, recipe)) for recipe in RECIPES}
        RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
