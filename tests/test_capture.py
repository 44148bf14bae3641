"""A captured training step trains as the step itself does; the graph is one for the CPU."""

import pytest
import torch
from conftest import same

from data import TrainLoader
from experiment.capture import CapturedStep
from experiment.datasets import load_digits_28x28
from experiment.progress import Progress
from experiment.settings import RECIPES, Settings
from model import Net
from train import make_optimizer, make_scheduler, make_step, train_one_epoch

SETTINGS, CPU = Settings(RECIPES["fast"]), torch.device("cpu")


class CpuGraph:
    """Fills the same output tensors at every replay, as a CUDA graph does."""

    def warm_up(self, function):
        function()

    def capture(self, function):
        self.function, self.outputs = function, function()
        return self.outputs

    def replay(self):
        for output, value in zip(self.outputs, self.function()):
            output.copy_(value)


class WrongGraph(CpuGraph):
    def replay(self):
        pass


class NoGraph(CpuGraph):
    def capture(self, function):
        raise RuntimeError("capture failed\nat some length")


def trained(graph=None, log=print):
    """(weights, hardness, momentum, losses, lr) after two epochs on the digits, each with a smaller last batch."""
    torch.manual_seed(0)
    model = Net(**SETTINGS.recipe.network)
    optimizer, loader = make_optimizer(model, SETTINGS.recipe), TrainLoader(*load_digits_28x28().train, 100)
    scheduler, losses = make_scheduler(optimizer, SETTINGS.recipe, loader.steps(2)), []
    model.train()
    step = make_step(model, optimizer, SETTINGS)
    if graph:
        step = CapturedStep(step, model, optimizer, 100, CPU, log, graph)
    for _ in range(2):
        with Progress(len(loader), "") as progress:
            train_one_epoch(step, model, loader, scheduler, SETTINGS, progress)
        losses.append(progress.loss)
    return dict(model.state_dict()), loader.hardness, optimizer.state_dict()["state"], losses, progress.lr


def test_a_captured_step_trains_bit_for_bit_as_the_step_does():
    lines = []
    assert same(trained(CpuGraph, lines.append), trained())
    assert len(lines) == 1 and lines[0].startswith("CUDA graph: warm-up and capture 0.")


def test_full_batches_alone_are_replayed():
    replays = []

    class Counted(CpuGraph):
        def replay(self):
            replays.append(self)
            super().replay()

    trained(Counted)
    assert len(set(replays)) == 2  # graphs: with and without augmentation
    assert len(replays) == 2 + 2 * (1437 // 100)  # one more each, in the check


@pytest.mark.parametrize(
    ("graph", "reason"), [(WrongGraph, "it computes something else than the step"), (NoGraph, "capture failed")]
)
def test_a_graph_that_fails_or_computes_something_else_is_not_used(graph, reason):
    lines = []
    assert same(trained(graph, lines.append), trained())
    assert lines == [f"CUDA graph: not used ({reason})"]
