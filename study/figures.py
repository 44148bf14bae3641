"""The pictures of the READMEs, drawn from benchmarks. matplotlib is imported late, because that takes a second."""

import math

from experiment.datasets import load_mnist
from experiment.plots import BLUE, VERMILLION, WIDTH, draw_answers, log_scale, mistakes
from experiment.weights import load_net
from study.published import PUBLISHED
from study.results import interval, summarise_all
from train import predict


def draw_seconds_to_target(axes, results):
    """A bar per recipe: training seconds to a mean accuracy of 99.4%; hatched: all, where the mean stays below."""
    summaries = summarise_all(results)
    names = sorted(summaries, key=lambda name: summaries[name]["seconds_to_target"])
    for y, name in enumerate(names):
        summary, colour = summaries[name], VERMILLION if name in PUBLISHED else BLUE
        reached, seconds = summary["first_epoch"] is not None, summary["seconds_to_target"]
        axes.barh(y, seconds, color=colour, alpha=1 if reached else 0.45, hatch="" if reached else "///")
        text = f" {seconds:.0f} s" if seconds >= 10 else f" {seconds:.1f} s"
        text += "" if reached else f", mean {summary['by_epoch'][-1]:.2f}%"
        axes.text(seconds, y, f"{text} (n = {summary['n']})", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xscale="log", xlim=(1, 20 * seconds), xticks=[1, 10, 100], xticklabels=["1 s", "10 s", "100 s"])
    axes.minorticks_off()
    title = "training seconds until the mean is 99.4%; hatched: full runs, mean below"
    axes.set(xlabel="logarithmic scale", title=title)
    axes.spines[["top", "right"]].set_visible(False)


def draw_overview(figure, results, weights):
    """Seconds to a mean of 99.4% of all recipes; every mistake of the net in the file `weights`."""
    figure.set(size_inches=(WIDTH, 6), layout_engine="constrained")
    above, below = figure.subplots(2, height_ratios=(3, 2))
    draw_seconds_to_target(above, results)
    images, labels = load_mnist().test
    logits = predict(load_net(weights), images, "fp32")
    wrong, columns = mistakes(labels, logits), 14
    below.set(xlim=(0, columns), ylim=(1.25 * math.ceil(len(wrong) / columns), 0), aspect="equal", autoscale_on=False)
    below.axis("off")
    below.set_title(f"all {len(wrong)} mistakes of the weights {weights.stem} on the test set: true → predicted")
    draw_answers(below, images, labels, logits, wrong, columns, "{} → {}")


def draw_reliability(figure, weights):
    """How often the net in the file `weights` is right, for groups of 100 test images by its probability."""
    figure.set(size_inches=(WIDTH, 4), layout_engine="constrained")
    net, (images, labels), axes = load_net(weights), load_mnist().test, figure.subplots()
    logits = predict(net, images, "fp32")
    right = 100.0 * (logits.argmax(1) == labels)
    axes.plot([40, 100], [40, 100], "--", color="0.45", label="as often as it says")
    for temperature, color in ((1.0, VERMILLION), (net.temperature, BLUE)):
        probabilities = 100 * (logits / temperature).softmax(1).amax(1)
        groups = probabilities.argsort().split(100)
        points = zip(*((probabilities[group].mean(), right[group].mean()) for group in groups))
        axes.plot(*points, "o", color=color, label=f"temperature {temperature:g}")
    axes.set(xlabel=f"probability of the answers of {weights.stem} (%)", ylabel="right (%)")
    axes.set(xlim=(40, 101), ylim=(40, 102))
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def draw_frontier(figure, points, public):
    """Accuracy over parameters.

    `points`: {name: (parameters, accuracies of runs)}, drawn as means with 95% intervals; `public`: dicts of
    repository, parameters, accuracy, and of how many runs it is the best.
    """
    from matplotlib.ticker import LogLocator

    figure.set(size_inches=(WIDTH, 5.2), layout_engine="constrained")
    axes = figure.subplots()
    for is_one, label in ((True, "published: best epoch of one run"), (False, "published: best of several runs")):
        rows = [row for row in public if (row["runs"] == "1") == is_one]
        x, y = [int(row["parameters"]) for row in rows], [100 - float(row["accuracy"]) for row in rows]
        axes.plot(x, y, "o", color=VERMILLION, fillstyle="full" if is_one else "none", label=label)
        for row, *place in zip(rows, x, y):  # a name makes room for a point on its right at about the same height
            near = [other for other in public if 1 < int(other["parameters"]) / place[0] < 1.25]
            rise = min((float(other["accuracy"]) - 100 + place[1] for other in near), key=abs, default=1)
            height = -2.5 if abs(rise) > 0.015 else 3 if rise < 0 else -9
            axes.annotate(row["repository"].split("/")[0], place, (5, height), textcoords="offset points", fontsize=7)
    family, plain = [], []
    for name, (parameters, accuracies) in points.items():
        low, high = interval(accuracies)
        (plain if name == "default" else family).append((parameters, 100 - (low + high) / 2, (high - low) / 2))
    for own, style, label in ((family, "o-", "ours: mean after the last epoch, 95% interval"), (plain, "s", "default")):
        axes.errorbar(*zip(*sorted(own)), fmt=style, color=BLUE, capsize=3, label=label)
    log_scale(axes, lambda error, _: f"{100 - error:g}", "test accuracy (%)")
    axes.set(xscale="log", xlabel="parameters")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(LogLocator(subs=()))
    axes.yaxis.set_major_locator(LogLocator(subs=range(1, 8)))
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
