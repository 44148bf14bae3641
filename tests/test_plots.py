"""The pictures of a run show what it computed, and cannot fail it."""

import math
import os
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import permutations
from types import SimpleNamespace

import matplotlib.style
import pytest
import torch
from conftest import ROOT, SMALL, run, same, without_times
from matplotlib.figure import Figure
from PIL import Image

from data import Dataset, Split, random_affine
from experiment import plots
from experiment.run_folder import FILES, PICTURES
from experiment.settings import RECIPES
from experiment.weights import WEIGHTS
from study import figures
from study.results import read_results

ABOUT = {"recipe": "fast", "dataset": "random", "params": 1234, "seed": 5, "holdout": None}


def drawn(draw, metrics, dataset=None, logits=None):
    """The Figure that `draw` drew, and its title."""
    figure = Figure()
    draw(figure, metrics, dataset, logits)
    return figure, figure.get_suptitle()


def example(wrong_count, images=100):
    """(metrics, dataset, logits) of a run that got so many of its random test images wrong."""
    generator = torch.Generator().manual_seed(wrong_count)
    logits, split = 3 * torch.randn(images, 10, generator=generator), torch.zeros(images, 1, 28, 28, dtype=torch.uint8)
    split[:, 0, 0, 0] = torch.arange(images)  # so that the images can be told apart
    labels = logits.argmax(1)
    wrong = torch.randperm(images, generator=generator)[:wrong_count]
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, (wrong_count,), generator=generator)) % 10
    return {**ABOUT, "epochs": [{}] * 3}, Dataset("random", "", None, Split(split, labels)), logits


def slow_answers(dataset, logits):
    """(probability, index, label, prediction) of every image, the most confident first."""
    rows = enumerate(zip(logits.tolist(), dataset.test.labels.tolist()))
    found = [(math.exp(max(row)) / sum(map(math.exp, row)), i, label, row.index(max(row))) for i, (row, label) in rows]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("wrong", [0, 11, 64, 65])
def test_the_mistakes_are_those_of_a_slow_loop_the_most_confident_first(wrong):
    metrics, dataset, logits = example(wrong)
    figure, title = drawn(plots.draw_mistakes, metrics, dataset, logits)
    [axes], expected = figure.axes, [answer for answer in slow_answers(dataset, logits) if answer[2] != answer[3]][:64]
    assert title.startswith(f"{wrong} of 100 test images wrong after epoch 3")
    assert ("64 of the highest probability" in title) == (wrong > 64)
    assert [text.get_text() for text in axes.texts] == [f"{a} → {b}  {p:.2f}" for p, _, a, b in expected]
    shown = [round(255 * float(image.get_array()[0, 0])) for image in axes.images]
    assert shown == [index for _, index, *_ in expected]
    places = [(image.get_extent()[3], image.get_extent()[0]) for image in axes.images]
    assert places == sorted(places) and len(set(places)) == len(places)  # row by row
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert all(left <= x <= right - 0.9 and top <= y <= bottom - 1.2 for y, x in places)


@pytest.mark.parametrize("wrong", [0, 1, 90])
def test_the_confusions_are_those_of_a_slow_loop_and_a_single_one_is_seen(wrong):
    metrics, dataset, logits = example(wrong)
    figure, title = drawn(plots.draw_confusion, metrics, dataset, logits)
    [axes], counts = figure.axes, Counter((a, b) for _, _, a, b in slow_answers(dataset, logits))
    assert title.startswith(f"{wrong} of 100 test images wrong")
    texts = {text.get_position()[::-1]: text.get_text() for text in axes.texts if text.get_text() != "0"}
    assert texts == {place: str(count) for place, count in counts.items()}  # place: (true, predicted)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted") and axes.yaxis_inverted()
    [image] = axes.images
    colours = image.to_rgba(image.get_array())
    assert not (colours.diagonal(0, 0, 1).T - colours[0, 0]).any()  # however many are right
    seen = abs(colours - image.to_rgba(0)).max(2) > 0.1
    assert all(seen[place] == (counts[place] > 0) for place in permutations(range(10), 2))


def curves(accuracies, steps, target=99.4):
    """Metrics of a run with these test accuracies, and these steps at the points of its epochs' curves."""
    epochs = [
        {"epoch": number, "train_loss": 0.3, "test_loss": 0.5 / number, "train_accuracy": 90 - number}
        | {"test_accuracy": value, "curve": [{"step": step, "lr": 1 / step, "loss": 2 / step} for step in of_epoch]}
        for number, (value, of_epoch) in enumerate(zip(accuracies, steps), 1)
    ]
    return {**ABOUT, "epochs": epochs, "final_test_accuracy": accuracies[-1], "target": target}


def test_the_curves_are_the_points_of_metrics_json_at_their_share_of_the_steps_of_their_epoch():
    figure, title = drawn(plots.draw_curves, curves([98.0, 99.25], [[25, 50, 60], [85, 90]], target=None))
    assert title == "99.25% of the test images right after epoch 2\nfast on random, 1,234 parameters, seed 5"
    (training, test), accuracies, [rate] = (
        [(pytest.approx(line.get_xdata()), pytest.approx(line.get_ydata())) for line in axes.lines]
        for axes in figure.axes
    )
    shares, steps = [25 / 60, 50 / 60, 1, 1 + 25 / 30, 2], [25, 50, 60, 85, 90]
    assert training == (shares, [2 / step for step in steps]) and rate == (shares, [1 / step for step in steps])
    assert test == ([1, 2], [0.5, 0.25]) and accuracies == [([1, 2], [11, 12]), ([1, 2], [2, 0.75])]  # as errors


