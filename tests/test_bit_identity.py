"""Short runs of the recipes compute what they computed before, to the last bit.

python -m tests.test_bit_identity    records what they compute; only for a change that is meant

Processors and versions of torch round differently. PORTABLE makes x86 processors round alike: it holds back all
instructions that some of them lack. A canary, a few training steps without any code of this project, tells whether the
record knows how this process rounds; if not, training losses must agree to 3%.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import train
from experiment.checkpoint import Checkpoint

RECORDED = Path(__file__).with_name("bit_identity.json")
PORTABLE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
RECIPES = ("default", "fast", "best", "tiny")  # one-epoch differs from default in flags below only
ARGS = ["--dataset", "digits", "--batch-size", "96", "--epochs", "3", "--lr", "0.1", "--seed", "11", "--no-plots"]
ARGS += ["--device", "cpu", "--threads", "1", "--target", "none"]


def sha256(tensors):
    parts = (name.encode() + tensor.contiguous().numpy().tobytes() for name, tensor in sorted(tensors.items()))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def canary():
    """Hash of what a few steps of training with the operations of the project's net leave behind."""
    torch.set_num_threads(1)
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
        grid = F.affine_grid(turn, (96, 1, 28, 28), align_corners=False)
        images = F.grid_sample(torch.rand(96, 1, 28, 28), grid, align_corners=False)
        logits = net(images.contiguous(memory_format=torch.channels_last))
        F.cross_entropy(logits, torch.randint(10, (96,)), label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()
    return sha256(net.state_dict())


def run(recipe, folder):
    """What a run computes: per epoch losses, accuracies and learning rate; a hash of the weights."""
    with mock.patch.object(train.TrainLoader, "FEWEST", 0):  # images do not repeat, as MNIST's do not
        assert train.main(["--recipe", recipe, *ARGS, "--out", str(folder)]) == 0
    epochs = json.loads((folder / "metrics.json").read_text())["epochs"]
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr")
    weights = Checkpoint.load(folder / "last.pt").net().state_dict()
    del weights["mean"], weights["std"]
    return {"epochs": [[epoch[name] for name in names] for epoch in epochs], "weights": sha256(weights)}


def record(file, recipes):
    """Add to `file` what the `recipes` compute in this process."""
    recorded = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        recorded[canary()] = {recipe: run(recipe, Path(folder, recipe)) for recipe in recipes}
    file.write_text(json.dumps(recorded, indent=1) + "\n")


def record_in(environment, file, *recipes):
    command = [sys.executable, "-m", "tests.test_bit_identity", file, *recipes]
    variables = {**os.environ, **environment}
    subprocess.run(command, cwd=RECORDED.parents[1], env=variables, stdout=subprocess.DEVNULL, check=True)


@pytest.mark.parametrize(
    ("environment", "recipes"),
    [({}, RECIPES), (PORTABLE, ("default", "fast", "tiny"))],  # which run all that `best` does, but faster
    ids=["as this processor rounds", "as all x86 processors can"],
)
def test_runs_give_the_bits_recorded(environment, recipes, tmp_path):
    record_in(environment, tmp_path / "bits.json", *recipes)
    [(rounding, runs)] = json.loads((tmp_path / "bits.json").read_text()).items()
    recorded = json.loads(RECORDED.read_text())
    if rounding in recorded:
        assert runs == {recipe: recorded[rounding][recipe] for recipe in recipes}
        return
    warnings.warn("no record of this rounding: training losses are compared to 3%", stacklevel=1)
    for recipe in recipes:
        elsewhere = next(iter(recorded.values()))[recipe]["epochs"]
        for here, there in zip(runs[recipe]["epochs"], elsewhere, strict=True):
            assert here[0] == pytest.approx(there[0], rel=0.03) and here[-1] == there[-1]


if __name__ == "__main__":
    if sys.argv[1:]:
        record(Path(sys.argv[1]), sys.argv[2:])
    else:
        for environment in ({}, PORTABLE):
            record_in(environment, RECORDED, *RECIPES)
