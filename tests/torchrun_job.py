"""train.py under torchrun, with the faults and the records that test_parallel.py asks for.

Command lines between "--" are runs of one job. The environment variable DIE is "RANK EPOCH": this process kills itself
after that epoch. RECORD is a folder: each process writes there what it trained on, and what it holds after every epoch.
"""

import os
import signal
import sys
from dataclasses import asdict
from itertools import groupby

import torch
import torch.distributed as dist

import train
from experiment.parallel import ParallelRun, PartLoader

train.TrainLoader.FEWEST = 0  # as conftest.py has it
runs, batches, start = [], [], train.start  # (loader, model) of each run; (index, weight) of this epoch's batches


def start_all(argv, *options):
    for is_end, part in groupby(argv, "--".__eq__):
        if is_end:  # a batch's statistics depend on its parts: the next runs keep the first ones of BatchNorm
            torch.nn.BatchNorm2d.train = lambda self, mode=True: torch.nn.Module.train(self, False)
        else:
            start(list(part), *options)


def save(when, **values):
    if "RECORD" in os.environ:
        loader, model = runs[-1]
        values |= {"batches": batches, "hardness": loader.hardness, "model": model.module.state_dict()}
        torch.save(values, f"{os.environ['RECORD']}/{len(runs)}-{when}-{dist.get_rank()}.pt")
    batches.clear()


def on_epoch(history):
    save(len(history.epochs), final=asdict(history.final))
    if os.environ.get("DIE") == f"{dist.get_rank()} {len(history.epochs)}":
        os.kill(os.getpid(), signal.SIGKILL)


def after(method, cls, hook):
    """Let hook(result, *arguments) follow each call of the method."""
    original = getattr(cls, method)

    def call(*args):
        result = original(*args)
        hook(result, *args)
        return result

    setattr(cls, method, call)


def shared(result, run, *_):
    runs.append(result)
    end = run.end
    run.end = lambda logits: [end(logits), save("end", logits=logits)]


after("share", ParallelRun, shared)
after("record", PartLoader, lambda _, loader, index, losses: batches.append((index, loader.weight)))
train.start = start_all
sys.exit(train.main(sys.argv[1:], on_epoch=on_epoch))
