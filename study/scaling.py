"""How the seconds of an epoch grow with threads, processes, images, batch size and width.

    python -m study.scaling --rounds 3     measure each case three times, in turn; write results/scaling.json

Each case is one epoch of the recipe one-epoch in a separate process; MNIST's training images repeat to make more.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from experiment.cli import Parser, command, path, whole_number
from experiment.datasets import load_mnist
from experiment.files import write_json
from model import SIDE
from study.results import describe_machine
from study.runs import ROOT, run_process

BASE = {"threads": 2, "processes": 1, "images": 60_000, "batch_size": 64, "widths": (16, 16, 32, 24, 24)}
CASES = [  # what differs from BASE
    {},
    {"threads": 1},
    {"threads": 1, "processes": 2},
    {"images": 240_000},
    *({"batch_size": n} for n in (32, 128, 256, 512)),
    *({"widths": widths} for widths in ((8, 8, 16, 12, 12), (32, 32, 64, 48, 48))),
]


def repeat_images(file, dataset, count):
    """Write `dataset` to `file` as mnist.npz has it, its training images repeated to `count`."""
    train, test = ([tensor.numpy().astype(np.uint8) for tensor in split] for split in (dataset.train, dataset.test))
    images = np.resize(train[0], (count, SIDE, SIDE))
    np.savez(file, x_train=images, y_train=np.resize(train[1], count), x_test=test[0][:, 0], y_test=test[1])


def measure(threads, processes, images, batch_size, widths, data_dir):
    """Seconds of the epoch of one run."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes] if processes > 1 else []
    argv = [*launcher, ROOT / "train.py", "--recipe", "one-epoch", "--target", "none", "--no-plots"]
    argv += ["--data-dir", data_dir / f"{images}.npz", "--threads", threads]
    argv += ["--batch-size", batch_size, "--widths", *widths]
    return run_process(argv)[0]["train_seconds"]


@command
def main(argv=None):
    parser = Parser(prog="scaling.py", description=__doc__)
    parser.add_argument("--rounds", type=whole_number(1, 100), default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="as for train.py")
    args = parser.parse_args(argv)
    dataset, cases = load_mnist(args.data_dir), [{"case": case, "seconds": []} for case in CASES]
    with tempfile.TemporaryDirectory() as folder:
        for count in {{**BASE, **case}["images"] for case in CASES}:
            repeat_images(Path(folder, f"{count}.npz"), dataset, count)
        for case in cases * args.rounds:
            case["seconds"].append(measure(**{**BASE, **case["case"]}, data_dir=Path(folder)))
            print(f"{case['case'] or BASE}: {case['seconds'][-1]} s", flush=True)
    write_json(ROOT / "results" / "scaling.json", {"base": BASE, **describe_machine(), "cases": cases})


if __name__ == "__main__":
    sys.exit(main())
