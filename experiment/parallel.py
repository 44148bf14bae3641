"""Several processes that train one model under torchrun: each draws the same batches, and trains on its part of them.

DistributedDataParallel averages the gradients. What the first one evaluates counts, with its statistics of BatchNorm.
"""

import contextlib
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from data import TrainLoader
from experiment.errors import DivergedError, ExperimentError, SettingError, reason
from experiment.history import History, Score
from experiment.run_folder import RunFolder


@contextlib.contextmanager
def group():
    """Join the processes that torchrun started, and leave them at the end; only one on each machine may print."""
    try:
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank < gpus:
            torch.cuda.set_device(local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(minutes=5))
    except (KeyError, ValueError, RuntimeError) as error:
        raise SettingError(f"no other processes ({reason(error)}); use torchrun, or unset WORLD_SIZE") from error
    out, err = (None, None) if local_rank else (sys.stdout, sys.stderr)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), lost_process():
            yield
    except (ExperimentError, KeyboardInterrupt) as error:
        if local_rank and not isinstance(error, DivergedError):  # of which the others may not know
            raise SystemExit(getattr(error, "exit_code", 130)) from error
        raise
    finally:  # after an error too: threads of gloo that still run at exit may abort the process
        dist.destroy_process_group()


@contextlib.contextmanager
def lost_process():
    """Turn the several errors of a broken connection into an ExperimentError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)):
            raise
        what = f"process {dist.get_rank()} lost the others, or waited 5 minutes for them: look at their errors"
        raise ExperimentError(f"{what} ({reason(error)})") from error


def gathered(value):
    """The list of the `value` of every process, any objects that can be pickled."""
    dist.all_gather_object(values := [None] * dist.get_world_size(), value)
    return values


class PartLoader(TrainLoader):
    """A TrainLoader of this process's part of each batch, a fraction `weight` of its images; sizes differ by one."""

    def __init__(self, loader):
        vars(self).update(vars(loader))
        if min(n // self.count_batches(n) for n in (self.first_count, self.later_count)) < dist.get_world_size():
            raise SettingError(f"--batch-size {self.batch_size}: expected an image for each process in every batch")

    def indices(self, epoch):
        seed = gathered(torch.randint(2**62, ()).item())[0]  # of the first, whose generator the checkpoint holds
        torch.manual_seed(seed)
        selected, self.own = self.select(epoch), []
        torch.manual_seed(seed + 1 + dist.get_rank())  # other augmentation and dropout in each process
        for batch in selected.tensor_split(self.count_batches(len(selected))):
            self.own.append(batch.tensor_split(dist.get_world_size())[dist.get_rank()])
            self.weight = len(self.own[-1]) / len(batch)
            yield self.own[-1]


def weighted_mean(loader, bucket):
    """Communication hook of DistributedDataParallel: one round of messages, where an all-reduce has two."""
    own = bucket.buffer() * loader.weight
    gradients = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    return dist.all_gather(gradients, own, async_op=True).get_future().then(lambda _: torch.stack(gradients).sum(0))


class ParallelRun:
    """What a RunFolder does, in the folder of the first process alone."""

    def __init__(self, *options):
        self.folder = RunFolder(*options, processes=dist.get_world_size()) if dist.get_rank() == 0 else None
        self.checkpoint, self.ended = gathered(self.folder and (self.folder.checkpoint, self.folder.ended))[0]
        self.end = self.folder.end if self.folder else lambda logits: None

    def share(self, settings, dataset, loader, net):
        """(PartLoader, DistributedDataParallel); SettingError if the processes differ in settings or data."""
        first, *others = gathered({**vars(settings), **vars(settings.recipe), "data": dataset.sha256})
        for rank, found in enumerate(others, 1):
            for name in first.keys() - {"recipe", "data_dir", "threads"}:  # the last two may differ between machines
                if found[name] != first[name]:
                    what = f"found {found[name]}, expected {first[name]} as in process 0"
                    raise SettingError(f"process {rank} was started with another {name}: {what}; start all alike")
        if settings.device != "cpu" and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > torch.cuda.device_count():
            raise SettingError(f"--device {settings.device}: expected one for each process; use --device cpu")
        self.loader = PartLoader(loader)
        model = torch.nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)
        model.broadcast_buffers = False  # the name of the argument depends on torch's version
        model.register_comm_hook(self.loader, weighted_mean)
        return self.loader, model

    @contextlib.contextmanager
    def open(self, settings, dataset, *parts):
        if self.folder:
            with self.folder.open(settings, dataset, *parts) as history, lost_process():
                yield history
            return
        self.history = self.checkpoint.history if self.checkpoint else History("holdout" if dataset.holdout else "test")
        if self.checkpoint:
            self.checkpoint.restore(*parts)
        yield self.history

    def add_epoch(self, training, evaluation, *rest):
        own, hardness = torch.cat(self.loader.own), self.loader.hardness
        parts, evaluations, indices, values = zip(*gathered((training, evaluation, own.cpu(), hardness[own].cpu())))
        hardness[torch.cat(indices)] = torch.cat(values).to(hardness.device)
        count, correct = sum(part.count for part in parts), sum(part.correct for part in parts)
        training = Score(sum(part.loss * part.count for part in parts) / count, correct, count)
        (self.folder.add_epoch if self.folder else self.history.add)(training, evaluations[0], *rest)

    def best_weights(self):
        return gathered(self.folder and self.folder.best_weights())[0]
