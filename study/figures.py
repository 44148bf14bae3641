"""The pictures of the READMEs, drawn from benchmarks. matplotlib is imported late, because that takes a second."""

import itertools
import math

from experiment.checkpoint import load_net
from experiment.datasets import load_mnist
from experiment.plots import BLUE, VERMILLION, draw_answers, mistakes, png
from study.published import PUBLISHED
from study.results import TARGET, summarise
from train import predict

OURS, OTHERS = BLUE, VERMILLION


def summaries(results):
    """(recipe, its summary, colour) of those `results` that have runs."""
    for result in (result for result in results if result["runs"]):
        yield result["recipe"], summarise(result["runs"]), OTHERS if result["recipe"] in PUBLISHED else OURS


def draw_seconds_to_target(axes, results):
    """A bar per recipe: training seconds until its mean accuracy is at least 99.4%; hatched: all, it never is."""
    rows = sorted(summaries(results), key=lambda row: row[1]["seconds_to_target"])
    for y, (_, s, colour) in enumerate(rows):
        reached, seconds = s["first_epoch"] is not None, s["seconds_to_target"]
        axes.barh(y, seconds, color=colour, alpha=1 if reached else 0.45, hatch="" if reached else "///")
        text = f" {seconds:.0f} s" if seconds >= 10 else f" {seconds:.1f} s"
        text += "" if reached else f", not reached: {s['by_epoch'][-1]:.2f}%"
        axes.text(seconds, y, f"{text} (n = {s['n']})", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.invert_yaxis()
    axes.set(xscale="log", xlim=(1, 20 * seconds), xticks=[1, 10, 100], xticklabels=["1 s", "10 s", "100 s"])
    axes.minorticks_off()
    axes.set_xlabel("logarithmic scale")
    axes.set_title("training seconds to a mean of 99.4% over n runs; hatched: not reached")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def accuracy_over_seconds(results):
    """PNG bytes: mean accuracy after each epoch over training seconds; the results should be of one session."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes, rows = figure.subplots(), list(summaries(results))
    for (name, s, colour), marker in zip(rows, itertools.cycle("o^sDvP*X<>")):
        style = {"color": colour, "linestyle": "-" if colour == OURS else ":", "marker": marker, "markersize": 4}
        axes.plot(s["seconds"], s["by_epoch"], label=f"{name} (n = {s['n']})", **style)
    axes.axhline(TARGET, color="grey", linestyle="--", linewidth=1)
    longest = max(s["seconds"][-1] for _, s, _ in rows)
    axes.set(xscale="log", xlim=(1, 1.3 * longest), ylim=(98.8, 99.75))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set(xlabel="training seconds", ylabel="mean test accuracy (%)")
    axes.set(xticks=[1, 10, 100, 1000], xticklabels=["1", "10", "100", "1000"])
    axes.grid(alpha=0.3)
    return png(figure)


def overview(results, weights):
    """PNG bytes: seconds to a mean of 99.4% of all recipes; every mistake of the net in the file `weights`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_seconds_to_target(left, results)
    images, labels = load_mnist().test
    logits = predict(load_net(weights), images, "fp32")
    wrong, columns = mistakes(labels, logits), 9
    right.set(xlim=(0, columns), ylim=(1.25 * math.ceil(len(wrong) / columns), 0), aspect="equal", autoscale_on=False)
    right.axis("off")
    right.set_title(f"all {len(wrong)} mistakes of {weights.stem} on {len(labels):,} test images: true → predicted")
    draw_answers(right, images, labels, logits, wrong, columns, "{} → {}")
    return png(figure)
