"""Train a CNN with fewer than 20,000 parameters to 99.4% on MNIST.

    python train.py                               until the test accuracy reaches 99.4%
    python train.py --recipe best --target none   to the end of 20 epochs, for the best accuracy
    python train.py --dataset digits              on a machine without MNIST and without a network
    python train.py --resume runs/NAME            goes on with an interrupted run, to the same bits
    python train.py --evaluate runs/NAME/best.pt  tests a checkpoint

Writes log.txt, metrics.json, curves.png, last.pt and best.pt into a folder of the run's own.
"""

import contextlib
import io
import math
import os
import shlex
import signal
import sys
import time
from pathlib import Path


def end_at_once(signum, frame):
    """Handler of a second SIGINT or SIGTERM, and of the first one while torch is imported, which takes seconds."""
    os.write(2, b"train.py: interrupted\n")
    os._exit(128 + signum)


def handle_signals(handler):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


if __name__ == "__main__":
    handle_signals(end_at_once)

import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import DataError, Loader, RandomAffine, hold_out, load_dataset, prepare
from model import Net, count_parameters
from options import DEFAULT, NET_SETTINGS, NOT_SETTINGS, parse_args
from record import (
    FORMAT,
    Record,
    RunError,
    create_run_folder,
    draw_curves,
    evaluation_line,
    load_checkpoint,
    lock,
    record_epoch,
    replace_file,
    save_checkpoint,
    say,
    summary_lines,
)


def fit(model, optimizer, scheduler, train_loader, eval_loader, split, config, precision, finished=0):
    """Train until config["epochs"] epochs are done; yields after each of them what metrics.json says of it.

    `split`, "test" or "holdout", names what `eval_loader` holds; `finished` is the number of epochs done before.
    """
    for epoch in range(finished + 1, config["epochs"] + 1):
        # disable=None: no bar where the output is no terminal
        with tqdm(
            total=len(train_loader), desc=f"Epoch {epoch}/{config['epochs']}", unit="batch", leave=False, disable=None
        ) as bar:
            start = synchronized_time(train_loader.images.device)
            train_loss, train_accuracy, lr = train_one_epoch(
                model, train_loader, optimizer, scheduler, config["label_smoothing"], precision, bar
            )
            seconds = synchronized_time(train_loader.images.device) - start
        loss, accuracy = evaluate(model, eval_loader, precision)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the {split} loss is {loss} after epoch {epoch}, learning rate {lr:.4g}")
        yield {
            "epoch": epoch,
            "lr": lr,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            f"{split}_loss": loss,
            f"{split}_accuracy": accuracy,
            "seconds": round(seconds, 3),
        }


def train_one_epoch(model, loader, optimizer, scheduler, label_smoothing, precision, bar):
    """Train on every batch of `loader` once; the scheduler steps with each batch, the tqdm `bar` shows it.

    Returns (mean loss, accuracy in percent, learning rate of the last batch).
    Raises FloatingPointError where the loss is no longer finite.
    """
    model.train()
    device = loader.images.device
    pending = []  # (step, learning rate, loss) since the last look: losses stay on the device until then
    correct = torch.zeros((), dtype=torch.int64, device=device)
    total_loss, seen = 0.0, 0
    for images, labels in loader:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        loss.backward()
        lr = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        seen += len(labels)
        correct += (logits.argmax(1) == labels).sum()
        pending.append((scheduler.last_epoch, lr, loss.detach() * len(labels)))
        bar.update()
        if len(pending) == 25 or seen == len(loader.images):
            total_loss += sum_of_losses(pending)
            pending = []
            accuracy = 100 * correct.item() / seen
            bar.set_postfix_str(f"loss={total_loss / seen:.4f}, acc={accuracy:.2f}%, lr={lr:.4f}")
    return total_loss / seen, accuracy, lr


def sum_of_losses(pending):
    """Sum of the losses in `pending`, a list of (step of the run, learning rate, scalar tensor); all must be finite."""
    values = torch.stack([loss for _, _, loss in pending]).tolist()
    for (step, lr, _), value in zip(pending, values):
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {step}, learning rate {lr:.4g}")
    return sum(values)


@torch.inference_mode()
def predict(model, loader, precision):
    """Logits, float (N, 10), of `model` for all of `loader`, which must keep its order."""
    model.eval()
    logits = []
    for images, _ in loader:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits.append(model(images.contiguous(memory_format=torch.channels_last)).float())
    return torch.cat(logits)


