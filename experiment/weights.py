"""Trained nets: those of weights/, and those of your runs."""

import hashlib
import io
import json
import os
from pathlib import Path

import torch

from experiment.checkpoint import Checkpoint
from experiment.errors import CheckpointError, reading
from model import Net

WEIGHTS = Path(__file__).parents[1] / "weights"


def find_net(source):
    """The file of a net that `source` names: it, best.pt in the folder of a run, or one of WEIGHTS, such as best."""
    if not os.path.exists(source) and (named := WEIGHTS / f"{source}.pth").exists():
        return named
    return Path(source, "best.pt") if os.path.isdir(source) else Path(source)


def load_net(source):
    """The Net in evaluation mode of trained weights, of a checkpoint, or of a run, as find_net finds them.

    Its attribute `temperature` is what its logits are to be divided by: of a run, that of its recipe's weights.
    """
    file = find_net(source)
    if file.suffix == ".pt":
        checkpoint = Checkpoint.load(file)
        net, own = checkpoint.net(), WEIGHTS / f"{checkpoint.settings.recipe.name}.json"
        net.temperature = read_json(own if own.exists() else WEIGHTS / "default.json")["temperature"]
        return net
    names = ", ".join(sorted(path.stem for path in WEIGHTS.glob("*.pth")))
    hint = f"expected {names}, a run's folder or best.pt, or a NAME.pth beside its NAME.json"
    with reading(file, hint, CheckpointError):
        about, content = read_json(file.with_suffix(".json")), file.read_bytes()
        if hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise ValueError(f"its SHA-256 is not the one in {file.with_suffix('.json').name}")
        net = Net(**about["network"])
        net.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
        net.temperature = about["temperature"]
    return net.eval()


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))
