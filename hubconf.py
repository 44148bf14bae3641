"""Trained networks by torch.hub: torch.hub.load("owner/repository", "best"); weights/README.md says what they can do.

Each is a model.Net in evaluation mode: images (N, 1, 28, 28), uint8 or float in 0..1, to logits (N, 10).
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch

dependencies = ["torch"]


def default():
    """Trains in seconds."""
    return _load("default")


def best():
    """The highest accuracy."""
    return _load("best")


def tiny():
    """The fewest parameters."""
    return _load("tiny")


def _load(name):
    # By its path, since the program that loads it may have another module of the name "model".
    if "mnist_model" not in sys.modules:
        spec = importlib.util.spec_from_file_location("mnist_model", Path(__file__).with_name("model.py"))
        sys.modules["mnist_model"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["mnist_model"])
    file = Path(__file__).parent / "weights" / f"{name}.pth"
    net = sys.modules["mnist_model"].Net(**json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["network"])
    net.load_state_dict(torch.load(file, weights_only=True))
    return net.eval()