def evaluate(model, loader, precision):
    """(mean cross-entropy, accuracy in percent) of `model` on all of `loader`."""
    logits = predict(model, loader, precision)
    correct = (logits.argmax(1) == loader.labels).sum().item()
    return F.cross_entropy(logits, loader.labels).item(), 100 * correct / len(logits)


def synchronized_time(device):
    """Seconds on a clock, read when `device` has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def make_optimizer(model, config):
    """SGD with Nesterov momentum; weight decay on convolution and linear weights only."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": weights, "weight_decay": config["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config["lr"], momentum=config["momentum"], nesterov=True, fused=True)


def make_scheduler(optimizer, config, batches):
    """One cycle over all batches of the run: up to --lr, then down to nearly nothing (Smith, arXiv:1708.07120)."""
    steps = config["epochs"] * batches
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config["lr"],
        total_steps=steps,
        pct_start=config["warmup"] if config["warmup"] * steps > 1 else 0.0,  # OneCycleLR can't rise in one step
        anneal_strategy="linear",
        cycle_momentum=False,
    )


def choose_device(requested):
    """torch.device for "auto", "cpu", "cuda" or "mps"; RunError where it is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if requested == "auto":
        requested = next(name for name, there in available.items() if there)
    if not available[requested]:
        found = ", ".join(name for name, there in available.items() if there)
        raise RunError(
            f"--device {requested}: torch {torch.__version__} finds only {found} here; "
            "a new run and --evaluate may take --device auto"
        )
    return torch.device(requested)


def choose_precision(requested, device, model):
    """("fp32" or "bf16", why): bf16 autocast on a CPU only where a few training steps show it to be much faster."""
    if requested != "auto":
        return requested, "as asked for"
    if device.type != "cpu":
        return "fp32", f"the default on {device.type}"
    images = torch.rand(128, 1, 28, 28)

    def seconds(precision):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images)
        logits.float().sum().backward()
        return time.perf_counter() - start

    times = [(seconds("fp32"), seconds("bf16")) for _ in range(4)]
    fp32, bf16 = (min(column) for column in zip(*times))
    # The margin keeps the choice, and with it the figures of a seed, the same from run to run.
    return "bf16" if bf16 < 0.8 * fp32 else "fp32", f"bf16 takes {bf16 / fp32:.2f} times as long"


def training_state(model, optimizer, scheduler):
    """All that changes while training, for a checkpoint; torch's default generators give all random numbers."""
    device = next(model.parameters()).device
    random = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        random[device.type] = torch.get_device_module(device).get_rng_state()
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    return {"random": random, **{name: part.state_dict() for name, part in parts.items()}}


def restore_training_state(checkpoint, model, optimizer, scheduler):
    """Undo what happened since `checkpoint` held their training_state; RunError where it does not fit."""
    try:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
        for name, state in checkpoint["random"].items():
            torch.set_rng_state(state) if name == "cpu" else torch.get_device_module(name).set_rng_state(state)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"last.pt does not fit its own settings ({type(error).__name__}: {error})") from error


