"""The published recipes are the published ones: their parameter counts, and one epoch of each by either loader."""

import json

import pytest
import torch

import published
from model import count_parameters

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_parameter_counts_and_logits(name):
    model = published.PUBLISHED[name]["net"]()
    assert count_parameters(model) == int(name.removeprefix("net-"))
    assert model.eval()(torch.randn(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize("loader", ["torchvision", "fast"])
@pytest.mark.parametrize("name", published.PUBLISHED)
def test_a_short_run(name, loader, mnist_dir, tmp_path, monkeypatch):
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.parent.mkdir(parents=True)
    mnist_dir.rename(raw)
    config = published.PUBLISHED[name]
    monkeypatch.setitem(config, "epochs", 2)
    monkeypatch.setitem(config, "held_out", 10 if config["held_out"] else 0)
    argv = [name, "--loader", loader, "--data-dir", str(tmp_path / "root"), "--out", str(tmp_path / "run")]
    assert published.main(argv) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(metrics["epochs"]) == 2 and metrics["params"] == int(name.removeprefix("net-"))
