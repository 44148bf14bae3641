"""How seconds per epoch and peak memory grow with threads, processes, images, batch size and width.

    python -m experiment.scaling                 measure, write results/scaling.json and scaling.png
    python -m experiment.scaling --rounds 3      each case three times, in turn; the picture shows medians

Each case is one epoch of the recipe one-epoch in a separate process; MNIST's training images repeat to make more.
"""

import sys

if __name__ == "__main__":  # so that Ctrl-C prints one line even during the imports
    from experiment.command import exit_at_once, handle_signals

    handle_signals(exit_at_once)

import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from experiment.arguments import whole_number
from experiment.command import Parser, command, echo, path
from experiment.datasets import load_mnist
from experiment.errors import ExperimentError
from experiment.files import replace_file, write_json
from experiment.machine import describe_machine
from experiment.mnist_files import FILES
from experiment.plots import BLUE, png

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
BASE = {"threads": 2, "processes": 1, "images": 60_000, "batch_size": 64, "widths": (16, 16, 32, 24, 24)}
CASES = [  # what differs from BASE
    *({"threads": n} for n in (1, 2)),
    *({"threads": 1, "processes": n} for n in (1, 2)),
    *({"images": n} for n in (60_000, 240_000, 960_000)),
    *({"batch_size": n} for n in (32, 64, 128, 256, 512)),
    *({"widths": tuple(width * n // 2 for width in BASE["widths"])} for n in (1, 2, 4)),
]


def repeat_images(folder, dataset, count):
    """Write `dataset` to `folder` in MNIST's format, its training images repeated to `count`."""
    for names, split, n in ((FILES[:2], dataset.train, count), (FILES[2:], dataset.test, len(dataset.test.labels))):
        times = -(-n // len(split.labels))
        for name, items in zip(names, (split.images.squeeze(1), split.labels.byte())):
            shape = (n, *items.shape[1:])
            with open(folder / name, "wb") as file:
                file.write(bytes((0, 0, 8, len(shape))) + b"".join(size.to_bytes(4, "big") for size in shape))
                for i in range(times):
                    file.write(items[: n - i * len(items)].numpy())


def measure(case, data_dir):
    """(seconds of the epoch, peak memory in MB of the first process) of one run of `case`."""
    values = {**BASE, **case}
    flags = ["--recipe", "one-epoch", "--target", "none", "--seed", "0", "--data-dir", data_dir]
    flags += ["--threads", values["threads"], "--batch-size", values["batch_size"], "--widths", *values["widths"]]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", values["processes"]]
    with tempfile.TemporaryDirectory() as folder:
        argv = [*(launcher if values["processes"] > 1 else []), "train.py", *flags, "--out", f"{folder}/run"]
        argv = [sys.executable, *map(str, argv)]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise ExperimentError(f"{case}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
        metrics = json.loads(Path(folder, "run", "metrics.json").read_text())
        return metrics["train_seconds"], metrics["peak_memory_mb"]


def draw(cases):
    """PNG bytes: seconds per epoch over each quantity, in proportion to the least, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, axis in zip(figure.subplots(1, len(BASE), sharey=True), BASE):
        rows = [(case["case"], statistics.median(case["seconds"])) for case in cases if axis in case["case"]]
        rows = [row for row in rows if axis == list(row[0])[-1]]
        x = [case[axis][0] if axis == "widths" else case[axis] for case, _ in rows]
        axes.plot(x, [seconds for _, seconds in rows], "o-", color=BLUE)
        axes.set(xscale="log", yscale="log", xlabel="first width" if axis == "widths" else axis.replace("_", " "))
        axes.set_xticks(x, [f"{n:,}" if n < 10_000 else f"{n // 1000}k" for n in x])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel="seconds per epoch", yticks=(2, 5, 10, 20, 50), yticklabels=(2, 5, 10, 20, 50))
    return png(figure)


@command
def main(argv=None):
    parser = Parser(prog="scaling.py", description=__doc__)
    parser.add_argument("--rounds", type=whole_number(1, 100), default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="as for train.py")
    args = parser.parse_args(argv)
    dataset, cases = load_mnist(args.data_dir), [{"case": case, "seconds": [], "peak_memory_mb": []} for case in CASES]
    with tempfile.TemporaryDirectory() as folder:
        for count in {{**BASE, **case}["images"] for case in CASES}:
            Path(folder, str(count)).mkdir()
            repeat_images(Path(folder, str(count)), dataset, count)
        for _ in range(args.rounds):
            for case in cases:
                seconds, memory = measure(case["case"], f"{folder}/{ {**BASE, **case['case']}['images'] }")
                case["seconds"].append(seconds)
                case["peak_memory_mb"].append(memory)
                echo(f"{case['case']}: {seconds} s, {memory} MB")
    write_json(RESULTS / "scaling.json", {"base": BASE, **describe_machine(), "cases": cases})
    replace_file(RESULTS / "scaling.png", draw(cases))


if __name__ == "__main__":
    sys.exit(main())