def run(args, checkpoint=None):
    """Train as `args` say, or go on from the `checkpoint` of the run that they name, and write the run's folder."""
    start = time.perf_counter()
    config = {name: getattr(args, name) for name in DEFAULT}
    earlier = checkpoint["metrics"] if checkpoint else None
    device = choose_device(earlier["device"] if earlier else args.device)
    if earlier:
        torch.set_num_threads(earlier["threads"])  # their number decides how sums are rounded
    dataset = load_dataset(args.dataset, args.data_dir)
    if earlier and earlier["sha256"] != dataset.sha256:
        raise RunError(
            f"--resume {args.resume}: found other data ({dataset.name}, SHA-256 {dataset.sha256}), expected "
            f"{earlier['dataset']} with {earlier['sha256']}; name the folder that holds it by --data-dir"
        )
    prepare_start = time.perf_counter()
    dataset = dataset._replace(
        train_images=prepare(dataset.train_images, config), test_images=prepare(dataset.test_images, config)
    )
    prepare_seconds = round(time.perf_counter() - prepare_start, 3)
    split, eval_images, eval_labels = "test", dataset.test_images, dataset.test_labels
    if args.holdout is not None:
        dataset, eval_images, eval_labels = hold_out(dataset, args.holdout, args.seed)
        split = "holdout"
    train_count, eval_count, test_count = len(dataset.train_images), len(eval_images), len(dataset.test_images)
    if args.batch_size > train_count:
        raise RunError(f"--batch-size {args.batch_size}: expected at most {train_count}, the training images there are")
    dataset = dataset.to(device)
    train_loader = Loader(dataset.train_images, dataset.train_labels, args.batch_size, shuffle=True)
    test_loader = Loader(dataset.test_images, dataset.test_labels, 1000, shuffle=False)
    eval_loader = Loader(eval_images.to(device), eval_labels.to(device), 1000, shuffle=False)

    def new_model():
        return Net(**{name: config[name] for name in NET_SETTINGS}).to(device, memory_format=torch.channels_last)

    if earlier:
        precision, why = earlier["precision"], "as before"
    else:
        precision, why = choose_precision(args.precision, device, new_model())
    torch.manual_seed(args.seed)
    model = new_model()
    optimizer = make_optimizer(model, config)
    scheduler = make_scheduler(optimizer, config, len(train_loader))
    random_affine = RandomAffine(args.rotation, args.translate, args.scale, args.shear)

    def augment(images):
        in_last_part = scheduler.last_epoch >= args.augment_until * scheduler.total_steps
        return images if in_last_part else random_affine(images)

    train_loader.augment = augment
    metrics = earlier or {
        "dataset": dataset.name,
        "sha256": dataset.sha256,
        "seed": args.seed,
        "params": count_parameters(model),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "torch": str(torch.__version__),
        "config": config,
        "holdout": args.holdout,
        "epochs": [],
        f"best_{split}_accuracy": None,
        f"final_{split}_accuracy": None,
        "target": args.target,
        "target_epoch": None,
        "train_seconds": prepare_seconds,  # counted, since the published recipes do without
        "total_seconds": 0.0,
        "peak_memory_mb": None,
    }
    folder = Path(args.resume) if checkpoint else create_run_folder(args.out, args.seed)
    record = Record(folder, metrics, split, eval_count, start - metrics["total_seconds"])

    def save(name):
        checkpoint = {
            "format": FORMAT,
            "net": {setting: config[setting] for setting in NET_SETTINGS},
            **training_state(model, optimizer, scheduler),
            "settings": {setting: value for setting, value in vars(args).items() if setting not in NOT_SETTINGS},
            "metrics": metrics,
            "log_bytes": record.log_bytes(),
        }
        save_checkpoint(folder / name, checkpoint)

    # main holds the lock of a run that is resumed
    with contextlib.nullcontext() if checkpoint else lock(folder), resume_hint(record):
        if checkpoint:
            restore_training_state(checkpoint, model, optimizer, scheduler)
            record.cut_log(checkpoint["log_bytes"])
        else:
            save("last.pt")
        if metrics["epochs"]:
            record.log_epoch()
        else:
            held = f", {eval_count} held-out" if args.holdout else ""
            device_line = f"{device}, {metrics['threads']} CPU threads, torch {torch.__version__}"
            record.log(f"Run: {folder}, seed {args.seed}")
            record.log(f"Data: {dataset.name}, {train_count} training{held} and {test_count} test images")
            record.log(f"Model: {metrics['params']} parameters")
            record.log(f"Device: {device_line}, {precision} ({why})")
        if checkpoint:
            record.log(f"Resumed after epoch {len(metrics['epochs'])}, torch {torch.__version__}")
        record.write_metrics()
        finished = len(metrics["epochs"])
        epochs = fit(model, optimizer, scheduler, train_loader, eval_loader, split, config, precision, finished)
        while len(metrics["epochs"]) < args.epochs and not stops_early(metrics):
            is_best = record_epoch(metrics, next(epochs), split)
            record.write_metrics()
            if is_best:
                save("best.pt")
            save("last.pt")  # without it the epoch is trained again, to the same bits
            record.log_epoch()  # what the log says is safe
        finish(record, model, test_loader if args.holdout else None)
    if args.show:
        import matplotlib.pyplot as plt

        draw_curves(plt.figure(figsize=(10, 4), layout="constrained"), metrics, split)
        plt.show()


@contextlib.contextmanager
def resume_hint(record):
    """Log what ends a run early, and how to go on with it."""
    folder = shlex.quote(str(record.folder))

    def hint():
        begun = (record.folder / "last.pt").exists()
        return f"python train.py --resume {folder}" if begun else f"remove {folder} and start again"

    try:
        yield
    except FloatingPointError as error:
        record.write_metrics()
        record.log(f"Stopped: {error}; epochs finished: {len(record.metrics['epochs'])}")
        raise
    except KeyboardInterrupt:
        record.log(f"Interrupted; to go on: {hint()}")
        raise
    except RunError as error:
        raise RunError(f"{error}; to go on after that: {hint()}") from error


