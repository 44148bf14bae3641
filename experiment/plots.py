"""The pictures of a finished run. matplotlib and scikit-learn are imported late, because that takes a second.

Each draws into an empty Figure from the content of metrics.json, the Dataset, and logits (N, 10) of its test images.
"""

import io
import math

import torch

from data import RandomAffine
from model import SIDE

WIDTH = 8.3  # inches of every picture: at the width of a README, 830 pixels, text of 10 points is easy to read
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"  # told apart by the colour-blind too (Okabe and Ito)
MISTAKES, COLUMNS = 64, 10  # at most so many wrong images, so many in a row


def drawn(draw, metrics, dataset, logits):
    """The bytes of the PNG that `draw` draws; needs no display."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    draw(figure, metrics, dataset, logits.cpu())
    return png(figure)


def png(figure):
    """The bytes of `figure` as a PNG file."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    return picture.getvalue()


def show_curves(metrics):
    """Show the curves in a window and wait until it is closed."""
    import matplotlib.pyplot as plt

    draw_curves(plt.figure(layout="constrained"), metrics)
    plt.show()


def write_title(figure, metrics, text):
    """Write `text`, and below it which run this is."""
    run = f"{metrics['recipe']} on {metrics['dataset']}, {metrics['params']:,} parameters, seed {metrics['seed']}"
    # A folder's name may hold "$", which is not mathematics here, or bytes that are not text.
    text = f"{text}\n{run}".encode(errors="backslashreplace").decode()
    figure.suptitle(text, x=0.01, ha="left", fontsize=11, parse_math=False)


def when(metrics):
    """Of which epoch the weights are that the test images were shown to."""
    epochs = metrics["epochs"]
    if metrics["holdout"] is None:
        return f"after epoch {len(epochs)}"
    best = max(epochs, key=lambda epoch: epoch["holdout_accuracy"])
    return f"with the weights of epoch {best['epoch']}, the best on held-out images"


def curve_points(epochs):
    """(position, lr, loss) of every point of the curves of all epochs; the position is in fractional epochs."""
    start = 0
    for epoch in epochs:
        end = epoch["curve"][-1]["step"]
        for point in epoch["curve"]:
            yield epoch["epoch"] - (end - point["step"]) / (end - start), point["lr"], point["loss"]
        start = end


def draw_curves(figure, metrics, dataset=None, logits=None):
    """Loss, accuracy and learning rate over the epochs, in training and on the evaluated split."""
    epochs, split = metrics["epochs"], "test" if metrics["holdout"] is None else "holdout"
    numbers, (positions, rates, losses) = range(1, len(epochs) + 1), zip(*curve_points(epochs))
    figure.set_size_inches(WIDTH, 6.4)
    loss, accuracy, rate = figure.subplots(3, sharex=True, height_ratios=(4, 4, 1.5))
    last = metrics["test_accuracy"] if metrics["holdout"] else metrics["final_test_accuracy"]
    write_title(figure, metrics, f"{last:.2f}% of the test images right {when(metrics)}")

    smoothing = ", without label smoothing" * (metrics["config"]["label_smoothing"] > 0)
    loss.plot(positions, losses, color=VERMILLION, linewidth=1.2, label=f"training, means of 25 steps{smoothing}")
    loss.plot(numbers, [epoch[f"{split}_loss"] for epoch in epochs], "o-", color=BLUE, markersize=5, label=split)
    loss.set(ylabel="cross-entropy", yscale="log")
    label_loss(loss.yaxis)

    for name, color in (("train", VERMILLION), (split, BLUE)):
        values = [epoch[f"{name}_accuracy"] for epoch in epochs]
        label = "training, means of an epoch" if name == "train" else split
        accuracy.plot(numbers, values, "o-", color=color, markersize=5, label=label)
    accuracy.annotate(f"{values[-1]:.2f}%", (numbers[-1], values[-1]), (0, 7), textcoords="offset points", ha="right")
    accuracy.set_ylabel("accuracy (%)")
    if metrics["target"] is not None:
        accuracy.axhline(metrics["target"], color="0.45", linestyle="--", label=f"target {metrics['target']:g}%")
    zoom_in_at_the_top(accuracy)

    rate.plot(positions, rates, color=GREEN)
    rate.set(ylabel="learning rate", xlabel="epoch", ylim=(0, None), xlim=(0, 1.01 * len(epochs)))
    rate.xaxis.get_major_locator().set_params(steps=[1, 2, 5, 10])
    for axes in (loss, accuracy):
        axes.legend(frameon=False)
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)


