"""Loss and accuracy of an epoch are means over its images, and a loss that is not finite ends it."""

import io
import math
import re
import sys

import pytest
import torch
import torch.nn.functional as F

from experiment.errors import DivergedError
from experiment.meter import Progress


def batches(sizes):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        labels = torch.randint(10, (size,), generator=generator)
        yield torch.randn(size, 10, generator=generator) + F.one_hot(labels, 10), labels


@pytest.mark.parametrize("steps", [1, 24, 25, 26, 60])
def test_loss_and_accuracy_equal_those_of_a_slow_loop_over_uneven_batches(steps):
    """The loss is the one that is given, here half; the curve's is that of the logits, per 25 steps."""
    sizes, losses, hits, curve = [1 + step * 7 % 32 for step in range(steps)], [], [], {}
    with Progress(steps, "title") as progress:
        for step, (logits, labels) in enumerate(batches(sizes), 1):
            progress.add(step, 0.5 / step, F.cross_entropy(logits.requires_grad_(), labels) / 2, logits, labels)
            for row, label in zip(logits.tolist(), labels.tolist()):
                losses.append(math.log(sum(map(math.exp, row))) - row[label])
                curve.setdefault(min(math.ceil(step / 25) * 25, steps), []).append(losses[-1])
                hits.append(row[label] == max(row))
        progress.flush()
    assert len(losses) == sum(sizes)
    assert progress.loss == pytest.approx(sum(losses) / len(losses) / 2, rel=1e-5)
    assert [(point["step"], point["lr"]) for point in progress.curve] == [(step, 0.5 / step) for step in curve]
    means = [sum(values) / len(values) for values in curve.values()]
    assert [point["loss"] for point in progress.curve] == pytest.approx(means, rel=1e-5)
    assert progress.accuracy == 100 * sum(hits) / len(hits)
    assert progress.lr == 0.5 / steps


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad", [1, 25, 26, 60])
def test_a_loss_that_is_not_finite_is_named_with_its_step_and_learning_rate(value, bad):
    expected = f"the loss is {value} at step {bad + 100}, learning rate {0.5 / bad:.4g}; try a lower --lr"
    with Progress(60, "title") as progress:
        with pytest.raises(DivergedError, match=f"^{re.escape(expected)}$"):
            for step, (logits, labels) in enumerate(batches([8] * 60), 1):
                loss = torch.tensor(value if step >= bad else 1.0)
                progress.add(step + 100, 0.5 / step, loss, logits, labels)
            progress.flush()
        assert progress.count <= 8 * (bad + 24)  # found within 25 steps


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Notebook(io.StringIO):
    """What ipykernel makes of stderr: no terminal, but a bar is drawn all the same."""

    __module__ = "ipykernel.iostream"


@pytest.mark.parametrize("kind", [Terminal, Notebook])
def test_the_bar_fits_a_terminal_of_80_columns_and_a_notebook(monkeypatch, kind):
    terminal = kind()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    with Progress(937, "Epoch 17/20") as progress:
        for step, (logits, labels) in enumerate(batches([2] * 50), 1):
            progress.add(step, 0.01, F.cross_entropy(logits, labels), logits, labels)
        progress.refresh()
        bar = terminal.getvalue().split("\r")[-1]
    assert len(bar) <= 80 and bar.endswith("lr=0.0100")


def test_a_bar_whose_terminal_has_gone_fails_nothing(monkeypatch):
    class Gone(Terminal):
        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    with Progress(1, "title") as progress:
        progress.refresh()
