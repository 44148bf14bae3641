"""The pictures of a run show what it computed, and cannot fail it."""

import math
from collections import Counter
from itertools import product

import pytest
import torch
from conftest import RUN, SMALL, read_metrics, run
from matplotlib.figure import Figure
from PIL import Image

from data import Dataset, Split
from experiment import plots
from experiment.run_folder import FILES

DRAWN = [*plots.PICTURES]


def drawn(draw, *values):
    """The Figure that `draw` drew, and its title."""
    figure = Figure(layout="constrained")
    draw(figure, *values)
    return figure, figure.get_suptitle()


def example(mistakes, images=100):
    """(metrics, dataset, logits) of a run that got so many of its random test images wrong."""
    generator = torch.Generator().manual_seed(mistakes)
    logits, split = 3 * torch.randn(images, 10, generator=generator), torch.zeros(images, 1, 28, 28, dtype=torch.uint8)
    split[:, 0, 0, 0] = torch.arange(images)  # so that the images can be told apart
    labels = logits.argmax(1)
    wrong = torch.randperm(images, generator=generator)[:mistakes]
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, (mistakes,), generator=generator)) % 10
    metrics = {"recipe": "fast", "dataset": "random", "params": 1234, "seed": 5, "holdout": None, "epochs": [{}] * 3}
    return metrics, Dataset("random", "", None, Split(split, labels)), logits


def slow_mistakes(dataset, logits):
    """(probability, index, label, prediction) of every image that is wrong, the most confident first."""
    found = []
    for index, (row, label) in enumerate(zip(logits.tolist(), dataset.test.labels.tolist())):
        prediction = row.index(max(row))
        if prediction != label:
            found.append((math.exp(max(row)) / sum(map(math.exp, row)), index, label, prediction))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("mistakes", [0, 1, 11, 64, 65, 90])
def test_the_mistakes_are_those_of_a_slow_loop_the_most_confident_first(mistakes):
    metrics, dataset, logits = example(mistakes)
    figure, title = drawn(plots.draw_mistakes, metrics, dataset, logits)
    [axes], expected = figure.axes, slow_mistakes(dataset, logits)[:64]
    assert title.startswith(f"{mistakes} of 100 test images wrong after epoch 3")
    assert ("64 of the highest probability" in title) == (mistakes > 64)
    assert [text.get_text() for text in axes.texts] == [f"{a} → {b}  {p:.2f}" for p, _, a, b in expected]
    assert [round(255 * float(image.get_array()[0, 0])) for image in axes.images] == [
        index for _, index, *_ in expected
    ]
    places = [(image.get_extent()[3], image.get_extent()[0]) for image in axes.images]
    assert places == sorted(places) and len(set(places)) == len(places)  # row by row
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert all(left <= x <= right - 0.9 and top <= y <= bottom - 1.2 for y, x in places)


@pytest.mark.parametrize("mistakes", [0, 1, 90])
def test_the_confusions_are_those_of_a_slow_loop_and_a_single_one_is_seen(mistakes):
    metrics, dataset, logits = example(mistakes)
    figure, title = drawn(plots.draw_confusion, metrics, dataset, logits)
    [axes], counts = figure.axes, Counter((a, b) for _, _, a, b in slow_mistakes(dataset, logits))
    [image] = axes.images
    assert title.startswith(f"{mistakes} of 100 test images wrong")
    counts.update((label, label) for label in dataset.test.labels[dataset.test.labels == logits.argmax(1)].tolist())
    texts = {text.get_position()[::-1]: text.get_text() for text in axes.texts}  # by (true, predicted)
    for true, predicted in product(range(10), range(10)):
        count = counts[true, predicted]
        assert texts[true, predicted] == (str(count) if count or true == predicted else "")
        assert bool(image.get_array().mask[true, predicted]) == (true == predicted)
        if true != predicted and count:
            colour, of_none = image.cmap(image.norm(count)), image.cmap(image.norm(0))
            assert max(abs(a - b) for a, b in zip(colour, of_none)) > 0.1


def test_the_curves_are_the_points_of_metrics_json(whole_run):
    metrics = read_metrics(whole_run)
    epochs, (figure, title) = metrics["epochs"], drawn(plots.draw_curves, metrics)
    loss, accuracy, rate = figure.axes
    points = [point for epoch in epochs for point in epoch["curve"]]
    training, test = loss.lines
    assert list(training.get_ydata()) == [point["loss"] for point in points]
    assert list(rate.lines[0].get_ydata()) == [point["lr"] for point in points]
    assert list(test.get_ydata()) == [epoch["test_loss"] for epoch in epochs]
    positions = list(training.get_xdata())
    assert positions == sorted(set(positions)) == list(rate.lines[0].get_xdata()) and positions[0] > 0
    assert {epoch["epoch"] for epoch in epochs} <= set(positions)  # each epoch ends with a point
    assert title.startswith(f"{metrics['final_test_accuracy']:.2f}% of the test images right after epoch 8\ndefault on")
    for line, name in zip(accuracy.lines, ("train", "test")):
        values = list(line.get_ydata())
        assert values == [epoch[f"{name}_accuracy"] for epoch in epochs]
        assert all(accuracy.get_ylim()[0] <= value <= accuracy.get_ylim()[1] for value in values)