def label_loss(axis):
    """Label the logarithmic `axis` with plain numbers: 0.1, 0.2, 0.5, 1, …"""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(LogLocator(subs=()))


def zoom_in_at_the_top(axes):
    """Scale the accuracies on the y axis by the logarithm of their error: half as many mistakes are always as far."""
    import numpy as np
    from matplotlib.ticker import FixedLocator

    top = 100.05  # keeps 100% finite
    errors = [top - value for line in axes.lines for value in line.get_ydata()]
    axes.set_yscale("function", functions=(lambda y: -np.log10(top - y), lambda y: top - 10**-y))
    axes.set_ylim(max(0, top - 1.5 * max(errors)), min(100, top - min(errors) / 1.5))
    axes.yaxis.set_major_locator(FixedLocator([0, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 100]))
    axes.yaxis.set_minor_locator(FixedLocator([99 + tenths / 10 for tenths in range(10)]))
    axes.yaxis.set_major_formatter("{x:g}")


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
    write_title(figure, metrics, f"{len(wrong):,} of {len(labels):,} test images wrong {when(metrics)}: {which}")
    rows = max(1, math.ceil(min(len(wrong), MISTAKES) / COLUMNS))
    axes = blank_axes(figure, height=0.7 + rows, right=COLUMNS, bottom=1.25 * rows)
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
    augment = RandomAffine(*(config[name] for name in ("rotation", "translate", "scale", "shear", "margin")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(metrics["seed"])
        augmented = augment(images)
    share = f"{100 * config['augment_until']:g}%"
    write_title(figure, metrics, f"Training images, and below as the net sees them in the first {share} of the run")
    axes = blank_axes(figure, height=2.8, right=len(images), bottom=2)
    for column, (image, changed) in enumerate(zip(images, augmented)):
        draw_image(axes, image[0], column, 0)
        draw_image(axes, changed[0], column, 1)


def blank_axes(figure, height, right, bottom):
    """Axes without frame or ticks, for images at (x, y) from (0, 0) to (right, bottom)."""
    figure.set(size_inches=(WIDTH, height), facecolor="0.93")  # shows how far the white images reach
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
    """How often which digit was taken for which; mistakes are coloured, a few of them as visibly as many."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    matrix = confusion_matrix(dataset.test.labels.cpu(), logits.argmax(1), labels=range(10))
    right = np.eye(10, dtype=bool)
    errors = np.ma.masked_where(right, matrix)
    figure.set_size_inches(WIDTH, 5.2)
    write_title(figure, metrics, f"{errors.sum():,} of {matrix.sum():,} test images wrong {when(metrics)}")
    display = ConfusionMatrixDisplay(matrix).plot(
        ax=figure.subplots(),
        cmap=colormaps["Oranges"].with_extremes(bad="0.93"),
        colorbar=False,
        im_kw={"norm": PowerNorm(0.5, vmin=0, vmax=max(1, 3 * errors.max())), "aspect": "auto"},
        text_kw={"color": "black"},
    )
    display.im_.set_data(errors)
    for text in display.text_[(matrix == 0) & ~right]:
        text.set_text("")
    display.ax_.set(xlabel="predicted", ylabel="true")


PICTURES = {  # file name: function that draws it
    "curves.png": draw_curves,
    "mistakes.png": draw_mistakes,
    "confusion.png": draw_confusion,
    "augmented.png": draw_augmented,
}
