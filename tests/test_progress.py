"""Loss and accuracy of an epoch are means over its images, and a loss that is not finite ends it."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from experiment.errors import DivergedError
from experiment.progress import Progress


def batches(sizes):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        labels = torch.randint(10, (size,), generator=generator)
        yield torch.randn(size, 10, generator=generator) + F.one_hot(labels, 10), labels


@pytest.mark.parametrize("steps", [1, 24, 25, 26, 60])
def test_loss_and_accuracy_equal_those_of_a_slow_loop_over_uneven_batches(steps):
    sizes, losses, hits = [1 + step * 7 % 32 for step in range(steps)], [], []
    with Progress(steps, "title") as progress:
        for step, (logits, labels) in enumerate(batches(sizes), 1):
            progress.add(step, 0.5 / step, F.cross_entropy(logits.requires_grad_(), labels), logits, labels)
            for row, label in zip(logits.tolist(), labels.tolist()):
                losses.append(math.log(sum(map(math.exp, row))) - row[label])
                hits.append(row[label] == max(row))
        progress.flush()
    assert len(losses) == sum(sizes)
    assert progress.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
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
