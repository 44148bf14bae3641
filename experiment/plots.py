"""The pictures of a finished run. matplotlib is imported late, because that takes half a second.

Each function draws into an empty Figure, from the content of metrics.json, the Dataset, and the logits (N, 10) of its
test images.
"""

import io
import math

import torch

from data import random_affine
from model import SIDE

WIDTH = 8.3  # inches of every picture: at the width of a README, 830 pixels, text of 10 points is easy to read
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"  # told apart by the colour-blind too (Okabe and Ito)
MISTAKES, COLUMNS = 64, 10  # at most so many wrong images, so many in a row
SMALLEST = 0.01  # error in percent that is drawn as none, which has no logarithm


def drawn(draw, *values):
    """The bytes of the PNG that draw(figure, *values) draws; needs no display, nor anyone's settings of matplotlib."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context({}, after_reset=True):
        figure, picture = Figure(), io.BytesIO()
        draw(figure, *values)
        figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def write_title(figure, metrics, text):
    """Write `text`, and below it which run this is; leave room for it, and for the labels of axes."""
    run = f"{metrics['recipe']} on {metrics['dataset']}, {metrics['params']:,} parameters, seed {metrics['seed']}"
    # A folder's name may hold "$", which is not mathematics here, or bytes that are not text.
    text = f"{text}\n{run}".encode(errors="backslashreplace").decode()
    height = figure.get_figheight()
    figure.suptitle(text, x=0.01, y=1 - 0.07 / height, ha="left", va="top", fontsize=11, parse_math=False)
    # Fixed margins: those that matplotlib computes take it as long as drawing.
    figure.subplots_adjust(left=0.08, right=0.99, bottom=0.48 / height, top=1 - 0.55 / height, hspace=0.12)


def shown_weights(metrics):
    """Says which epoch's weights classified the test images."""
    epochs = metrics["epochs"]
    if metrics["holdout"] is None:
        return f"after epoch {len(epochs)}"
    best = max(epochs, key=lambda epoch: epoch["holdout_accuracy"])
    return f"with the weights of epoch {best['epoch']}, the best on held-out images"


def draw_curves(figure, metrics, dataset, logits):
    """Loss, accuracy and learning rate over the epochs, in training and on the evaluated split."""
    epochs, split = metrics["epochs"], "test" if metrics["holdout"] is None else "holdout"
    numbers, positions, points, start = range(1, len(epochs) + 1), [], [], 0
    for epoch in epochs:  # positions of the curve's points in fractional epochs
        end = epoch["curve"][-1]["step"]
        positions += [epoch["epoch"] - (end - point["step"]) / (end - start) for point in epoch["curve"]]
        points, start = points + epoch["curve"], end
    figure.set_size_inches(WIDTH, 6.4)
    loss, accuracy, rate = figure.subplots(3, sharex=True, height_ratios=(4, 4, 1.5))
    last = metrics["test_accuracy"] if metrics["holdout"] else metrics["final_test_accuracy"]
    write_title(figure, metrics, f"{last:.2f}% of the test images right {shown_weights(metrics)}")

    losses, rates = ([point[name] for point in points] for name in ("loss", "lr"))
    loss.plot(positions, losses, color=VERMILLION, linewidth=1.2, label="training, means of 25 steps")
    loss.plot(numbers, [epoch[f"{split}_loss"] for epoch in epochs], "o-", color=BLUE, markersize=5, label=split)
    log_scale(loss, "{x:g}", "cross-entropy")
    for name, color, label in (("train", VERMILLION, "training, means of an epoch"), (split, BLUE, split)):
        errors = [max(100 - epoch[f"{name}_accuracy"], SMALLEST) for epoch in epochs]
        accuracy.plot(numbers, errors, "o-", color=color, markersize=5, label=label)
    text = f"{epochs[-1][f'{split}_accuracy']:.2f}%"
    accuracy.annotate(text, (numbers[-1], errors[-1]), (0, 7), textcoords="offset points", ha="right")
    if metrics["target"] is not None:
        error = max(100 - metrics["target"], SMALLEST)
        accuracy.axhline(error, color="0.45", linestyle="--", label=f"target {metrics['target']:g}%")
    # Errors on a logarithmic axis that is labelled with accuracies: every halving of the error takes the same height.
    log_scale(accuracy, lambda error, _: f"{100 - error * (error > SMALLEST):g}", "accuracy (%)")
    accuracy.invert_yaxis()
    rate.plot(positions, rates, color=GREEN)
    rate.set(ylabel="learning rate", xlabel="epoch", ylim=(0, None), xlim=(0, 1.01 * len(epochs)))
    rate.xaxis.get_major_locator().set_params(steps=[1, 2, 5, 10])
    for axes in (loss, accuracy):
        axes.legend(frameon=False)
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)