def test_points_lie_at_their_share_of_the_steps_of_their_epoch():
    steps = [[25, 50, 60], [85, 90]]
    epochs = [
        {"epoch": number, "curve": [{"step": step, "lr": 0.1, "loss": 1.0} for step in of_epoch]}
        for number, of_epoch in enumerate(steps, 1)
    ]
    positions = [position for position, _, _ in plots.curve_points(epochs)]
    assert positions == pytest.approx([25 / 60, 50 / 60, 1, 1 + 25 / 30, 2])


@pytest.mark.parametrize("accuracies", [[100.0], [10.0, 100.0], [99.4, 99.43], [0.0]])
def test_every_accuracy_and_the_target_are_in_the_picture(accuracies):
    metrics, *_ = example(0)
    curve = [{"step": 1, "lr": 0.1, "loss": 1.0}]
    values = {"images": 9, "train_loss": 1.0, "test_loss": 1.0, "curve": curve}
    epochs = [{**values, "epoch": 1, "train_accuracy": x, "test_accuracy": x} for x in accuracies[:1]]
    epochs += [
        {**epochs[0], "epoch": 2, "test_accuracy": x, "curve": [{"step": 2, "lr": 0.1, "loss": 1.0}]}
        for x in accuracies[1:]
    ]
    rest = {"final_test_accuracy": accuracies[-1], "target": 99.4, "config": {"label_smoothing": 0.1}}
    figure, _ = drawn(plots.draw_curves, {**metrics, "epochs": epochs, **rest})
    bottom, top = figure.axes[1].get_ylim()
    assert bottom < top and all(bottom <= value <= top for value in (*accuracies, 99.4))
    figure.canvas.draw()


def test_without_label_smoothing_the_points_of_an_epoch_average_to_its_loss(tmp_path):
    argv = [*RUN, "--batch-size", 16, "--epochs", 2, "--label-smoothing", 0]
    assert run(*argv, "--out", tmp_path / "run") == 0
    start = 0
    for epoch in read_metrics(tmp_path / "run")["epochs"]:
        seen = [0, *(min(16 * (point["step"] - start), epoch["images"]) for point in epoch["curve"])]
        images = [now - before for before, now in zip(seen, seen[1:])]
        mean = sum(count * point["loss"] for count, point in zip(images, epoch["curve"])) / epoch["images"]
        assert mean == pytest.approx(epoch["train_loss"], rel=1e-5) and seen[-1] == epoch["images"]
        assert epoch["curve"][-1]["lr"] == epoch["lr"]
        start = epoch["curve"][-1]["step"]


def test_the_augmented_images_are_cropped_and_drawing_them_changes_no_random_number():
    metrics, dataset, _ = example(0)
    dataset = dataset._replace(train=Split(torch.randint(256, (9, 1, 28, 28), dtype=torch.uint8), None))
    config = {"rotation": 0, "translate": 0, "scale": 0, "shear": 0, "margin": 3, "augment_until": 0.6}
    state = torch.get_rng_state()
    figure, title = drawn(plots.draw_augmented, {**metrics, "config": config}, dataset, None)
    assert torch.equal(torch.get_rng_state(), state) and "the first 60% of the run" in title
    [axes] = figure.axes
    assert len(axes.images) == 16
    for index, (original, augmented) in enumerate(zip(axes.images[::2], axes.images[1::2])):
        image = dataset.train.images[index, 0] / 255
        assert torch.equal(torch.tensor(original.get_array()), image)
        torch.testing.assert_close(torch.tensor(augmented.get_array()), image[3:25, 3:25], atol=1e-5, rtol=0)


def test_a_run_draws_all_pictures_and_with_no_plots_none(whole_run, tmp_path):
    for name in DRAWN:
        with Image.open(whole_run / name) as picture:
            assert picture.format == "PNG" and picture.width == 996
    assert run(*RUN, "--out", tmp_path / "run") == 0  # with --no-plots
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", *FILES} - {*DRAWN}


def test_with_held_out_images_the_mistakes_are_those_of_the_weights_they_chose(tmp_path, monkeypatch):
    titles = {}
    monkeypatch.setattr(
        plots, "drawn", lambda draw, *values: titles.update({draw.__name__: drawn(draw, *values)[1]}) or b""
    )
    assert run(*RUN, "--holdout", 200, "--out", tmp_path / "run", plots=True) == 0
    metrics = read_metrics(tmp_path / "run")
    accuracies = [epoch["holdout_accuracy"] for epoch in metrics["epochs"]]
    wrong = round(360 * (1 - metrics["test_accuracy"] / 100))
    chosen = f"with the weights of epoch {1 + accuracies.index(max(accuracies))}, the best on held-out images"
    assert titles["draw_mistakes"].startswith(f"{wrong} of 360 test images wrong {chosen}")
    assert titles["draw_curves"].startswith(f"{metrics['test_accuracy']:.2f}% of the test images right {chosen}")


@pytest.mark.parametrize("failing", [*DRAWN, "all"])
def test_a_matplotlib_that_raises_is_a_warning(tmp_path, monkeypatch, failing):
    def fail(figure, *values):
        raise RuntimeError("no fonts")

    fails = DRAWN if failing == "all" else [failing]
    for name in fails:
        monkeypatch.setitem(plots.PICTURES, name, fail)
    argv = [*SMALL, "--dataset", "digits", "--epochs", 1]
    assert run(*argv, "--out", tmp_path / "run", plots=True) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert [line for line in log.splitlines() if "Warning" in line] == [
        f"Warning: {name} could not be drawn (RuntimeError: no fonts)" for name in fails
    ]
    assert log.splitlines()[-1].startswith("Training time: ")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", *FILES} - {*fails}
