"""Train a CNN with fewer than 20,000 parameters to 99.4% on MNIST.

    python train.py                               until an epoch ends with 99.4%, or for all epochs
    python train.py --recipe best --target none   all epochs, for the highest accuracy
    python train.py --dataset digits              offline, where MNIST is not available
    python train.py --resume runs/NAME            continue an interrupted run; on a CPU, bit for bit
    python train.py --evaluate runs/NAME          test its best checkpoint, or trained weights: --evaluate best
    torchrun --nproc-per-node 2 train.py          one model in several processes, one per GPU if there are any

Each new run writes log.txt, metrics.json, four pictures, last.pt and best.pt into its own folder.
"""

import os
import sys
from dataclasses import replace

import experiment  # sets OpenMP's environment variables, which torch reads when it is imported

# isort: split
import torch
import torch.nn.functional as F

from data import TrainLoader, random_affine
from experiment.checkpoint import Checkpoint
from experiment.cli import command, earlier_settings, new_settings, parse_args
from experiment.datasets import load_data
from experiment.history import Score
from experiment.machine import set_up, synchronized_time, without_compiler
from experiment.meter import Meter, busy, progress
from experiment.run_folder import RunFolder
from experiment.settings import Settings
from model import Net


def train(settings, run=None, on_epoch=None):
    """Train according to `settings` until the target is met or the last epoch ends; returns the History.

    Every epoch is evaluated on the held-out images, or on the test set if none are held out. `run` is the RunFolder to
    write to, by default a new one under runs/; one made with `resume` continues its run. `on_epoch(history)` is called
    after every epoch. From a notebook: `train(Settings(RECIPES["fast"]))`, both from experiment.settings.
    """
    run = run or RunFolder()
    settings = set_up(settings)  # with device and threads decided
    recipe, device = settings.recipe, settings.device
    dataset = load_data(settings).to(device)

    torch.manual_seed(settings.seed)
    net = Net(**recipe.network).to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(net, recipe)
    loader = TrainLoader(*dataset.train, **recipe.selection)
    scheduler = make_scheduler(optimizer, recipe, loader.steps(recipe.epochs))
    # `model` is `net`; under torchrun it wraps `net`, and the loader yields only this process's part of every batch.
    loader, model = run.share(settings, dataset, loader, net)

    # On resume, `open` restores all of these objects and the random number generators, as of the last complete epoch:
    # `add_epoch` saves them to last.pt, so that Ctrl-C loses only the epoch that it interrupts.
    with run.open(settings, dataset, net, optimizer, scheduler, loader) as history:
        logits = None  # until an epoch has been evaluated
        while not history.is_over(recipe.epochs, settings.target):
            began = synchronized_time(device)
            meter = train_one_epoch(model, loader, optimizer, scheduler, settings, epoch=len(history.epochs) + 1)
            seconds = synchronized_time(device) - began
            logits = predict(model, dataset.evaluation.images, settings.precision)
            evaluation = score(logits, dataset.evaluation.labels)
            run.add_epoch(meter.score, evaluation, meter.lr, meter.curve, seconds)
            if on_epoch:
                on_epoch(history)
        if dataset.holdout:  # test once, with the weights selected on the held-out images
            net.load_state_dict(run.best_weights())
            logits = predict(model, dataset.test.images, settings.precision)
            history.test = score(logits, dataset.test.labels)
        elif logits is None:  # resumed after the last epoch
            logits = predict(model, dataset.test.images, settings.precision)
        run.end(logits)  # of the test images: by the best weights if images are held out, else by the last ones
    return history


def train_one_epoch(model, loader, optimizer, scheduler, settings, epoch):
    """Train `model` on the batches that `loader` selects for `epoch`, counted from 1; returns the epoch's Meter."""
    recipe, all_steps = settings.recipe, loader.steps(settings.recipe.epochs)
    meter = Meter(loader.steps(epoch - 1))  # meter.step counts from the run's start
    model.train()
    for index, images, labels in progress(loader.batches(epoch), all_steps, f"Epoch {epoch}/{recipe.epochs}", meter):
        if meter.step < recipe.augment_until * all_steps:  # later ones see plain images
            images = random_affine(images, **recipe.augmentation)
        logits = forward(model, images, settings.precision)
        losses, smoothed_losses = cross_entropy(logits, labels, recipe.label_smoothing)  # logged, trained on
        optimizer.zero_grad()
        smoothed_losses.mean().backward()
        optimizer.step()
        loader.record(index, smoothed_losses.detach())  # by which later epochs select their images
        meter.add(scheduler.get_last_lr()[0], losses.detach(), logits.detach(), labels)
        scheduler.step()
    return meter