@pytest.mark.parametrize("accuracies", [[100.0], [10.0, 100.0], [99.4, 99.43], [0.0]])
def test_every_accuracy_is_in_the_picture_by_its_name_and_a_higher_one_is_higher(accuracies):
    figure, _ = drawn(plots.draw_curves, curves(accuracies, [[1], [2]]))
    axes, values = figure.axes[1], [*accuracies, 99.4]
    figure.canvas.draw()
    errors = [*axes.lines[1].get_ydata(), axes.lines[2].get_ydata()[0]]  # of the epochs, and the target
    name, (bottom, top) = axes.yaxis.get_major_formatter(), axes.get_ylim()
    assert [float(name(error)) for error in errors] == pytest.approx(values)
    assert top < min(errors) and max(errors) < bottom
    assert [text.get_text() for text in axes.texts] == [f"{accuracies[-1]:.2f}%"]
    ticks = [float(name(tick)) for tick in axes.get_yticks() if top <= tick <= bottom]
    assert len(set(ticks)) == len(ticks) >= 2 and min(ticks) >= 0 and max(ticks) <= 100


def test_the_augmented_images_are_as_in_training_and_drawing_them_changes_no_random_number():
    images = torch.randint(256, (9, 1, 28, 28), dtype=torch.uint8)
    dataset = Dataset("random", "", Split(images, None), None)
    recipe = replace(RECIPES["fast"], rotation=20.0, translate=0.1, scale=0.4, shear=7.0, margin=3, augment_until=0.3)
    state = torch.get_rng_state()
    figure, title = drawn(plots.draw_augmented, {**ABOUT, "config": recipe.values}, dataset)
    assert torch.equal(torch.get_rng_state(), state) and "the first 30% of the run" in title
    torch.manual_seed(ABOUT["seed"])
    expected = random_affine(images[:8] / 255, rotation=20.0, translate=0.1, scale=0.4, shear=7.0, margin=3)
    shown = [torch.tensor(image.get_array()) for image in figure.axes[0].images]
    assert torch.equal(torch.stack(shown[::2]), images[:8, 0] / 255)
    assert torch.equal(torch.stack(shown[1::2]), expected[:, 0])


def test_a_run_that_was_killed_before_its_last_line_draws_the_same_pictures(whole_run, tmp_path, monkeypatch):
    """Whatever the user's settings of matplotlib are, which it leaves alone, as does the picture of the READMEs."""
    results = read_results(ROOT / "results/side-by-side.json")
    overview = partial(plots.drawn, figures.draw_overview, results, WEIGHTS / "tiny.pth")
    monkeypatch.setattr(figures, "load_mnist", lambda: example(9)[1])
    expected, folder = overview(), tmp_path / "run"
    shutil.copytree(whole_run, folder, ignore=shutil.ignore_patterns("*.png"))
    os.truncate(folder / "log.txt", (folder / "log.txt").stat().st_size - 70)
    with matplotlib.style.context("dark_background"):
        own = {"savefig.format": "pdf", "savefig.bbox": "tight", "figure.dpi": 37, "font.size": 22, "axes.grid": True}
        matplotlib.rcParams.update(own)
        before = dict(matplotlib.rcParams)
        assert run("--resume", folder, plots=True, on_epoch=pytest.fail) == 0 and overview() == expected
        assert matplotlib.rcParams == before and same(without_times(folder), without_times(whole_run))
    for name, draw in zip(PICTURES, plots.PICTURES, strict=True):
        assert (folder / name).read_bytes() == (whole_run / name).read_bytes()
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG" and picture.width == 996 and draw.__name__ == f"draw_{name[:-4]}"


def test_the_share_of_right_answers_is_drawn_over_the_probability_of_groups_of_100(monkeypatch):
    _, dataset, logits = example(70, images=200)
    for name, value in (("load_mnist", dataset), ("predict", logits), ("load_net", SimpleNamespace(temperature=0.5))):
        monkeypatch.setattr(figures, name, lambda *given, value=value: value)
    figures.draw_reliability(figure := Figure(), WEIGHTS / "tiny.pth")
    for line, temperature in zip(figure.axes[0].lines[1:], (1.0, 0.5), strict=True):
        answers = sorted((p, label == answer) for p, _, label, answer in slow_answers(dataset, logits / temperature))
        means = [[100 * sum(column) / 100 for column in zip(*answers[i : i + 100])] for i in (0, 100)]
        assert line.get_xydata().tolist() == [pytest.approx(mean, rel=1e-5) for mean in means]


@pytest.mark.parametrize(("failing", "wanted"), [(PICTURES[1:2], True), (PICTURES, True), ((), False)])
def test_a_matplotlib_that_raises_is_a_warning_and_with_no_plots_none_is_drawn(tmp_path, monkeypatch, failing, wanted):
    def fail(figure, *values):
        raise RuntimeError("no fonts")

    draws = tuple(fail if name in failing else draw for name, draw in zip(PICTURES, plots.PICTURES))
    monkeypatch.setattr(plots, "PICTURES", draws)
    assert run(*SMALL, "--dataset", "digits", "--epochs", 1, "--out", tmp_path / "run", plots=wanted) == 0
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    expected = [f"Warning: {name} could not be drawn (RuntimeError: no fonts)" for name in failing]
    assert [line for line in log if "Warning" in line] == expected and log[-1].startswith("Training time: ")
    left_out = failing if wanted else PICTURES
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", *FILES} - {*left_out}
