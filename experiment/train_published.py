"""Train a published recipe as published, for comparison by benchmark.py.

    python -m experiment.train_published net-11034 --seed 0 --out runs/net-11034

The training images pass through torchvision's transforms and the ordinary DataLoader.
"""

import sys

if __name__ == "__main__":  # so that Ctrl-C prints one line even during the imports
    from experiment.command import exit_at_once, handle_signals

    handle_signals(exit_at_once)

import time

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from data import Split
from experiment.arguments import whole_number
from experiment.command import Parser, command, echo, path
from experiment.datasets import load_mnist
from experiment.errors import DataError
from experiment.files import write_json
from experiment.history import Evaluation, History
from experiment.machine import peak_memory_mb, resolve, synchronized_time
from experiment.progress import Progress
from experiment.published import PUBLISHED
from experiment.run_folder import create_folder
from experiment.settings import Settings
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


def make_loader(split, recipe):
    """The training batches of `recipe`, without the images that it holds out."""
    count = len(split.labels)
    if recipe.held_out >= count:
        held = f"the {recipe.held_out} that the recipe holds out"
        raise DataError(f"found {count} training images, expected more than {held}")
    if recipe.held_out:
        kept = torch.randperm(count, generator=torch.Generator().manual_seed(42))[recipe.held_out :]
        split = Split(split.images[kept], split.labels[kept])
    return DataLoader(PILImages(split, recipe.affine), recipe.batch_size, shuffle=True)


def train_one_epoch(model, loader, optimizer, scheduler, label_smoothing, device, progress):
    """The loop of the published notebooks: every batch once, the scheduler stepped with each."""
    model.train()
    for step, (images, labels) in enumerate(loader, 1):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        loss.backward()
        lr = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        progress.add(step, lr, loss, logits, labels)
    progress.finish()


@torch.inference_mode()
def evaluate(model, split, device):
    """The Evaluation of `model` on all images of `split`."""
    model.eval()
    images = ((split.images.float() / 255 - MEAN) / STD).to(device)
    logits = torch.cat([model(batch) for batch in images.split(1000)]).cpu()
    loss = F.cross_entropy(logits, split.labels).item()
    return Evaluation(loss, (logits.argmax(1) == split.labels).sum().item(), len(logits))


def run(name, seed, data_dir, device, threads, out):
    """Train the published recipe `name` to its last epoch; write metrics.json after each as train.py does."""
    start, recipe = time.perf_counter(), PUBLISHED[name]
    settings = resolve(Settings(seed=seed, device=device, threads=threads))
    dataset, device = load_mnist(data_dir), settings.device
    loader = make_loader(dataset.train, recipe)
    torch.manual_seed(seed)
    model = recipe.net().to(device)
    optimizer = recipe.optimizer(model.parameters())
    scheduler = recipe.scheduler(optimizer, recipe.epochs * len(loader))
    folder, held = create_folder(out, seed)
    history, facts = History("test"), {"recipe": name, "dataset": dataset.name, "sha256": dataset.sha256, "seed": seed}
    facts |= {"params": count_parameters(model), "device": device, "threads": settings.threads, "precision": "fp32"}
    facts["train_images"] = len(dataset.train.labels)
    for epoch in range(1, recipe.epochs + 1):
        began = synchronized_time(device)
        with Progress(len(loader), f"Epoch {epoch}/{recipe.epochs}") as progress:
            train_one_epoch(model, loader, optimizer, scheduler, recipe.label_smoothing, device, progress)
        seconds = synchronized_time(device) - began
        history.add(progress, evaluate(model, dataset.test, device), seconds)
        history.total_seconds, history.peak_memory_mb = time.perf_counter() - start, peak_memory_mb()
        write_json(folder / "metrics.json", {**facts, **history.metrics(target=None)})
        echo(f"Epoch {epoch}: {history.final.accuracy:.2f}%, {seconds:.1f} s")
    held.release()


@command
def main(argv=None):
    parser = Parser(prog="train_published.py", description=__doc__)
    parser.add_argument("name", choices=PUBLISHED, metavar="NAME", help=f"one of {', '.join(PUBLISHED)}")
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0, help="(default: %(default)s)")
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="as for train.py")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    parser.add_argument("--threads", type=whole_number(1, 1024), metavar="N", help="as for train.py")
    parser.add_argument("--out", type=path, metavar="DIR", help="folder of this run (default: runs/<time>-seed<N>)")
    run(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