def forward(model, images, precision):
    """Float logits (N, 10) of `model`, computed in `precision`, "fp32" or "bf16"."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return model(images).float()


def cross_entropy(logits, labels, label_smoothing):
    """Losses (N,) of `logits` (N, 10) for `labels` (N,): plain, and with label smoothing (arXiv:1512.00567)."""
    log_probabilities = logits.log_softmax(1)
    losses = F.nll_loss(log_probabilities, labels, reduction="none")
    uniform = -log_probabilities.sum(1) * (label_smoothing / logits.shape[1])
    return losses, (1 - label_smoothing) * losses + uniform


@torch.inference_mode()
def predict(model, images, precision):
    """Float logits (N, 10) of `model` for images (N, 1, 28, 28), in evaluation mode."""
    model.eval()
    with busy("Evaluating"):
        return torch.cat([forward(model, batch, precision) for batch in images.split(1000)])


def score(logits, labels):
    """The Score of `logits` (N, 10) for `labels` (N,)."""
    return Score(F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).sum().item(), len(labels))


def make_optimizer(model, recipe):
    """SGD with Nesterov momentum; weight decay on convolution and linear weights only."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    # The scheduler overwrites lr before the first step.
    return without_compiler(torch.optim.SGD)(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True, fused=True)


def make_scheduler(optimizer, recipe, steps):
    """One cycle over all `steps` of a run: up from lr / 25 to lr, then down to almost zero (arXiv:1708.07120)."""
    warmup = recipe.warmup if recipe.warmup * steps > 1 else 0.0  # OneCycleLR divides by zero if it is one step: none
    total_steps = max(2, steps)  # a cycle of a single step would be its end, where the rate is almost zero
    options = {"pct_start": warmup, "anneal_strategy": "linear", "cycle_momentum": False}
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps, **options)


def evaluate(source, given):
    """Print loss, accuracy and accuracy per class on the test set of the net that `source` names, as for load_net."""
    from experiment.weights import find_net, load_net  # needed here alone

    file, settings, about = find_net(source), Settings(), "trained weights"
    if file.suffix == ".pt":
        checkpoint = Checkpoint.load(file)
        about = f"epoch {len(checkpoint.history.epochs)} of a run on {checkpoint.dataset}"
        settings = replace(checkpoint.settings, device="auto", threads=None)  # the run's may be of another machine
    may_change = {"dataset", "data_dir", "holdout", "device", "threads", "precision"}
    settings, net = set_up(earlier_settings(settings, given, may_change)), load_net(file)
    dataset = load_data(settings, for_training=False).to(settings.device)
    images, labels = dataset.test
    print(f"Net: {file}, {about}\nData: {dataset.name}, {len(labels)} test images")
    logits = predict(net.to(settings.device, memory_format=torch.channels_last), images, settings.precision)
    print(score(logits, labels).line("test"))
    for label in labels.unique().tolist():
        hits = logits[labels == label].argmax(1) == label
        print(f"Class {label}: {hits.sum()}/{len(hits)} ({100 * hits.float().mean():.2f}%)")


def start(argv, on_epoch, make_run=RunFolder):
    """Do what the command line asks for, in the run that make_run(out, resume, plots, began) makes."""
    options, given = parse_args(__doc__, argv)  # given: the settings named on the command line
    if options.evaluate:
        evaluate(options.evaluate, given)
        return
    run = make_run(options.out, options.resume, options.plots, experiment.STARTED if argv is None else None)
    if options.resume:
        settings = earlier_settings(run.checkpoint.settings, given, may_change={"data_dir", "target"})
        if run.ended and run.checkpoint.history.is_over(settings.recipe.epochs, settings.target):
            epochs = f"{len(run.checkpoint.history.epochs)} of {settings.recipe.epochs} epochs"
            print(f"{options.resume} is finished: {epochs} (--target none: all)")
            return
    else:
        settings = new_settings(given)
    train(settings, run, on_epoch)


@command
def main(argv=None, on_epoch=None):
    """Run the command line; `command` turns Ctrl-C and known errors into one line and an exit code."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        start(argv, on_epoch)
    else:  # by torchrun
        from experiment.parallel import ParallelRun, group

        with group():
            start(argv, on_epoch, ParallelRun)


if __name__ == "__main__":
    sys.exit(main())
