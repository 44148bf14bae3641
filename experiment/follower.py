"""The run of the processes other than the first, which alone writes."""

import contextlib

from experiment.distributed import broadcast, lost_process
from experiment.history import History
from experiment.processes import rank
from experiment.run_folder import RunFolder


def open_run(*options):
    """A RunFolder(*options) in the first process, in each other one a Follower."""
    run = RunFolder(*options) if rank() == 0 else None
    checkpoint = broadcast(run and run.checkpoint)
    return run or Follower(checkpoint)


class Follower:
    """What a RunFolder does, without a folder: restores `checkpoint`, the first process's, and writes nothing."""

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint

    @contextlib.contextmanager
    def start(self, settings, dataset, *parts):
        history = History("holdout" if dataset.holdout else "test")
        if self.checkpoint:
            history = self.checkpoint.history
            self.checkpoint.restore(*parts)
        with lost_process():
            yield history

    def best_weights(self):
        return None

    def save_epoch(self):
        pass

    def finish(self, logits):
        pass

    def close(self):
        pass
