"""train.py for torchrun, with the faults and the records that test_distributed.py asks for.

The environment variable DIE is "RANK EPOCH": this process kills itself after that epoch. RECORD is a folder: each
process writes there which images it trained on in every batch, and what it holds after every epoch.
"""

import os
import signal
import sys
from dataclasses import asdict

if __name__ == "__main__":  # as train.py does
    from experiment.cli import exit_at_once, handle_signals

    handle_signals(exit_at_once)

import torch
from experiment.processes import rank

import train
from data import TrainLoader

die = [int(number) for number in os.environ.get("DIE", "-1 0").split()]
batches, loaders = [], []
record = TrainLoader.record


def recorded(loader, losses):
    batches.append((loader.index, loader.weight))
    loaders[:] = [loader]
    record(loader, losses)


def on_epoch(history):
    if "RECORD" in os.environ:
        file = f"{os.environ['RECORD']}/{len(history.epochs)}-{rank()}.pt"
        torch.save({"batches": batches, "hardness": loaders[0].hardness, "final": asdict(history.final)}, file)
        batches.clear()
    if die == [rank(), len(history.epochs)]:
        os.kill(os.getpid(), signal.SIGKILL)


TrainLoader.record = recorded
sys.exit(train.main(on_epoch=on_epoch))
