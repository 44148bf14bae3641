"""A training step as a CUDA graph: one launch replays its hundreds of kernels, each too small to keep a GPU busy.

See pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. The tests run it with a stand-in for the graph on a CPU.
"""

import time

import torch


class CudaGraph:
    """Records what a function without arguments launches on the GPU, and replays it on the same tensors."""

    def warm_up(self, function):
        """Run `function` a few times, so that libraries choose their kernels and allocate before the capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(stream)

    def capture(self, function):
        """Record `function`; returns what it returns, tensors that every replay fills anew."""
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            return function()

    def replay(self):
        self.graph.replay()


class CapturedStep:
    """Calls `step(images, labels, augmented)` by a graph for full batches of `batch_size`, directly for others.

    `step` is one of train.make_step for `model` and `optimizer`. Both are left as they were found. If the graph cannot
    be captured, or computes something else than `step` does, every batch goes to `step`; `log` is told.
    """

    def __init__(self, step, model, optimizer, batch_size, device, log, graph=CudaGraph):
        self.step, self.optimizer, self.graphs = step, optimizer, {}
        self.parts = [*model.parameters(), *model.buffers()]
        began, before = time.perf_counter(), self.state(device)
        self.images = torch.rand(batch_size, 1, 28, 28, device=device)
        self.labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.lr = torch.zeros((), device=device)
        try:
            for augmented in (True, False):
                self.graphs[augmented] = self.captured(augmented, graph(), before, device)
            log(f"CUDA graph: warm-up and capture {time.perf_counter() - began:.1f} s")
        except RuntimeError as error:
            self.graphs = {}
            log(f"CUDA graph: not used ({str(error).splitlines()[0]})")
        self.restore(before, device)

    def __call__(self, images, labels, augmented, weight=1.0):
        if augmented not in self.graphs or images.shape != self.images.shape:
            return self.step(images, labels, augmented, weight)
        graph, outputs = self.graphs[augmented]
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.lr.fill_(self.optimizer.param_groups[0]["lr"])
        graph.replay()
        return outputs

    def captured(self, augmented, graph, before, device):
        """(`graph` of the step, its outputs), after a check that it trains as the step itself does."""

        groups = self.optimizer.param_groups

        def function():
            rates = [group["lr"] for group in groups]
            for group in groups:
                group["lr"] = self.lr  # read at every replay, where a number would be fixed for good
            try:
                return self.step(self.images, self.labels, augmented)
            finally:
                for group, rate in zip(groups, rates):
                    group["lr"] = rate

        self.lr.fill_(groups[0]["lr"])
        graph.warm_up(function)
        outputs, results = graph.capture(function), []
        for run in (graph.replay, function):
            self.restore(before, device)
            run()
            results.append([part.detach().clone() for part in self.parts])
        if not all(torch.allclose(*pair, rtol=0.01, atol=1e-4) for pair in zip(*results)):
            raise RuntimeError("it computes something else than the step")
        return graph, outputs

    def state(self, device):
        """Copies of all that a step changes: weights, statistics, momentum, random numbers."""
        momentum = {key: value["momentum_buffer"].clone() for key, value in self.optimizer.state.items()}
        random = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
        return [part.detach().clone() for part in self.parts], momentum, random

    @torch.no_grad()
    def restore(self, state, device):
        """Put the copies back, in place: a graph knows its tensors by their addresses."""
        parts, momentum, random = state
        for part, value in zip(self.parts, parts):
            part.copy_(value)
        for key, value in self.optimizer.state.items():  # at first there is no momentum, which is the same as zeros
            value["momentum_buffer"].copy_(momentum.get(key, torch.zeros(())))
        torch.set_rng_state(random) if device.type == "cpu" else torch.cuda.set_rng_state(random, device)