def stops_early(metrics):
    return metrics["target_epoch"] is not None and metrics["target"] < 100


def finish(record, model, test_loader):
    """Write what follows the last epoch; a `test_loader` is for the one look at the test set after a holdout run."""
    metrics, split = record.metrics, record.split
    for line in summary_lines(metrics, split):
        record.log(line)
    if test_loader is not None:
        # With the weights that the held-out images chose.
        model.load_state_dict(load_checkpoint(record.folder / "best.pt")["model"])
        loss, accuracy = evaluate(model, test_loader, metrics["precision"])
        metrics["test_loss"], metrics["test_accuracy"] = loss, accuracy
        record.log(evaluation_line("test", loss, accuracy, len(test_loader.images)))

    from matplotlib.figure import Figure  # needs no display; imported late because it takes a second

    figure = Figure(figsize=(10, 4), layout="constrained")
    draw_curves(figure, metrics, split)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    replace_file(record.folder / "curves.png", picture.getvalue())
    record.write_metrics()
    memory = f", peak memory {metrics['peak_memory_mb']} MB" if metrics["peak_memory_mb"] else ""
    record.log(f"Training time: {metrics['train_seconds']:.1f} s, in total {metrics['total_seconds']:.1f} s{memory}")


def evaluate_checkpoint(args, checkpoint):
    """Print loss, accuracy and accuracy per class of `checkpoint` on the test set of its data, or of --data-dir."""
    device = choose_device(args.device)
    dataset = load_dataset(args.dataset, args.data_dir)
    images = prepare(dataset.test_images, checkpoint["settings"])
    loader = Loader(images.to(device), dataset.test_labels.to(device), 1000, shuffle=False)
    model = Net(**checkpoint["net"]).to(device, memory_format=torch.channels_last)
    model.load_state_dict(checkpoint["model"])
    metrics = checkpoint["metrics"]
    precision = metrics["precision"] if args.precision == "auto" else args.precision
    logits = predict(model, loader, precision)
    correct = logits.argmax(1) == loader.labels
    say(f"Checkpoint: {args.evaluate}, epoch {len(metrics['epochs'])} of a run on {metrics['dataset']}")
    say(f"Data: {dataset.name}, {len(loader.images)} test images")
    loss = F.cross_entropy(logits, loader.labels).item()
    say(evaluation_line("test", loss, 100 * correct.sum().item() / len(correct), len(correct)))
    for label in loader.labels.unique().tolist():
        hits = correct[loader.labels == label]
        say(f"Class {label}: {hits.sum()}/{len(hits)} ({100 * hits.float().mean():.2f}%)")


def main(argv=None):
    """Run the command line `argv`; returns the exit code."""
    args = parse_args(__doc__, argv)
    try:
        if args.evaluate:
            checkpoint = load_checkpoint(args.evaluate)
            evaluate_checkpoint(parse_args(__doc__, argv, checkpoint["settings"]), checkpoint)
        elif args.resume:
            checkpoint_path = Path(args.resume, "last.pt")
            if not os.path.exists(checkpoint_path):
                raise RunError(
                    f"--resume {args.resume}: found no last.pt in it, expected the folder of a run; "
                    "a run that ended before its first checkpoint must be started anew"
                )
            with lock(args.resume):
                checkpoint = load_checkpoint(checkpoint_path)
                run(parse_args(__doc__, argv, checkpoint["settings"]), checkpoint)
        else:
            run(args)
    except (DataError, RunError) as error:
        say(f"train.py: error: {error}", sys.stderr)
        return error.exit_code
    except FloatingPointError as error:
        say(f"train.py: error: {error}; earlier epochs are kept, try a lower --lr", sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        # torch has no type of its own for a CPU that runs out of memory
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        say("train.py: error: out of memory; try a smaller --batch-size or smaller --widths", sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        say("train.py: interrupted", sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    return 0


def interrupt(signum, frame):
    """Handler of the first SIGINT or SIGTERM: ends the run in good order."""
    handle_signals(end_at_once)
    raise KeyboardInterrupt(signum)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold what the terminal can't show
    handle_signals(interrupt)
    sys.exit(main())
