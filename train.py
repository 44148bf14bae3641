"""Train a CNN with fewer than 20,000 parameters to 99.4% on MNIST.

    python train.py                               until an epoch ends with 99.4%, or for all epochs
    python train.py --recipe best --target none   all epochs, for the highest accuracy
    python train.py --dataset digits              offline, where MNIST is not available
    python train.py --resume runs/NAME            continue an interrupted run, bit for bit
    python train.py --evaluate runs/NAME/best.pt  test a checkpoint
    torchrun --nproc-per-node 2 train.py          one model in several processes, one per GPU if there are any

Each new run writes log.txt, metrics.json, four pictures, last.pt and best.pt into its own folder.
"""

import contextlib
import sys

if __name__ == "__main__":  # so that Ctrl-C prints one line even during the imports
    from experiment.command import exit_at_once, handle_signals

    handle_signals(exit_at_once)

import torch
import torch.nn.functional as F

from data import Loader, RandomAffine
from experiment import distributed, plots
from experiment.arguments import earlier_settings, new_settings, parse_args
from experiment.capture import CapturedStep
from experiment.checkpoint import Checkpoint
from experiment.command import command, echo
from experiment.datasets import load_data
from experiment.follower import open_run
from experiment.history import Evaluation
from experiment.machine import resolve, synchronized_time
from experiment.processes import rank
from experiment.progress import Progress
from model import Net

EVAL_BATCH = 1000


def train(settings, run=None, on_epoch=None):
    """Train according to `settings` until the target is met or the last epoch ends; returns the History.

    Every epoch is evaluated on the held-out images, or on the test set if none are held out. The best epoch becomes
    best.pt; the run stops once an epoch reaches `settings.target`. `run` is the RunFolder to write to, by default a new
    one under runs/; one opened with `resume` continues its run. `on_epoch(history)` is called after every epoch. Under
    torchrun this is one of several processes, each with its part of every batch. From a notebook:
    `train(Settings(RECIPES["fast"]))`, both from experiment.settings.
    """
    run, settings = run or open_run(), resolve(settings)
    recipe, device = settings.recipe, torch.device(settings.device)
    with distributed.first_process_first():
        dataset = load_data(settings).to(device)
    distributed.check_alike(settings, dataset)
    train_loader = distributed.train_loader(dataset.train, recipe)
    eval_loader = Loader(*distributed.part(dataset.evaluation), EVAL_BATCH)

    torch.manual_seed(settings.seed)
    model = Net(**recipe.network).to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, recipe)
    scheduler = make_scheduler(optimizer, recipe, train_loader.steps(recipe.epochs))
    parallel_model = distributed.parallel(model)

    # On resume, start restores all of these objects and the random number generators.
    with run.start(settings, dataset, model, optimizer, scheduler, train_loader) as history:
        step = make_step(parallel_model, optimizer, settings)
        if settings.device == "cuda" and settings.processes == 1:
            model.train()
            step = CapturedStep(step, model, optimizer, recipe.batch_size, device, run.log)
        while len(history.epochs) < recipe.epochs and not history.stops_at(settings.target):
            began = synchronized_time(settings.device)
            with Progress(len(train_loader), f"Epoch {len(history.epochs) + 1}/{recipe.epochs}") as progress:
                train_one_epoch(step, model, train_loader, scheduler, settings, progress)
            seconds = synchronized_time(settings.device) - began
            evaluation = evaluate(model, eval_loader, settings.precision)
            history.add(progress, evaluation, seconds)
            run.save_epoch()
            if on_epoch:
                on_epoch(history)
        if dataset.holdout:  # test once, with the weights selected on the held-out images
            model.load_state_dict(distributed.broadcast(run.best_weights()))
        logits = predict(model, Loader(*dataset.test, EVAL_BATCH), settings.precision)
        if dataset.holdout:
            history.test = score(logits, dataset.test.labels)
        run.finish(logits)
    return history


