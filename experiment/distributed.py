"""Several processes that train one model under torchrun: who is who, the process group, what the processes exchange.

Each process holds all images, trains on its part of every batch, and evaluates its part of the evaluated images.
DistributedDataParallel averages the gradients. In a single process nothing here does anything, and torch.distributed
is not used.
"""

import contextlib
from datetime import timedelta

import torch

from data import Split, TrainLoader
from experiment.errors import ProcessError, SettingError
from experiment.history import Evaluation
from experiment.processes import check_variables, local_rank, rank, world_size

TIMEOUT = timedelta(minutes=5)  # of a process that the others wait for


@contextlib.contextmanager
def process_group(device):
    """Join the other processes of the job, each with a GPU unless `device` is "cpu", and leave them at the end."""
    check_variables()
    if world_size() == 1:
        yield
        return
    import torch.distributed as dist

    cuda = device != "cpu" and torch.cuda.is_available()
    if not dist.is_available() or not dist.is_gloo_available() or (cuda and not dist.is_nccl_available()):
        raise SettingError("this build of torch lacks gloo or NCCL; train in a single process, without torchrun")
    if cuda and local_rank() >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise SettingError(f"found {count} GPUs, expected one for each process; use --nproc-per-node {count}")
    if cuda:
        torch.cuda.set_device(local_rank())
    with lost_process():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:  # after an error too: threads of gloo that still run at exit may abort the process
        dist.destroy_process_group()


@contextlib.contextmanager
def lost_process():
    """Turn the several errors of a broken connection into a ProcessError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        import torch.distributed as dist

        text = str(error)
        if world_size() == 1 or not (isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text):
            raise
        reason = " ".join(text.split())[:200]
        raise ProcessError(
            f"process {rank()} lost the others, or waited {TIMEOUT.seconds} s for them: look at their errors ({reason})"
        ) from error


@contextlib.contextmanager
def first_process_first():
    """Let one process of each machine do what follows, such as a download, before the others."""
    barrier = (lambda: None) if world_size() == 1 else torch.distributed.barrier
    if local_rank():
        barrier()
    yield
    if not local_rank():
        barrier()


def broadcast(value):
    """The `value` that the first process holds, any object that can be pickled."""
    if world_size() == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def check_alike(settings, dataset):
    """Raise a SettingError if a process has other settings or data than the first."""
    if world_size() == 1:
        return
    values = {**vars(settings), **vars(settings.recipe), "data": dataset.sha256, "torch": str(torch.__version__)}
    for name in ("recipe", "data_dir", "threads"):  # the last two may differ from machine to machine
        del values[name]
    everyone = [None] * world_size()
    torch.distributed.all_gather_object(everyone, values)
    for other, found in enumerate(everyone):
        for name, expected in everyone[0].items():
            if found[name] != expected:
                raise SettingError(
                    f"process {other} was started with another {name}: found {found[name]}, expected {expected} as in "
                    "process 0; start all with the same command and data"
                )


def total(*numbers):
    """The sums over all processes of each of the `numbers`."""
    if world_size() == 1:
        return numbers
    sums = torch.tensor(numbers, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    return [type(number)(value) for number, value in zip(numbers, sums.tolist())]


def combined(evaluation):
    """The Evaluation of all images from those of the processes' parts."""
    if world_size() == 1:
        return evaluation
    loss, correct, count = total(evaluation.loss * evaluation.count, evaluation.correct, evaluation.count)
    return Evaluation(loss / count, correct, count)


def part(split):
    """The images and labels of `split` that this process evaluates."""
    if len(split.labels) < world_size():
        raise SettingError(
            f"found {len(split.labels)} images to evaluate, expected one for each of {world_size()} processes"
        )
    return Split(split.images[rank() :: world_size()], split.labels[rank() :: world_size()])


def parallel(model):
    """`model` so wrapped that backward averages the gradients over all processes."""
    if world_size() == 1:
        return model
    wrapped = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = False  # not as an argument, whose name depends on torch's version
    if wrapped.device.type == "cpu":
        wrapped.register_comm_hook(None, gathered_mean)
    return wrapped


def gathered_mean(state, bucket):
    """Communication hook of DistributedDataParallel: one round of messages, where an all-reduce has two."""
    gradients = [torch.empty_like(bucket.buffer()) for _ in range(world_size())]
    torch.distributed.all_gather(gradients, bucket.buffer())
    mean = torch.futures.Future()
    mean.set_result(torch.stack(gradients).mean(0))
    return mean


def average_buffers(model):
    """Average the running statistics of BatchNorm, which each process computes from its part of the batches."""
    if world_size() == 1:
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    torch.distributed.all_reduce(flat)
    means = (flat / world_size()).split([buffer.numel() for buffer in buffers])
    for buffer, mean in zip(buffers, means):
        buffer.copy_(mean.view_as(buffer))


def train_loader(split, recipe):
    """The TrainLoader of `recipe`; with several processes that of this process's part of each batch."""
    loader = (TrainLoader if world_size() == 1 else PartLoader)(
        *split, recipe.batch_size, recipe.first_share, recipe.later_share
    )
    smallest = min(count // loader.batches(count) for count in (loader.first_count, loader.later_count))
    if smallest < world_size():
        raise SettingError(
            f"--batch-size {recipe.batch_size}: found batches of {smallest} images, expected at least one image for "
            f"each of the {world_size()} processes; use larger batches"
        )
    return loader


class PartLoader(TrainLoader):
    """The part of each batch that this process trains on: every process draws the same batches, and takes its own part.

    Batches differ in size by at most one image, so that each process has a part of the last one. `weight` makes the
    mean over the processes that over the images. The hardness of an image is relative to its part of a batch; after
    an epoch all processes have that of all images.
    """

    def epoch_batches(self):
        seed = broadcast(torch.randint(2**62, ()).item())  # drawn by the first, whose generator the checkpoint holds
        torch.manual_seed(seed)
        indices = self.epoch_indices()
        torch.manual_seed(seed + 1 + rank())  # other augmentation and dropout in each process
        own = []
        for batch in indices.tensor_split(len(self)):
            own.append(batch.tensor_split(world_size())[rank()])
            self.weight = len(own[-1]) * world_size() / len(batch)
            yield own[-1]
        own, hardness = torch.cat(own), torch.zeros_like(self.hardness)
        hardness[own] = self.hardness[own]
        torch.distributed.all_reduce(hardness)
        self.hardness[indices] = hardness[indices]
