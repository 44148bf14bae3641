"""Train a CNN with fewer than 20,000 parameters to 99.4% on MNIST.

    python train.py                               until the test accuracy reaches 99.4%
    python train.py --target none --epochs 18     to the end, for the best accuracy
    python train.py --dataset digits              on a machine without MNIST and without a network

Writes log.txt, metrics.json, curves.png, last.pt and best.pt into a folder of the run's own.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import DataError, Loader, RandomAffine, hold_out, load_dataset
from model import Net, count_parameters

DEFAULT = {
    "widths": [16, 16, 24, 32, 22],
    "dropout": 0.05,
    "epochs": 2,
    "batch_size": 128,
    "lr": 1.0,  # the peak of the one cycle
    "warmup": 0.3,  # the part of the cycle that goes up
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "label_smoothing": 0.1,
    "rotation": 8.0,  # degrees; this and the next three: uniform in ± the value, drawn for every image
    "translate": 0.06,  # of the side
    "scale": 0.08,
    "shear": 4.0,  # degrees
    "augment_until": 0.7,  # of the run; its last part trains on the images as they are
}
RECIPES = {
    "default": DEFAULT,  # 99.4% for certain
    "fast": {**DEFAULT, "epochs": 1, "batch_size": 64, "augment_until": 0.6},  # every image once
    "best": {**DEFAULT, "epochs": 20},  # the most accurate
}
RUN_FILES = ("log.txt", "metrics.json", "curves.png", "last.pt", "best.pt")


class RunError(Exception):
    """A run that cannot start or go on; the message is one line that says what to do."""

    exit_code = 2


# Training: functions that return numbers and print nothing.


def fit(model, optimizer, scheduler, train_loader, eval_loader, split, config, precision):
    """Train for config["epochs"] epochs; yields after each of them what metrics.json says of it.

    `split`, "test" or "holdout", names what `eval_loader` holds.
    """
    for epoch in range(1, config["epochs"] + 1):
        # disable=None: no bar where the output is no terminal
        with tqdm(
            total=len(train_loader), desc=f"Epoch {epoch}/{config['epochs']}", unit="batch", leave=False, disable=None
        ) as bar:
            start = synchronized_time(train_loader.images.device)
            train_loss, train_accuracy, lr = train_one_epoch(
                model, train_loader, optimizer, scheduler, config, precision, bar
            )
            seconds = synchronized_time(train_loader.images.device) - start
        loss, accuracy = evaluate(model, eval_loader, precision)
        yield {
            "epoch": epoch,
            "lr": lr,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            f"{split}_loss": loss,
            f"{split}_accuracy": accuracy,
            "seconds": round(seconds, 3),
        }


def train_one_epoch(model, loader, optimizer, scheduler, config, precision, bar):
    """Train on every batch of `loader` once; the scheduler steps with each batch, the tqdm `bar` shows it.

    Returns (mean loss, accuracy in percent, learning rate of the last batch).
    Raises FloatingPointError where the loss is no longer finite.
    """
    model.train()
    device = loader.images.device
    total_steps = config["epochs"] * len(loader)
    pending = []  # (step, learning rate, loss) since the last look: losses stay on the device until then
    correct = torch.zeros((), dtype=torch.int64, device=device)
    total_loss, seen = 0.0, 0
    for images, labels in loader:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config["label_smoothing"])
        loss.backward()
        lr = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        if scheduler.last_epoch >= config["augment_until"] * total_steps:
            loader.augment = None

        seen += len(labels)
        correct += (logits.argmax(1) == labels).sum()
        pending.append((scheduler.last_epoch, lr, loss.detach() * len(labels)))
        bar.update()
        if len(pending) == 25 or seen == len(loader.images):
            total_loss += sum_of_losses(pending, total_steps)
            pending = []
            accuracy = 100 * correct.item() / seen
            bar.set_postfix_str(f"loss={total_loss / seen:.4f}, acc={accuracy:.2f}%, lr={lr:.4f}")
    return total_loss / seen, accuracy, lr


def sum_of_losses(pending, total_steps):
    """Sum of the losses in `pending`, a list of (step, learning rate, scalar tensor); all must be finite."""
    values = torch.stack([loss for _, _, loss in pending]).tolist()
    for (step, lr, _), value in zip(pending, values):
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {step} of {total_steps}, learning rate {lr:.4g}")
    return sum(values)


@torch.inference_mode()
def evaluate(model, loader, precision):
    """(mean cross-entropy, accuracy in percent) of `model` on all of `loader`."""
    model.eval()
    device = loader.images.device
    loss = torch.zeros((), device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for images, labels in loader:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images.contiguous(memory_format=torch.channels_last)).float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    return loss.item() / len(loader.images), 100 * correct.item() / len(loader.images)


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
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config["lr"],
        total_steps=config["epochs"] * batches,
        pct_start=config["warmup"],
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
        raise RunError(f"--device {requested}: torch {torch.__version__} finds only {found} here; try --device auto")
    return torch.device(requested)


def choose_precision(requested, device, model, batch_size):
    """("fp32" or "bf16", why): bf16 autocast on a CPU only where a few training steps show it to be faster."""
    if requested != "auto":
        return requested, "as asked for"
    if device.type != "cpu":
        return "fp32", f"the default on {device.type}"
    images = torch.rand(batch_size, 1, 28, 28)

    def seconds(precision):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images)
        logits.float().sum().backward()
        return time.perf_counter() - start

    times = [(seconds("fp32"), seconds("bf16")) for _ in range(4)]
    fp32, bf16 = (min(column) for column in zip(*times))
    why = f"bf16 takes {bf16 / fp32:.2f} times as long"
    return ("bf16", why) if bf16 < 0.9 * fp32 else ("fp32", why)


# The run: what it prints and writes.


def run(args):
    """Train as `args` say and write the run's folder."""
    start = time.perf_counter()
    device = choose_device(args.device)
    dataset = load_dataset(args.dataset, args.data_dir).to(device)
    split, eval_images, eval_labels = "test", dataset.test_images, dataset.test_labels
    if args.holdout is not None:
        dataset, eval_images, eval_labels = hold_out(dataset, args.holdout, args.seed)
        split = "holdout"
    if args.batch_size > len(dataset.train_images):
        raise RunError(f"--batch-size {args.batch_size}: expected at most {len(dataset.train_images)} training images")
    config = {name: getattr(args, name) for name in DEFAULT}
    folder = create_run_folder(args.out, args.seed)

    def new_model():
        return Net(args.widths, args.dropout).to(device, memory_format=torch.channels_last)

    precision, why = choose_precision(args.precision, device, new_model(), args.batch_size)
    torch.manual_seed(args.seed)
    model = new_model()
    augment = RandomAffine(args.rotation, args.translate, args.scale, args.shear)
    train_loader = Loader(dataset.train_images, dataset.train_labels, args.batch_size, shuffle=True, augment=augment)
    eval_loader = Loader(eval_images, eval_labels, 1000, shuffle=False)
    optimizer = make_optimizer(model, config)
    scheduler = make_scheduler(optimizer, config, len(train_loader))
    metrics = {
        "dataset": dataset.name,
        "seed": args.seed,
        "params": count_parameters(model),
        "device": str(device),
        "precision": precision,
        "torch": torch.__version__,
        "config": config,
        "holdout": args.holdout,
        "epochs": [],
        f"best_{split}_accuracy": None,
        f"final_{split}_accuracy": None,
        "target": args.target,
        "target_epoch": None,
        "train_seconds": 0.0,
        "total_seconds": 0.0,
        "peak_memory_mb": None,
    }

    def log(line):
        print(line, flush=True)
        with open(folder / "log.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def write_metrics():
        metrics["total_seconds"] = round(time.perf_counter() - start, 3)
        metrics["peak_memory_mb"] = peak_memory_mb()
        write_json(folder / "metrics.json", metrics)

    log(f"Run: {folder}, seed {args.seed}")
    held = f", {len(eval_images)} held-out" if args.holdout else ""
    log(f"Data: {dataset.name}, {len(dataset.train_images)} training{held} and {len(dataset.test_images)} test images")
    log(f"Model: {metrics['params']} parameters")
    log(f"Device: {device}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}, {precision} ({why})")
    write_metrics()
    try:
        for epoch in fit(model, optimizer, scheduler, train_loader, eval_loader, split, config, precision):
            is_best = record_epoch(metrics, epoch, split)
            save_checkpoint(folder / "last.pt", model, metrics)
            if is_best:
                save_checkpoint(folder / "best.pt", model, metrics)
            write_metrics()
            log(
                f"Epoch {epoch['epoch']}/{args.epochs}: Train loss: {epoch['train_loss']:.4f}, "
                f"Accuracy: {epoch['train_accuracy']:.2f}%, lr: {epoch['lr']:.4f}, {epoch['seconds']:.1f} s"
            )
            log(evaluation_line(split, epoch[f"{split}_loss"], epoch[f"{split}_accuracy"], len(eval_images)))
            if metrics["target_epoch"] is not None and args.target < 100:
                break
    except KeyboardInterrupt:
        log(f"Interrupted; the {len(metrics['epochs'])} finished epochs are in {folder}")
        raise
    save_curves(folder / "curves.png", metrics, split, args.show)
    for line in summary_lines(metrics, split):
        log(line)
    if args.holdout:
        # The one look at the test set, with the weights that the held-out images chose.
        model.load_state_dict(torch.load(folder / "best.pt", weights_only=True)["model"])
        test_loader = Loader(dataset.test_images, dataset.test_labels, 1000, shuffle=False)
        loss, accuracy = evaluate(model, test_loader, precision)
        metrics["test_loss"], metrics["test_accuracy"] = loss, accuracy
        log(evaluation_line("test", loss, accuracy, len(dataset.test_images)))
    write_metrics()
    memory = f", peak memory {metrics['peak_memory_mb']} MB" if metrics["peak_memory_mb"] else ""
    log(f"Training time: {metrics['train_seconds']:.1f} s, in total {metrics['total_seconds']:.1f} s{memory}")


def record_epoch(metrics, epoch, split):
    """Enter the record `epoch` into `metrics`; returns whether it is the best so far on `split`."""
    accuracy = epoch[f"{split}_accuracy"]
    is_best = not metrics["epochs"] or accuracy > metrics[f"best_{split}_accuracy"]
    metrics["epochs"].append(epoch)
    metrics[f"final_{split}_accuracy"] = accuracy
    metrics["train_seconds"] = round(metrics["train_seconds"] + epoch["seconds"], 3)
    if is_best:
        metrics[f"best_{split}_accuracy"] = accuracy
    if metrics["target_epoch"] is None and metrics["target"] is not None and accuracy >= metrics["target"]:
        metrics["target_epoch"] = epoch["epoch"]
    return is_best


def evaluation_line(split, loss, accuracy, count):
    correct = round(accuracy * count / 100)
    return f"{split.capitalize()} set: Average loss: {loss:.4f}, Accuracy: {correct}/{count} ({accuracy:.2f}%)"


def summary_lines(metrics, split):
    """The closing lines of the log about `split`."""
    epochs, target, accuracy = metrics["epochs"], metrics["target"], f"{split}_accuracy"
    best = max(epochs, key=lambda epoch: epoch[accuracy])
    yield f"Parameters: {metrics['params']}"
    yield f"Best {split} accuracy: {best[accuracy]:.2f}% (epoch {best['epoch']})"
    yield f"Final {split} accuracy: {epochs[-1][accuracy]:.2f}% (epoch {epochs[-1]['epoch']})"
    if target is not None:
        met = metrics["target_epoch"]
        yield f"Target {target:.2f}%: " + (f"met at epoch {met}" if met else f"not met in {len(epochs)} epochs")


def peak_memory_mb():
    """Most memory this process has held so far, in MB; None on Windows, which does not say."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def create_run_folder(out, seed):
    """Create the folder of this run; RunError where it holds a run already or cannot be written."""
    folder = Path(out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-seed{seed}")
    number = 2
    while out is None and folder.exists():  # two runs in one second
        folder = Path(f"{str(folder).split('_')[0]}_{number}")
        number += 1
    held = [name for name in RUN_FILES if os.path.exists(folder / name)]
    if held:
        raise RunError(f"--out {folder} already holds a run ({', '.join(held)}); choose another folder or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.txt").touch(exist_ok=False)
    except OSError as error:
        raise RunError(f"--out {folder} cannot be written: {error.strerror}; choose another folder") from error
    return folder


def write_json(path, value):
    """Write strict JSON, first beside `path`, so that no half-written file ever bears its name."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def save_checkpoint(path, model, metrics):
    """Save weights and what rebuilds the net: Net(**checkpoint["net"]).load_state_dict(checkpoint["model"])."""
    config = metrics["config"]
    checkpoint = {
        "net": {"widths": config["widths"], "dropout": config["dropout"]},
        "model": model.state_dict(),
        "dataset": metrics["dataset"],
        **metrics["epochs"][-1],
    }
    temporary = path.with_suffix(".tmp")
    torch.save(checkpoint, temporary)
    os.replace(temporary, path)


def save_curves(path, metrics, split, show=False):
    """Draw loss and accuracy over the epochs into the PNG `path`; in a window too if `show`."""
    import matplotlib

    if not show:
        matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    epochs = [epoch["epoch"] for epoch in metrics["epochs"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, quantity, unit in ((left, "loss", ""), (right, "accuracy", " (%)")):
        for name in ("train", split):
            values = [epoch[f"{name}_{quantity}"] for epoch in metrics["epochs"]]
            axes.plot(epochs, values, marker="o", label=name)
        axes.set(xlabel="epoch", ylabel=quantity + unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    if metrics["target"] is not None:
        right.axhline(metrics["target"], color="grey", linestyle="--", label=f"target {metrics['target']:g}%")
    left.legend()
    right.legend()
    figure.suptitle(f"{metrics['dataset']}: {metrics['params']} parameters, seed {metrics['seed']}")
    figure.savefig(path, dpi=120)
    if show:
        plt.show()
    plt.close(figure)


# The command line.


class Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line, exit code 2; the usage is a --help away."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def number(kind, low, high, *, above=False):
    """A parser of `kind` (int or float) in low..high; `low` itself excluded if `above`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value <= high if above else low <= value <= high):
            what = "a whole number" if kind is int else "a number"
            bound = f"above {low}" if above else f"from {low}"
            raise argparse.ArgumentTypeError(f"found {text}, expected {what} {bound} to {high}")
        return value

    return parse


def target(text):
    """A percentage, or None for "none"."""
    return None if text.lower() == "none" else number(float, 0, 100, above=True)(text)


def parse_args(argv=None):
    parser = Parser(
        prog="train.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(group, flag, **options):
        default = DEFAULT.get(flag.strip("-").replace("-", "_"), options.pop("default", None))
        options["help"] += " (default: %(default)s)" if default is not None else ""
        group.add_argument(flag, default=default, **options)

    add(
        parser,
        "--recipe",
        choices=RECIPES,
        default="default",
        help="named values of the settings; a flag given by hand wins",
    )

    group = parser.add_argument_group("model")
    width = number(int, 1, 4096)
    add(group, "--widths", nargs=5, type=width, metavar="N", help="output channels of the five convolution blocks")
    add(group, "--dropout", type=number(float, 0, 0.99), metavar="P", help="probability to zero a value")

    group = parser.add_argument_group("training")
    add(group, "--epochs", type=number(int, 1, 100_000), metavar="N", help="passes over the training images")
    add(group, "--batch-size", type=number(int, 1, 1_000_000), metavar="N", help="images per step")
    add(
        group, "--lr", type=number(float, 0, 1000, above=True), metavar="LR", help="peak learning rate of the one cycle"
    )
    add(group, "--warmup", type=number(float, 0.01, 0.99), metavar="X", help="part of the cycle before the peak")
    add(group, "--momentum", type=number(float, 0.01, 0.999), metavar="M", help="Nesterov momentum")
    add(group, "--weight-decay", type=number(float, 0, 1), metavar="X", help="of convolution and linear weights")
    add(group, "--label-smoothing", type=number(float, 0, 0.9), metavar="X", help="part spread over all classes")
    add(
        group,
        "--target",
        type=target,
        default=99.4,
        metavar="PCT",
        help="stop at this test accuracy; 100 or none: never",
    )
    add(
        group,
        "--seed",
        type=number(int, 0, 2**63 - 1),
        default=0,
        metavar="N",
        help="of weights, order and augmentation",
    )

    group = parser.add_argument_group("augmentation, uniform in ± the value for every image; 0 is off")
    add(group, "--rotation", type=number(float, 0, 180), metavar="DEG", help="degrees")
    add(group, "--translate", type=number(float, 0, 1), metavar="X", help="part of the side")
    add(group, "--scale", type=number(float, 0, 0.9), metavar="X", help="part of the size")
    add(group, "--shear", type=number(float, 0, 60), metavar="DEG", help="degrees")
    add(group, "--augment-until", type=number(float, 0, 1), metavar="X", help="part of the run that is augmented")

    group = parser.add_argument_group("data and machine")
    add(group, "--dataset", choices=("mnist", "digits"), default="mnist", help="digits: 1,797 images of scikit-learn's")
    add(
        group,
        "--data-dir",
        metavar="DIR",
        help="look for MNIST-format files only there; else ./data, ../shared/mnist, download",
    )
    add(
        group,
        "--holdout",
        type=number(int, 1, 1_000_000),
        metavar="N",
        help="hold N training images out; stop and choose the best epoch by them, look at the test set once at the end",
    )
    add(group, "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to train")
    add(
        group,
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 on a CPU where it is faster",
    )

    group = parser.add_argument_group("output")
    add(group, "--out", metavar="DIR", help="folder of this run (default: runs/<time>-seed<N>)")
    group.add_argument("--show", action="store_true", help="show the curves in a window too")
    parser.set_defaults(**RECIPES[parser.parse_args(argv).recipe])
    args = parser.parse_args(argv)
    if args.dataset == "digits" and args.data_dir is not None:
        parser.error("--data-dir: found with --dataset digits, which comes with scikit-learn; drop one of the two")
    return args


def main(argv=None):
    """Run the command line `argv`; returns the exit code."""
    args = parse_args(argv)
    try:
        run(args)
    except (DataError, RunError) as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return error.exit_code
    except FloatingPointError as error:
        print(f"train.py: error: {error}; earlier epochs are kept, try a lower --lr", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
