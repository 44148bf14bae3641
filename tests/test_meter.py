"""Loss and accuracy of an epoch are means over its images, and a loss that is not finite ends it."""

import io
import math
import re
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tqdm import tqdm

from experiment import meter as meter_module
from experiment.errors import DivergedError
from experiment.meter import Meter, busy, progress


class OnGpu(torch.Tensor):
    """A tensor on the CPU that says it is on a GPU, of which only `tolist` can read values."""

    device = torch.device("cuda")
    item = cpu = __bool__ = __int__ = __float__ = None


def batches(sizes):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        labels = torch.randint(10, (size,), generator=generator)
        logits = torch.randn(size, 10, generator=generator) + F.one_hot(labels, 10)
        yield F.cross_entropy(logits, labels, reduction="none"), logits, labels


@pytest.mark.parametrize("kind", [torch.Tensor, OnGpu])
@pytest.mark.parametrize("steps", [1, 24, 25, 26, 60])
def test_loss_and_accuracy_equal_those_of_a_slow_loop_over_uneven_batches(steps, kind):
    sizes, losses, hits, curve, meter = [1 + step * 7 % 32 for step in range(steps)], [], [], {}, Meter(100)
    for step, (of_batch, logits, labels) in enumerate(batches(sizes), 1):
        meter.add(0.5 / step, *(tensor.as_subclass(kind) for tensor in (of_batch, logits, labels)))
        assert meter.step == 100 + step and len(meter.pending) == step % 25
        for row, label in zip(logits.tolist(), labels.tolist()):
            losses.append(math.log(sum(map(math.exp, row))) - row[label])
            curve.setdefault(min(math.ceil(step / 25) * 25, steps), []).append(losses[-1])
            hits.append(row[label] == max(row))
    score = meter.score
    assert (score.correct, score.count, meter.lr) == (sum(hits), sum(sizes), 0.5 / steps)
    assert score.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert [(point["step"], point["lr"]) for point in meter.curve] == [(100 + step, 0.5 / step) for step in curve]
    means = [sum(values) / len(values) for values in curve.values()]
    assert [point["loss"] for point in meter.curve] == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad", [1, 25, 26, 60])
def test_a_loss_that_is_not_finite_is_named_with_its_step_and_learning_rate(value, bad):
    expected, meter = f"the loss is {value} at step {bad + 100}, learning rate {0.5 / bad:.4g}; try", Meter(100)
    with pytest.raises(DivergedError, match=f"^{re.escape(expected)} a lower --lr$"):
        for step, (losses, logits, labels) in enumerate(batches([8] * 60), 1):
            meter.add(0.5 / step, losses * (value if step >= bad else 1), logits, labels)
        meter.read()
    assert meter.step <= 100 + bad + 24  # found within 25 steps


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Gone(Terminal):
    def write(self, text):
        raise OSError(5, "Input/output error")


# What ipykernel makes of stderr: no terminal, but a bar is drawn all the same.
Notebook = type("Notebook", (io.StringIO,), {"__module__": "ipykernel.iostream"})


@pytest.mark.parametrize("stderr", [Terminal(), Notebook(), io.StringIO(), Gone(), None], ids=lambda file: type(file))
def test_a_bar_of_80_columns_shows_the_whole_run_where_it_can_be_seen(monkeypatch, stderr):
    """In the last but three of twenty epochs; and what else takes time is named there."""
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(meter_module, "tqdm", partial(tqdm, ncols=80, mininterval=0, miniters=1))  # draws every step
    given, meter = list(batches([2] * 101)), Meter(1616)
    said = [str(meter)]
    for expected, batch in zip(given, progress(given, 2020, "Epoch 17/20", meter), strict=True):
        assert batch is expected
        meter.add(0.01, *batch)
        said.append(str(meter))
    busy("Drawing").close()
    if type(stderr) in (Terminal, Notebook):
        *frames, drawing = filter(str.strip, stderr.getvalue().split("\r"))
        for step, (frame, text) in enumerate(zip(frames, said, strict=True), 1616):
            assert frame.startswith(f"Epoch 17/20: {step / 20.2:3.0f}%|") and frame.endswith(f" left, {text}")
        assert {(len(frame), frame.rindex("|")) for frame in frames} == {(80, frames[0].rindex("|"))}
        losses, logits, labels = given[0]
        figures = f"loss {losses.mean():6.4f}, {50 * (logits.argmax(1) == labels).sum():6.2f}%, lr 0.0100"
        assert {*said[1:25]} == {figures} and drawing == "Drawing …"
    elif type(stderr) is io.StringIO:
        assert stderr.getvalue() == ""
