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
from experiment.parallel import ParallelRun

train.TrainLoader.FEWEST = 0  # as conftest.py has it
runs, batches, start = [], [], train.start  # of this epoch's batches (index, weight)


class RecordedRun(ParallelRun):
    def share(self, *parts):
        self.loader, self.model = super().share(*parts)
        record, end = self.loader.record, self.end
        self.loader.record = lambda index, losses: [record(index, losses), batches.append((index, self.loader.weight))]
        self.end = lambda logits: [end(logits), save("end", logits=logits)]
        runs.append(self)
        return self.loader, self.model


def save(when, **values):
    if "RECORD" in os.environ:
        values |= {"hardness": runs[-1].loader.hardness, "model": runs[-1].model.module.state_dict()}
        torch.save(values | {"batches": batches}, f"{os.environ['RECORD']}/{len(runs)}-{when}-{dist.get_rank()}.pt")
    batches.clear()


def on_epoch(history):
    save(len(history.epochs), final=asdict(history.final))
    if os.environ.get("DIE") == f"{dist.get_rank()} {len(history.epochs)}":
        os.kill(os.getpid(), signal.SIGKILL)


def start_all(argv, on_epoch, _):
    for is_end, part in groupby(argv, "--".__eq__):
        if is_end:  # a batch's statistics depend on its parts: the next runs keep the first ones of BatchNorm
            torch.nn.BatchNorm2d.train = lambda self, mode=True: torch.nn.Module.train(self, False)
        else:
            start(list(part), on_epoch, RecordedRun)


train.start = start_all
sys.exit(train.main(sys.argv[1:], on_epoch=on_epoch))
