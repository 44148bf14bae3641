"""Trained networks by torch.hub: torch.hub.load("OWNER/REPOSITORY", "best"); weights/README.md says what they can do.

Each is a model.Net in evaluation mode: images (N, 1, 28, 28), uint8 or float in 0..1, to logits (N, 10).
"""

import importlib.util
import json
import pathlib
import sys

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
    folder, module = pathlib.Path(__file__).parent, sys.modules.get("mnist_model")
    if module is None:  # by its path, since the program that loads it may have another module of the name "model"
        spec = importlib.util.spec_from_file_location("mnist_model", folder / "model.py")
        module = sys.modules["mnist_model"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    about = json.loads((folder / "weights" / f"{name}.json").read_text(encoding="utf-8"))
    net = module.Net(**about["network"])
    net.load_state_dict(torch.load(folder / "weights" / f"{name}.pth", weights_only=True))
    return net.eval()
