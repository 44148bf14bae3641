"""Five published recipes for 99.4% on MNIST under 20,000 parameters, as peers in benchmark.py's table.

    python published.py net-11034 --seed 0 --out runs/net-11034

Networks and settings are those of the READMEs that publish them; where one is silent, the value is marked "assumed".
The training images go through torchvision's ordinary DataLoader and transforms, as their users run them;
`--loader fast` takes this project's loader, to tell what the loader wins from what the recipe wins.
"""

import argparse
import sys
import time

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils.data import DataLoader, Subset

from data import MEAN, STD, DataError, Loader, RandomAffine, find_files, import_torchvision_mnist, load_dataset
from model import count_parameters
from options import Parser, number, path
from record import RunError, create_run_folder, peak_memory_mb, record_epoch, write_json
from train import choose_device, fit


def conv_relu_bn(c_in, c_out, dropout, padding=1, bias=True):
    return [nn.Conv2d(c_in, c_out, 3, padding=padding, bias=bias), nn.ReLU(), nn.BatchNorm2d(c_out), dropout]


def conv_bn_relu(c_in, c_out, kernel_size=3, bias=True):
    return [
        nn.Conv2d(c_in, c_out, kernel_size, padding=kernel_size // 2, bias=bias),
        nn.BatchNorm2d(c_out),
        nn.ReLU(),
    ]


def net_11034():
    dropout = nn.Dropout(0.1)
    return nn.Sequential(
        *conv_relu_bn(1, 8, dropout),
        *conv_relu_bn(8, 16, dropout),
        nn.MaxPool2d(2),
        *conv_relu_bn(16, 16, dropout),
        *conv_relu_bn(16, 16, dropout),
        nn.MaxPool2d(2),
        *conv_relu_bn(16, 32, dropout, padding=0),
        nn.AvgPool2d(5),
        nn.Conv2d(32, 10, 1),
        nn.Flatten(),
    )


def net_14314():
    dropout = nn.Dropout(0.1)
    return nn.Sequential(
        *conv_bn_relu(1, 8),
        dropout,
        *conv_bn_relu(8, 16),
        dropout,
        nn.MaxPool2d(2),
        dropout,
        *conv_bn_relu(16, 16),
        *conv_bn_relu(16, 32),
        nn.MaxPool2d(2),
        dropout,
        *conv_bn_relu(32, 16, kernel_size=1),
        *conv_bn_relu(16, 32),
        nn.MaxPool2d(2),
        dropout,
        nn.Conv2d(32, 16, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def net_19576():
    dropout = nn.Dropout2d(0.15)
    return nn.Sequential(
        nn.Conv2d(1, 10, 3),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.Conv2d(10, 18, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        dropout,
        nn.Conv2d(18, 18, 3),
        nn.ReLU(),
        nn.Conv2d(18, 18, 3),
        nn.BatchNorm2d(18),
        nn.ReLU(),
        nn.MaxPool2d(2),
        dropout,
        nn.Conv2d(18, 18, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 30),
        nn.ReLU(),
        nn.Linear(30, 10),
    )


def net_10170():
    dropout = nn.Dropout(0.1)  # assumed, as is the order of the layers
    return nn.Sequential(
        *conv_bn_relu(1, 8, bias=False),
        *conv_bn_relu(8, 12, bias=False),
        nn.MaxPool2d(2),
        dropout,
        *conv_bn_relu(12, 16, bias=False),
        nn.MaxPool2d(2),
        dropout,
        nn.Conv2d(16, 16, 1, bias=False),
        *conv_bn_relu(16, 16, bias=False),
        *conv_bn_relu(16, 16, bias=False),
        *conv_bn_relu(16, 16, bias=False),
        dropout,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def net_9720():
    dropout = nn.Dropout2d(0.05)  # assumed
    return nn.Sequential(
        *conv_relu_bn(1, 8, dropout, bias=False),
        *conv_relu_bn(8, 16, dropout, bias=False),
        nn.MaxPool2d(2),
        *conv_relu_bn(16, 16, dropout, bias=False),
        *conv_relu_bn(16, 16, dropout, bias=False),
        nn.MaxPool2d(2),
        *conv_relu_bn(16, 16, dropout, padding=0, bias=False),
        nn.Conv2d(16, 10, 3, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


COMMON = {
    "batch_size": 128,
    "one_cycle": None,  # else a constant learning rate
    "label_smoothing": 0.0,
    "affine": None,  # or degrees, translate, scale, shear
    "held_out": 0,  # training images kept apart by a split with seed 42
}
PUBLISHED = {
    "net-11034": {
        **COMMON,
        "net": net_11034,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        "one_cycle": {"max_lr": 0.1, "pct_start": 0.2},
        "epochs": 15,
    },
    "net-14314": {
        **COMMON,
        "net": net_14314,
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.001, weight_decay=1e-4),
        "one_cycle": {"max_lr": 0.01, "pct_start": 0.2},
        "epochs": 20,
        "held_out": 10_000,
    },
    "net-19576": {
        **COMMON,
        "net": net_19576,
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=0.001, weight_decay=0.01),
        "one_cycle": {"max_lr": 0.01, "pct_start": 0.3, "div_factor": 10, "final_div_factor": 100},
        "batch_size": 1024,
        "epochs": 20,
        "label_smoothing": 0.1,
        "affine": (10, 0.1, 0.1, 5),
    },
    "net-10170": {
        **COMMON,
        "net": net_10170,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
        "epochs": 20,
    },
    "net-9720": {
        **COMMON,
        "net": net_9720,
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.001),  # lr and batch size assumed
        "epochs": 20,
    },
}


# Other repositories of the same task: (parameters, best epoch of one run in percent), from their READMEs.
PEERS = {
    "dhairyag/tiny_MNIST": (3_130, 99.45),
    "Shwethaamrutha/TSAI-S6": (6_260, 99.44),
    "ViksML/mist-cnn-cloud": (6_790, 99.47),
    "snehanshu-raj/ERA": (7_918, 99.52),
    "The-School-of-AI/era-s6-ram": (8_932, 99.50),
    "sagarigrandhi/EVA4": (9_900, 99.61),
    "twitu/mnist-solver-pro-max": (15_440, 99.54),
    "divya-r-kamat/EfficientMnist-Under20K": (15_794, 99.59),
    "rshekhar93/MNIST_TinyCNN_Optimizer": (19_354, 99.42),
}


class TorchvisionLoader(DataLoader):
    """torchvision's MNIST through the ordinary DataLoader and PIL transforms, with what `fit` asks of a loader."""

    def __init__(self, root, index, images, config):
        from torchvision import transforms

        steps = [transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
        if config["affine"]:
            degrees, translate, scale, shear = config["affine"]
            steps.insert(0, transforms.RandomAffine(degrees, (translate, translate), (1 - scale, 1 + scale), shear))
        mnist = import_torchvision_mnist()(root, train=True, transform=transforms.Compose(steps))
        super().__init__(Subset(mnist, index), config["batch_size"], shuffle=True)
        self.images = images

    def __iter__(self):
        for images, labels in super().__iter__():
            yield images.to(self.images.device), labels.to(self.images.device)


def run(args):
    """Train one published recipe to its last epoch and write metrics.json as train.py does."""
    start = time.perf_counter()
    config = PUBLISHED[args.recipe]
    device = choose_device(args.device)
    dataset = load_dataset("mnist", args.data_dir).to(device)
    index = range(len(dataset.train_images))
    if config["held_out"]:
        index = torch.randperm(len(index), generator=torch.Generator().manual_seed(42))[config["held_out"] :].tolist()
    images, labels = dataset.train_images[index], dataset.train_labels[index]

    torch.manual_seed(args.seed)
    model = config["net"]().to(device)
    if args.loader == "fast":
        augment = RandomAffine(*config["affine"]) if config["affine"] else None
        train_loader = Loader(images, labels, config["batch_size"], shuffle=True, augment=augment)
    else:
        files = find_files(args.data_dir)
        raw = files[0].parent
        if raw.parts[-2:] != ("MNIST", "raw") or any(file.suffix == ".gz" for file in files):
            raise RunError(
                f"--data-dir: found the files in {raw}, expected them unpacked in MNIST/raw, as torchvision needs them"
            )
        train_loader = TorchvisionLoader(raw.parents[1], index, images, config)
    test_loader = Loader(dataset.test_images, dataset.test_labels, 1000, shuffle=False)
    optimizer = config["optimizer"](model.parameters())
    if config["one_cycle"]:
        scheduler = OneCycleLR(optimizer, total_steps=config["epochs"] * len(train_loader), **config["one_cycle"])
    else:
        scheduler = LambdaLR(optimizer, lambda step: 1.0)
    folder = create_run_folder(args.out, args.seed)
    metrics = {
        "dataset": dataset.name,
        "recipe": args.recipe,
        "loader": args.loader,
        "seed": args.seed,
        "params": count_parameters(model),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "precision": "fp32",
        "target": None,
        "target_epoch": None,
        "epochs": [],
        "train_seconds": 0.0,
    }
    for epoch in fit(model, optimizer, scheduler, train_loader, test_loader, "test", config, metrics["precision"]):
        record_epoch(metrics, epoch, "test")
        metrics["total_seconds"] = round(time.perf_counter() - start, 3)
        metrics["peak_memory_mb"] = peak_memory_mb()
        write_json(folder / "metrics.json", metrics)
        print(f"Epoch {epoch['epoch']}: {epoch['test_accuracy']:.2f}%, {epoch['seconds']:.1f} s", flush=True)


def main(argv=None):
    parser = Parser(
        prog="published.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", choices=PUBLISHED, metavar="NAME", help=f"one of {', '.join(PUBLISHED)}")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--loader", choices=("torchvision", "fast"), default="torchvision", help="(default: %(default)s)"
    )
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="as for train.py")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: %(default)s)"
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="folder of this run (default: runs/<time>-seed<N>)")
    args = parser.parse_args(argv)
    try:
        run(args)
    except (DataError, RunError) as error:
        print(f"published.py: error: {error}", file=sys.stderr)
        return error.exit_code
    except FloatingPointError as error:
        print(f"published.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("published.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
