"""Train a published recipe as its users run it, as a peer for benchmark.py.

    python -m experiment.train_published net-11034 --seed 0 --out runs/net-11034

The training images pass through torchvision's transforms and the ordinary DataLoader; `--loader fast` uses this
project's loader instead, to separate the effect of the loader from that of the recipe.
"""

import time

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from data import Loader, RandomAffine, Split
from experiment.arguments import whole_number
from experiment.command import Parser, command, echo, path
from experiment.datasets import load_mnist
from experiment.errors import DataError
from experiment.files import write_json
from experiment.history import Evaluation, History
from experiment.machine import choose_device, peak_memory_mb, synchronized_time
from experiment.progress import Progress
from experiment.published import PUBLISHED
from experiment.run_folder import create_folder
from model import MEAN, STD, count_parameters


class PILImages(torch.utils.data.Dataset):
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


class NormalizedLoader(Loader):
    """This project's loader, with augmentation by a function `augment` if there is one, and normalisation."""

    augment = None

    def __iter__(self):
        for images, labels in super().__iter__():
            yield (self.augment(images) if self.augment else images).sub(MEAN).div(STD), labels


def load_batches(recipe, loader, data_dir):
    """(data set, training batches) for `recipe`, with the images that it holds out left out."""
    dataset = load_mnist(data_dir)
    count, held_out, split = len(dataset.train.labels), recipe.held_out, dataset.train
    if held_out >= count:
        raise DataError(f"found {count} training images, expected more than the {held_out} that the recipe holds out")
    if held_out:
        kept = torch.randperm(count, generator=torch.Generator().manual_seed(42))[held_out:]
        split = Split(split.images[kept], split.labels[kept])
    if loader == "torchvision":
        return dataset, DataLoader(PILImages(split, recipe.affine), recipe.batch_size, shuffle=True)
    batches = NormalizedLoader(*split, recipe.batch_size, shuffle=True)
    batches.augment = RandomAffine(*recipe.affine) if recipe.affine else None
    return dataset, batches


def train_one_epoch(model, batches, optimizer, scheduler, label_smoothing, device, progress):
    """The loop of the published notebooks: every batch once, the scheduler stepped with each."""
    model.train()
    for step, (images, labels) in enumerate(batches, 1):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        loss.backward()
        lr = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        progress.add(step, lr, loss, logits, labels)
    progress.flush()


@torch.inference_mode()
def evaluate(model, split, device):
    model.eval()
    batches = NormalizedLoader(*split, 1000, shuffle=False)
    logits = torch.cat([model(images.to(device)).cpu() for images, _ in batches])
    loss = F.cross_entropy(logits, split.labels).item()
    return Evaluation(loss, (logits.argmax(1) == split.labels).sum().item(), len(logits))


def run(name, seed, loader, data_dir, device, out):
    """Train the published recipe `name` to its last epoch; write metrics.json after each as train.py does."""
    start = time.perf_counter()
    recipe, device = PUBLISHED[name], choose_device(device)
    dataset, batches = load_batches(recipe, loader, data_dir)
    torch.manual_seed(seed)
    model = recipe.net().to(device)
    optimizer = recipe.optimizer(model.parameters())
    scheduler = recipe.scheduler(optimizer, recipe.epochs * len(batches))
    folder, history = create_folder(out, seed), History("test")
    facts = {"dataset": dataset.name, "sha256": dataset.sha256, "recipe": name, "loader": loader, "seed": seed}
    facts |= {"params": count_parameters(model), "device": device, "threads": torch.get_num_threads()}
    for epoch in range(1, recipe.epochs + 1):
        began = synchronized_time(device)
        with Progress(len(batches), f"Epoch {epoch}/{recipe.epochs}") as progress:
            train_one_epoch(model, batches, optimizer, scheduler, recipe.label_smoothing, device, progress)
        seconds = synchronized_time(device) - began
        history.add(progress.lr, progress.loss, progress.accuracy, evaluate(model, dataset.test, device), seconds)
        history.total_seconds, history.peak_memory_mb = time.perf_counter() - start, peak_memory_mb()
        write_json(folder / "metrics.json", {**facts, "precision": "fp32", **history.metrics(target=None)})
        echo(f"Epoch {epoch}: {history.final.accuracy:.2f}%, {seconds:.1f} s")


@command
def main(argv=None):
    parser = Parser(prog="train_published.py", description=__doc__)
    parser.add_argument("name", choices=PUBLISHED, metavar="NAME", help=f"one of {', '.join(PUBLISHED)}")
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0, help="(default: %(default)s)")
    parser.add_argument("--loader", choices=("torchvision", "fast"), default="torchvision")
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="as for train.py")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    parser.add_argument("--out", type=path, metavar="DIR", help="folder of this run (default: runs/<time>-seed<N>)")
    run(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    raise SystemExit(main())
