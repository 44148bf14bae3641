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
from experiment.parallel import PartLoader, ParallelRun

die = [int(number) for number in os.environ.get("DIE", "-1 0").split()]
runs, batches = [], []  # (loader, model) of each run so far; (index, weight) of each batch of this epoch
start, record, share, end = train.start, PartLoader.record, ParallelRun.share, ParallelRun.end


def start_all(argv, *options):
    for is_end, part in groupby(argv, "--".__eq__):
        if is_end:  # a batch's statistics depend on its parts: the next runs keep the first ones of BatchNorm
            torch.nn.BatchNorm2d.train = lambda self, mode=True: torch.nn.Module.train(self, False)
        else:
            start(list(part), *options)


def recorded_share(*args):
    runs.append(share(*args))
    return runs[-1]


def recorded_batch(loader, index, losses):
    batches.append((index, loader.weight))
    record(loader, index, losses)


def save(when, **values):
    if "RECORD" in os.environ:
        loader, model = runs[-1]
        values |= {"batches": batches, "hardness": loader.hardness, "model": model.module.state_dict()}
        torch.save(values, f"{os.environ['RECORD']}/{len(runs)}-{when}-{dist.get_rank()}.pt")
    batches.clear()


def on_epoch(history):
    save(len(history.epochs), final=asdict(history.final))
    if die == [dist.get_rank(), len(history.epochs)]:
        os.kill(os.getpid(), signal.SIGKILL)


def recorded_end(run, logits):
    save("end", logits=logits)
    end(run, logits)


train.start, PartLoader.record = start_all, recorded_batch
ParallelRun.share, ParallelRun.end = recorded_share, recorded_end
sys.exit(train.main(sys.argv[1:], on_epoch=on_epoch))
