"""Train a published recipe as published, for comparison by benchmark.py.

    python -m study.train_published net-11034 --seed 0 --out runs/net-11034

The training images pass through torchvision's transforms and the ordinary DataLoader.
"""

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from experiment.cli import Parser, command, path, whole_number
from experiment.datasets import load_data
from experiment.errors import DataError
from experiment.files import write_json, writing
from experiment.history import History
from experiment.machine import peak_memory_mb, set_up, synchronized_time
from experiment.meter import Meter, progress
from experiment.settings import Settings
from model import MEAN, STD, count_parameters
from study.published import PUBLISHED
from train import predict, score


class PILImages(Dataset):
    """The images of a Split one by one, as torchvision.datasets.MNIST gives them, through torchvision's transforms."""

    def __init__(self, split, affine):
        self.images, self.labels = split
        steps = [transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
        if affine:
            degrees, translate, scale, shear = affine
            steps.insert(0, transforms.RandomAffine(degrees, (translate, translate), (1 - scale, 1 + scale), shear))
        self.transform = transforms.Compose(steps)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index, 0].numpy())), int(self.labels[index])


def make_loader(split, recipe):
    """The training batches of `recipe`, without the images that it holds out."""
    images, count = PILImages(split, recipe.affine), len(split.labels)
    if recipe.held_out >= count:
        raise DataError(f"found {count} training images, expected more than the {recipe.held_out} to hold out")
    if recipe.held_out:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(42)).tolist()
        images = Subset(images, order[recipe.held_out :])
    return DataLoader(images, recipe.batch_size, shuffle=True)


def train_one_epoch(model, loader, optimizer, scheduler, recipe, device, epoch):
    """The loop of the published notebooks: every batch once, the scheduler stepped with each; returns the Meter."""
    model.train()
    meter = Meter((epoch - 1) * len(loader))
    for images, labels in progress(loader, recipe.epochs * len(loader), f"Epoch {epoch}", meter):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(images)
        F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing).backward()
        losses, lr = F.cross_entropy(logits.detach(), labels, reduction="none"), scheduler.get_last_lr()[0]
        meter.add(lr, losses, logits.detach(), labels)
        optimizer.step()
        scheduler.step()
    return meter


def evaluate(model, split, device):
    """The Score of `model` on all images of `split`."""
    images = ((split.images.float() / 255 - MEAN) / STD).to(device)
    return score(predict(model, images, "fp32").cpu(), split.labels)


@command
def main(argv=None):
    parser = Parser(prog="train_published.py", description=__doc__)
    parser.add_argument("name", choices=PUBLISHED, metavar="NAME", help=f"one of {', '.join(PUBLISHED)}")
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0, help="(default: %(default)s)")
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="as for train.py")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    parser.add_argument("--threads", type=whole_number(1, 1024), metavar="N", help="as for train.py")
    parser.add_argument("--out", type=path, metavar="DIR", required=True, help="new folder for metrics.json")
    args = parser.parse_args(argv)
    start, recipe, out = time.perf_counter(), PUBLISHED[args.name], Path(args.out)
    settings = set_up(Settings(seed=args.seed, device=args.device, threads=args.threads, data_dir=args.data_dir))
    dataset, device = load_data(settings, for_training=False), settings.device
    loader = make_loader(dataset.train, recipe)
    torch.manual_seed(args.seed)
    model = recipe.net().to(device)
    optimizer = recipe.optimizer(model.parameters())
    scheduler = recipe.scheduler(optimizer, recipe.epochs * len(loader))
    with writing(out, "choose another folder with --out"):
        out.mkdir(parents=True)
    facts = {"recipe": args.name, "params": count_parameters(model), "train_images": len(dataset.train.labels)}
    facts |= {"dataset": dataset.name, "sha256": dataset.sha256}
    facts |= {name: getattr(settings, name) for name in ("seed", "device", "threads", "precision")}
    history = History("test")
    for epoch in range(1, recipe.epochs + 1):
        began = synchronized_time(device)
        meter = train_one_epoch(model, loader, optimizer, scheduler, recipe, device, epoch)
        training, seconds = meter.score, synchronized_time(device) - began
        history.add(training, evaluate(model, dataset.test, device), meter.lr, meter.curve, seconds)
        history.total_seconds, history.peak_memory_mb = time.perf_counter() - start, peak_memory_mb()
        write_json(out / "metrics.json", {**facts, **history.metrics(target=None)})
        print(f"Epoch {epoch}: {history.final.accuracy:.2f}%, {seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
