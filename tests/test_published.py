"""The published recipes are what their READMEs say, and are trained as these say."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import read_metrics
from torchvision.transforms import RandomAffine

from data import Split
from experiment.datasets import load_mnist
from experiment.errors import DataError
from model import MEAN, STD, count_parameters
from study.published import PUBLISHED
from study.results import add_run
from study.train_published import evaluate, main, make_loader

# Layers by their initials, a convolution without padding as c. Then dropout; optimizer, lr, weight decay; first rate,
# peak, when in the run, last rate; batch size, epochs, label smoothing, images held out.
RECIPES = """
net-11034 CRBDCRBDMCRBDCRBDMcRBDAcF       Dropout   0.1  SGD   0.1   0    0.004 0.1   0.2 4e-7  128  15 0   0
net-14314 CBRDCBRDMDCBRCBRMDcBRCBRMDcRAFL Dropout   0.1  Adam  0.001 1e-4 4e-4  0.01  0.2 4e-8  128  20 0   10000
net-19576 cBRcRMDcRcBRMDCRFLRL            Dropout2d 0.15 AdamW 0.001 0.01 0.001 0.01  0.3 1e-5  1024 20 0.1 0
net-10170 CBRCBRMDCBRMDcCBRCBRCBRDAFL     Dropout   0.1  SGD   0.01  0    0.01  0.01  0   0.01  128  20 0   0
net-9720  CRBDCRBDMCRBDCRBDMcRBDcAF       Dropout2d 0.05 Adam  0.001 0    0.001 0.001 0   0.001 128  20 0   0
"""


@pytest.mark.parametrize("row", RECIPES.strip().splitlines(), ids=PUBLISHED)
def test_a_recipe_is_what_its_readme_says(row):
    name, layers, dropout, rate, optimizer_name, *figures = row.split()
    recipe, net, figures = PUBLISHED[name], PUBLISHED[name].net(), list(map(float, figures))
    optimizer = recipe.optimizer(net.parameters())
    scheduler, rates = recipe.scheduler(optimizer, 40), []
    for _ in range(40):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    initials = ("c" if getattr(layer, "padding", 0) == (0, 0) else type(layer).__name__[0] for layer in net)
    assert "".join(initials) == layers and count_parameters(net) == int(name[4:])
    assert {f"{type(layer).__name__} {layer.p}" for layer in net if hasattr(layer, "p")} == {f"{dropout} {rate}"}
    assert type(optimizer).__name__ == optimizer_name and optimizer.defaults.get("momentum", 0.9) == 0.9
    found = [recipe.optimizer.keywords["lr"], optimizer.defaults["weight_decay"], rates[0], max(rates)]
    found += [(rates.index(max(rates)) + bool(recipe.one_cycle)) / 40, rates[-1], recipe.batch_size, recipe.epochs]
    assert [*found, recipe.label_smoothing, recipe.held_out] == pytest.approx(figures)


def test_batches_hold_out_the_same_images_each_time_augment_and_normalise(mnist_dir):
    train, found = load_mnist(mnist_dir).train, []
    recipe = dataclasses.replace(PUBLISHED["net-14314"], held_out=10)
    for _ in range(2):
        images, labels = next(iter(make_loader(train, recipe)))
        pixels = (images * STD + MEAN).mul(255).round().byte().flatten(1)
        found.append(dict(zip(map(tuple, pixels.tolist()), labels.tolist())))
    known = dict(zip(map(tuple, train.images.flatten(1).tolist()), train.labels.tolist()))
    assert found[0] == found[1] and len(found[0]) == 60 and found[0].items() <= known.items()
    assert list(found[0]) != list(found[1])  # shuffled
    with pytest.raises(DataError, match="found 70 training images, expected more than the 10000"):
        make_loader(train, PUBLISHED["net-14314"])
    affine = make_loader(train, PUBLISHED["net-19576"]).dataset.transform.transforms[0]
    assert isinstance(affine, RandomAffine) and (affine.degrees, affine.shear) == ([-10, 10], [-5, 5])
    assert affine.translate == (0.1, 0.1) and affine.scale == (0.9, 1.1)


def test_evaluation_is_that_of_a_slow_loop_over_normalised_images():
    images, net = torch.randint(256, (1100, 1, 28, 28), dtype=torch.uint8), PUBLISHED["net-10170"].net()
    with torch.no_grad():
        logits = torch.cat([net.eval()((part / 255 - 0.1307) / 0.3081) for part in images.split(11)])
    labels = (logits.argmax(1) + (torch.arange(1100) % 3 == 0)) % 10  # a third of the answers is wrong
    score = evaluate(net.train(), Split(images, labels), "cpu")
    assert (score.correct, score.count) == (733, 1100)
    assert score.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_short_run_steps_the_schedule_with_each_batch_and_smooths_the_labels(mnist_dir, tmp_path, monkeypatch):
    losses = []
    for smoothing in (0.0, 0.1):
        recipe = dataclasses.replace(PUBLISHED["net-19576"], epochs=2, batch_size=35, label_smoothing=smoothing)
        monkeypatch.setitem(PUBLISHED, "net-19576", recipe)
        out = tmp_path / str(smoothing)
        assert main(["net-19576", "--data-dir", str(mnist_dir), "--out", str(out), "--threads", "1"]) == 0
        metrics = read_metrics(out)
        add_run({"recipe": "net-19576", "runs": []}, metrics, 1.0)  # finds in them all that it wants
        assert metrics["params"] == 19576 and metrics["epochs"][-1]["lr"] == pytest.approx(1e-5)
        losses.append([epoch["test_loss"] for epoch in metrics["epochs"]])
    assert losses[0] != losses[1]