def log_scale(axes, formatter, label):
    """Make the y axis logarithmic, with labels at 0.1, 0.2, 0.5, 1, …"""
    from matplotlib.ticker import LogLocator

    axes.set(yscale="log", ylabel=label)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(formatter)
    axes.yaxis.set_minor_locator(LogLocator(subs=()))


def mistakes(labels, logits):
    """Indices of the images that `logits` (N, 10) get wrong, the most confident first."""
    probabilities, predictions = logits.softmax(1).max(1)
    wrong = (predictions != labels).nonzero().flatten()
    return wrong[probabilities[wrong].argsort(descending=True, stable=True)]


def draw_mistakes(figure, metrics, dataset, logits):
    """The test images that the net got wrong, the most confident first."""
    labels = dataset.test.labels.cpu()
    wrong = mistakes(labels, logits)
    which = f"the {MISTAKES} of the highest probability" if len(wrong) > MISTAKES else "true → predicted, probability"
    what = f"{len(wrong):,} of {len(labels):,} test images wrong {shown_weights(metrics)}: {which}"
    rows = max(1, math.ceil(min(len(wrong), MISTAKES) / COLUMNS))
    axes = blank_axes(figure, metrics, what, right=COLUMNS, bottom=1.25 * rows)
    draw_answers(axes, dataset.test.images.cpu(), labels, logits, wrong[:MISTAKES], COLUMNS, "{} → {}  {:.2f}")


def draw_answers(axes, images, labels, logits, indices, columns, text):
    """Draw the images of `indices` in rows of `columns`, each 1.25 high; `text` takes label, answer and probability."""
    probabilities, predictions = logits.softmax(1).max(1)
    for place, index in enumerate(indices.tolist()):
        row, column = divmod(place, columns)
        draw_image(axes, images[index, 0] / 255, column, 1.25 * row)
        answer = text.format(labels[index], predictions[index], probabilities[index])
        axes.text(column + 0.46, 1.25 * row + 0.94, answer, ha="center", va="top", fontsize=8.5)


def draw_augmented(figure, metrics, dataset, logits):
    """Training images, and below each what the net is given instead in the augmented part of a run."""
    config, images = metrics["config"], dataset.train.images[:8].cpu() / 255
    amounts = {name: config[name] for name in ("rotation", "translate", "scale", "shear", "margin")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(metrics["seed"])
        augmented = random_affine(images, **amounts)
    what = f"Training images, and below as the net sees them in the first {100 * config['augment_until']:g}% of the run"
    axes = blank_axes(figure, metrics, what, right=len(images), bottom=2)
    for column, (image, changed) in enumerate(zip(images, augmented)):
        draw_image(axes, image[0], column, 0)
        draw_image(axes, changed[0], column, 1)


def blank_axes(figure, metrics, title, right, bottom):
    """Axes without frame or ticks below a title, for images at (x, y) from (0, 0) to (right, bottom)."""
    height = 0.62 + 0.985 * WIDTH * bottom / right
    figure.set(size_inches=(WIDTH, height), facecolor="0.93")  # shows how far the white images reach
    write_title(figure, metrics, title)
    figure.subplots_adjust(left=0.0075, right=0.9925, bottom=0.07 / height)
    axes = figure.subplots()
    axes.axis("off")
    axes.set(xlim=(0, right), ylim=(bottom, 0), aspect="equal", autoscale_on=False)
    return axes


def draw_image(axes, image, x, y):
    """Draw `image` (S, S), floats in 0..1, black on white into the square from (x, y); 28 pixels are 0.92 wide."""
    margin, side = 0.92 * (SIDE - len(image)) / (2 * SIDE), 0.92 * len(image) / SIDE
    extent = (x + margin, x + margin + side, y + margin + side, y + margin)
    axes.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1, extent=extent)


def draw_confusion(figure, metrics, dataset, logits):
    """How often which digit was taken for which; a few mistakes are coloured as visibly as many."""
    from matplotlib import colormaps

    labels, answers = dataset.test.labels.cpu(), logits.argmax(1)
    counts = torch.bincount(10 * labels + answers, minlength=100).view(10, 10)
    errors = counts - counts.diag().diag()
    figure.set_size_inches(WIDTH, 5.2)
    write_title(figure, metrics, f"{errors.sum():,} of {len(labels):,} test images wrong {shown_weights(metrics)}")
    axes = figure.subplots()
    shades, top = errors.sqrt().fill_diagonal_(math.nan).numpy(), max(1, 3 * int(errors.max())) ** 0.5
    axes.imshow(shades, cmap=colormaps["Oranges"].with_extremes(bad="0.93"), vmin=0, vmax=top, aspect="auto")
    for label, answer in counts.nonzero().tolist():
        axes.text(answer, label, int(counts[label, answer]), ha="center", va="center")
    axes.set(xlabel="predicted", ylabel="true", xticks=range(10), yticks=range(10))


PICTURES = (draw_curves, draw_mistakes, draw_confusion, draw_augmented)
