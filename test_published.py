"""The published recipes are what published.py says of them: parameter counts, schedule, augmentation, split."""

import gzip
import json
import math

import pytest
import torch
from torchvision.transforms import RandomAffine

import benchmark
import published
import train
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
    trained = []
    monkeypatch.setattr(published, "fit", lambda *args: trained.append(args) or train.fit(*args))
    assert published.main(argv) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(metrics["epochs"]) == 2 and metrics["params"] == int(name.removeprefix("net-"))
    benchmark.add_run(benchmark.new_result(name, loader), metrics, 1.0)  # finds in them all that it wants

    [(_, optimizer, scheduler, train_loader, *_)] = trained
    assert len(train_loader.images) == 70 - config["held_out"]
    assert len(train_loader) == math.ceil(len(train_loader.images) / config["batch_size"])
    if config["one_cycle"]:
        assert scheduler.total_steps == 2 * len(train_loader)
        assert optimizer.param_groups[0]["max_lr"] == config["one_cycle"]["max_lr"]
        assert metrics["epochs"][1]["lr"] < metrics["epochs"][0]["lr"]
    else:
        assert metrics["epochs"][1]["lr"] == metrics["epochs"][0]["lr"] == optimizer.defaults["lr"]
    if loader == "fast":
        assert (train_loader.augment is not None) == bool(config["affine"])
    else:
        steps = train_loader.dataset.dataset.transform.transforms
        assert any(isinstance(step, RandomAffine) for step in steps) == bool(config["affine"])


def test_a_data_folder_that_torchvision_cannot_read_leaves_no_run(mnist_dir, tmp_path, capsys):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in mnist_dir.iterdir():
        (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    for folder in (mnist_dir, tmp_path):
        argv = ["net-9720", "--data-dir", str(folder), "--out", str(tmp_path / "run")]
        assert published.main(argv) == 2
        captured = capsys.readouterr()
        assert "expected them unpacked in MNIST/raw" in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
