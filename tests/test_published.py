"""The published recipes are what published.py says of them: parameter counts, schedule, augmentation, split."""

import dataclasses
import math

import pytest
import torch
from conftest import assert_one_line, read_metrics
from torchvision.transforms import RandomAffine

from experiment.datasets import load_mnist
from experiment.errors import DataError
from model import MEAN, STD, count_parameters
from study import train_published
from study.published import PUBLISHED
from study.results import add_run
from study.train_published import main, make_loader

NAMES = pytest.mark.parametrize("name", PUBLISHED)


@NAMES
def test_parameter_counts_and_logits(name):
    model = PUBLISHED[name].net()
    assert count_parameters(model) == int(name.removeprefix("net-"))
    assert model.eval()(torch.randn(3, 1, 28, 28)).shape == (3, 10)


@NAMES
def test_schedule(name):
    recipe, model = PUBLISHED[name], PUBLISHED[name].net()
    optimizer = recipe.optimizer(model.parameters())
    scheduler, rates = recipe.scheduler(optimizer, 40), []
    for _ in range(40):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    expected = recipe.one_cycle["max_lr"] if recipe.one_cycle else optimizer.defaults["lr"]
    assert max(rates) == pytest.approx(expected, rel=0.02)
    assert (rates[-1] < rates[0]) == bool(recipe.one_cycle)


@NAMES
def test_batches_hold_out_augment_and_normalise(name, mnist_dir):
    recipe = dataclasses.replace(PUBLISHED[name], held_out=10 if PUBLISHED[name].held_out else 0)
    dataset = load_mnist(mnist_dir)
    loader = make_loader(dataset.train, recipe)
    count = 70 - recipe.held_out
    assert len(loader) == math.ceil(count / recipe.batch_size)
    images = torch.cat([images for images, _ in loader])
    if recipe.affine:
        assert isinstance(loader.dataset.transform.transforms[0], RandomAffine)
    else:
        pixels = (images * STD + MEAN).mul(255).round().byte().flatten(1)
        known = set(map(tuple, dataset.train.images.flatten(1).tolist()))
        assert len(set(map(tuple, pixels.tolist())) & known) == count
    assert len(images) == count


def test_more_images_held_out_than_there_are(mnist_dir, tmp_path, capsys):
    assert main(["net-14314", "--data-dir", str(mnist_dir), "--out", str(tmp_path / "run")]) == DataError.exit_code
    assert_one_line(capsys.readouterr(), "found 70 training images", name="train_published.py")
    assert not (tmp_path / "run").exists()


def test_a_short_run(mnist_dir, tmp_path, monkeypatch):
    recipe = dataclasses.replace(PUBLISHED["net-9720"], epochs=2)
    monkeypatch.setitem(train_published.PUBLISHED, "net-9720", recipe)
    argv = ["net-9720", "--data-dir", str(mnist_dir), "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    metrics = read_metrics(tmp_path / "run")
    assert len(metrics["epochs"]) == 2 and metrics["params"] == 9720
    add_run({"recipe": "net-9720", "runs": []}, metrics, 1.0)  # finds in them all that it wants