def train_one_epoch(step, model, loader, scheduler, settings, progress):
    """Train `model` by `step` on every batch of `loader` once, as `scheduler` says; `progress` collects the results."""
    model.train()
    for images, labels in loader:
        # last_epoch counts steps
        augmented = scheduler.last_epoch < settings.recipe.augment_until * scheduler.total_steps
        lr = scheduler.get_last_lr()[0]
        losses, logits = step(images, labels, augmented, loader.weight)
        loader.record(losses)
        scheduler.step()
        progress.add(scheduler.last_epoch, lr, losses.mean(), logits, labels)
    progress.finish()
    distributed.average_buffers(model)


def make_step(model, optimizer, settings):
    """A function that trains on one batch: images and labels in, losses (B,) and logits (B, 10) out."""
    recipe = settings.recipe
    augment = RandomAffine(recipe.rotation, recipe.translate, recipe.scale, recipe.shear, recipe.margin)

    def step(images, labels, augmented, weight=1.0):
        if augmented:
            images = augment(images)
        optimizer.zero_grad()
        logits = forward(model, images, settings.precision)
        losses = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing, reduction="none")
        (losses.mean() * weight).backward()
        optimizer.step()
        return losses.detach(), logits.detach()

    return step


def forward(model, images, precision):
    """Float logits (N, 10) of `model`, computed in `precision`, "fp32" or "bf16"."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return model(images).float()


@torch.inference_mode()
def predict(model, loader, precision):
    """Float logits (N, 10) of `model` for all images of `loader`, in their order."""
    model.eval()
    return torch.cat([forward(model, images, precision) for images, _ in loader])


def evaluate(model, loader, precision):
    """The Evaluation of `model` on all images of `loader`, and of the loaders of other processes."""
    return distributed.combined(score(predict(model, loader, precision), loader.labels))


def score(logits, labels):
    """The Evaluation of `logits` (N, 10) for `labels` (N,)."""
    return Evaluation(F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).sum().item(), len(labels))


def make_optimizer(model, recipe):
    """SGD with Nesterov momentum; weight decay on convolution and linear weights only."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    # The scheduler overwrites lr before the first step.
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True, fused=True)


def make_scheduler(optimizer, recipe, steps):
    """One cycle over all steps of the run: up from lr / 25 to lr, then down to almost zero (arXiv:1708.07120)."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=recipe.lr,
        total_steps=steps,
        pct_start=recipe.warmup if recipe.warmup * steps > 1 else 0.0,  # a rise of one step would divide by zero
        anneal_strategy="linear",
        cycle_momentum=False,
    )


def evaluate_checkpoint(path, given):
    """Print loss, accuracy and accuracy per class of the checkpoint at `path` on the test set."""
    checkpoint, machine = Checkpoint.load(path), {"device": "auto", "threads": None, "processes": None}
    may_change = ("dataset", "data_dir", "precision", *machine)
    settings = resolve(earlier_settings(checkpoint.settings, {**machine, **given}, may_change))
    dataset = load_data(settings, for_training=False).to(settings.device)
    loader = Loader(*dataset.test, EVAL_BATCH)
    model = checkpoint.net().to(settings.device, memory_format=torch.channels_last)
    echo(f"Checkpoint: {path}, epoch {len(checkpoint.history.epochs)} of a run on {checkpoint.dataset}")
    echo(f"Data: {dataset.name}, {len(loader.labels)} test images")
    logits = predict(model, loader, settings.precision)
    echo(score(logits, loader.labels).line("test"))
    for label in loader.labels.unique().tolist():
        hits = logits[loader.labels == label].argmax(1) == label
        echo(f"Class {label}: {hits.sum()}/{len(hits)} ({100 * hits.float().mean():.2f}%)")


@command
def main(argv=None, on_epoch=None):
    options, given = parse_args(__doc__, argv)
    if options.evaluate:
        evaluate_checkpoint(options.evaluate, given)
        return
    group = distributed.process_group(given.get("device"))
    with group, contextlib.closing(open_run(options.out, options.resume, options.plots)) as run:
        if options.resume:
            settings = earlier_settings(run.checkpoint.settings, given, may_change=("data_dir",))
        else:
            settings = new_settings(given)
        train(settings, run, on_epoch)
    if options.show and rank() == 0:
        plots.show_curves(run.metrics())


if __name__ == "__main__":
    sys.exit(main())
