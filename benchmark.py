"""Train recipes many times with different seeds; report means over all runs, never the best one.

    python benchmark.py default fast --runs 20 --seed 1000 --out results/ours.json
    python benchmark.py net-11034 --runs 3 --out results/published.json       a published recipe
    python benchmark.py --table results/*.json        the tables, and two pictures beside the first file

Every run is a process of its own, `python train.py --recipe NAME --seed S --target none` or `python published.py`,
and is written to the file as soon as it is finished: the same command goes on where an interrupted one was.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from options import RECIPES, Parser, number, path
from published import PEERS, PUBLISHED
from record import RunError, lock, write_json

TARGET = 99.4
NAMES = ", ".join([*RECIPES, *PUBLISHED])
HERE = Path(__file__).parent


def settings(recipe, loader):
    """What the runs of `recipe` depend on, as it goes into the JSON."""
    if recipe in RECIPES:
        return RECIPES[recipe]
    published = {name: value for name, value in PUBLISHED[recipe].items() if not callable(value)}
    return json.loads(json.dumps({**published, "loader": loader}))


def train_once(recipe, seed, data_dir, loader):
    """Train `recipe` in a process of its own: (what its metrics.json holds, seconds from start to exit)."""
    if recipe in RECIPES:
        command = ["train.py", "--recipe", recipe, "--target", "none"]
    else:
        command = ["published.py", recipe, "--loader", loader]
    command[0] = str(HERE / command[0])
    command += ["--seed", str(seed)] + (["--data-dir", str(data_dir)] if data_dir else [])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, *command, "--out", str(Path(folder, "run"))]
        process = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if process.returncode != 0:
            raise RunError(
                f"{recipe}, seed {seed}: {(process.stderr.strip() or str(process.returncode)).splitlines()[-1]}"
            )
        return json.loads(Path(folder, "run", "metrics.json").read_text()), seconds


def describe_machine():
    """{"machine": processor, cores and system; "versions": of Python and the packages that matter}."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    packages = {name: version(name) for name in ("torch", "torchvision")}
    return {
        "machine": f"{model}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"python": platform.python_version(), **packages},
    }


def new_result(recipe, loader="torchvision"):
    return {"recipe": recipe, "params": None, "config": settings(recipe, loader), **describe_machine(), "runs": []}


def add_run(result, metrics, process_seconds):
    """Enter a finished run into `result`, in the order of the seeds, and summarise all of them anew."""
    accuracies = [epoch["test_accuracy"] for epoch in metrics["epochs"]]
    seconds = [epoch["seconds"] for epoch in metrics["epochs"]]
    met = next((i for i, accuracy in enumerate(accuracies, 1) if accuracy >= TARGET), None)
    result["params"] = metrics["params"]
    result["dataset"] = metrics["dataset"]
    result["runs"].append(
        {
            "seed": metrics["seed"],
            "epoch_test_accuracy": accuracies,
            "final_test_accuracy": metrics["final_test_accuracy"],
            "train_seconds": metrics["train_seconds"],
            "seconds_to_target": round(metrics["train_seconds"] - sum(seconds[met:]), 3) if met else None,
            "total_seconds": round(process_seconds, 3),
            "peak_memory_mb": metrics["peak_memory_mb"],
            "threads": metrics["threads"],
            "precision": metrics["precision"],
        }
    )
    result["runs"].sort(key=lambda run: run["seed"])
    summary = summarise(result["runs"])
    result.update({name: summary[name] for name in ("mean", "std", "ci95")})


def summarise(runs):
    """Mean, sample standard deviation, 95% confidence interval of the mean (Student's t), and more."""
    from scipy.stats import t  # scipy comes with scikit-learn

    finals = [run["final_test_accuracy"] for run in runs]
    n, mean = len(finals), statistics.fmean(finals)
    std = statistics.stdev(finals) if n > 1 else None
    half = t.ppf(0.975, n - 1) * std / n**0.5 if n > 1 else None
    by_epoch = [statistics.fmean(column) for column in zip(*(run["epoch_test_accuracy"] for run in runs))]
    epoch = next((i for i, accuracy in enumerate(by_epoch, 1) if accuracy >= TARGET), None)
    per_epoch = statistics.median(run["train_seconds"] / len(run["epoch_test_accuracy"]) for run in runs)
    return {
        "n": n,
        "epochs": len(by_epoch),
        "by_epoch": by_epoch,
        "mean": round(mean, 4),
        "std": None if std is None else round(std, 4),
        "ci95": None if half is None else [round(mean - half, 4), round(mean + half, 4)],
        "min": min(finals),
        "reached": sum(final >= TARGET for final in finals),
        "first_epoch": epoch,
        "seconds_per_epoch": per_epoch,
        "seconds_to_target": per_epoch * epoch if epoch else None,
        "total_seconds": statistics.median(run["total_seconds"] for run in runs),
        "peak_memory_mb": max(run["peak_memory_mb"] or 0 for run in runs),
    }


def table(results):
    """The lines of a Markdown table of `results` that have runs.

    Seconds per epoch and of the process are medians over the runs, seconds to 99.4% that median times the epochs.
    """
    yield (
        "| recipe | parameters | epochs | n | mean ± std (%) | 95% CI of the mean | min | runs ≥ 99.4% "
        "| first epoch with mean ≥ 99.4% | training s/epoch | training s to it | process s | peak MB |"
    )
    yield "|" + " --- |" * 13
    for result in results:
        if not result["runs"]:
            continue
        s = summarise(result["runs"])
        std = "" if s["std"] is None else f" ± {s['std']:.3f}"
        interval = "–" if s["ci95"] is None else f"{s['ci95'][0]:.3f} to {s['ci95'][1]:.3f}"
        to_target = "–" if s["first_epoch"] is None else f"{s['seconds_to_target']:.1f}"
        yield (
            f"| {name_of(result)} | {result['params']:,} | {s['epochs']} | {s['n']} | {s['mean']:.3f}{std} "
            f"| {interval} | {s['min']:.2f} | {s['reached']} of {s['n']} | {s['first_epoch'] or '–'} "
            f"| {s['seconds_per_epoch']:.1f} | {to_target} | {s['total_seconds']:.1f} | {s['peak_memory_mb']:.0f} |"
        )


def name_of(result):
    return result["recipe"] + (" (fast loader)" if result["config"].get("loader") == "fast" else "")


def draw(results, folder):
    """Two pictures in `folder`: accuracy over training seconds (one machine), and accuracy over parameters."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Of a recipe in several files, the one with the most runs.
    results = sorted((result for result in results if result["runs"]), key=lambda result: len(result["runs"]))
    results = {name_of(result): result for result in results}.values()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for result in results:
        s = summarise(result["runs"])
        seconds = [s["seconds_per_epoch"] * epoch for epoch in range(1, s["epochs"] + 1)]
        style = "o-" if result["recipe"] in RECIPES else "s:"
        axes.plot(seconds, s["by_epoch"], style, markersize=4, label=f"{name_of(result)} (n = {s['n']})")
    axes.axhline(TARGET, color="grey", linestyle="--", linewidth=1)
    axes.set(xscale="log", ylim=(98.5, 99.8), xlabel="training seconds", ylabel="mean test accuracy (%)")
    axes.set_title("After every epoch, mean over n runs")
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(folder / "accuracy_over_seconds.png", dpi=120)
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for params, best in PEERS.values():
        axes.plot(params, best, "x", color="grey")
    axes.plot([], [], "x", color="grey", label="published elsewhere: best epoch of one run")
    for result in results:
        if result["config"].get("loader") == "fast":
            continue  # loaders change the seconds, not the net
        s = summarise(result["runs"])
        ours = result["recipe"] in RECIPES
        spread = s["std"] or 0
        axes.errorbar(result["params"], s["mean"], yerr=spread, fmt="o" if ours else "s", color="C0" if ours else "C1")
        axes.annotate(
            name_of(result),
            (result["params"], s["mean"]),
            textcoords="offset points",
            xytext=(6, 4),
            rotation=30,  # neighbours do not cover each other
            fontsize=8,
        )
    axes.errorbar([], [], fmt="o", color="C0", label="this project: final epoch, mean ± std")
    axes.errorbar([], [], fmt="s", color="C1", label="published recipes, trained here: final epoch, mean ± std")
    axes.axhline(TARGET, color="grey", linestyle="--", linewidth=1)
    axes.set(xlim=(0, 22_500), xlabel="parameters", ylabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center")
    figure.savefig(folder / "accuracy_over_parameters.png", dpi=120)
    plt.close(figure)


def read_results(path):
    """The list of results in the file at `path`; RunError where it is damaged."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        for result in results:
            if missing := {"recipe", "config", "machine", "versions", "runs"} - result.keys():
                raise ValueError(f"no {', '.join(sorted(missing))}")
            if result["runs"]:
                summarise(result["runs"])
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise RunError(f"{path} is not a benchmark's JSON ({reason}); name another file or remove it") from error
    return results


def check_alike(results, recipe, metrics):
    """RunError where a finished run had other data or another number of threads than the runs in `results`."""
    for result in results:
        if not result["runs"]:
            continue
        expected = {"dataset": result["dataset"], "threads": result["runs"][0]["threads"]}
        found = {name: metrics[name] for name in expected}
        if found != expected:
            raise RunError(
                f"{recipe}, seed {metrics['seed']}: found {found}, expected {expected} as in the runs before; "
                "restore that, or name another file"
            )


def open_results(path, new, seeds):
    """Results to go on with: those in the file, or `new` where there is none; RunError if the file is of others."""
    if not path.exists():
        return new
    old = read_results(path)
    for name in ("recipe", "config", "machine", "versions"):
        found, expected = ([result[name] for result in results] for results in (old, new))
        if found != expected:
            raise RunError(
                f"{path} was made with another {name}: found {found}, expected {expected}; name another file"
            )
    found = {run["seed"] for result in old for run in result["runs"]} - set(seeds)
    if found:
        raise RunError(
            f"{path} holds other seeds: found {sorted(found)}, expected {seeds[0]} to {seeds[-1]}; name another file"
        )
    return old


def run_benchmark(args):
    """Train what `args` ask for and is not yet in the file, then print the table."""
    out, seeds = Path(args.out), range(args.seed, args.seed + args.runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    with lock(out):
        results = open_results(out, [new_result(recipe, args.loader) for recipe in args.recipes], seeds)
        missing = [(s, r) for s in seeds for r in results if s not in {run["seed"] for run in r["runs"]}]
        for seed, result in tqdm(missing, unit="run", disable=None):
            metrics, process_seconds = train_once(result["recipe"], seed, args.data_dir, args.loader)
            check_alike(results, result["recipe"], metrics)
            add_run(result, metrics, process_seconds)
            write_json(out, results)
    print("\n".join(table(results)))


def parse_args(argv=None):
    parser = Parser(
        prog="benchmark.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipes", nargs="*", metavar="NAME", help=f"one or more of {NAMES}")
    parser.add_argument("--runs", type=number(int, 1, 100_000), metavar="N", help="runs of each recipe")
    parser.add_argument("--seed", type=number(int, 0, 2**62), default=0, metavar="S", help="first seed (default: 0)")
    parser.add_argument("--out", type=path, metavar="FILE", help="JSON file to write, or to go on with")
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="as for train.py")
    parser.add_argument(
        "--loader",
        choices=("torchvision", "fast"),
        default="torchvision",
        help="for the published recipes: their own loader, or this project's (default: %(default)s)",
    )
    parser.add_argument("--table", nargs="+", metavar="FILE", help="print the table of finished files, train nothing")
    args = parser.parse_args(argv)
    if args.table is None:
        unknown = [name for name in args.recipes if name not in {**RECIPES, **PUBLISHED}]
        if unknown or not args.recipes:
            found = ", ".join(unknown) or "no recipe"
            parser.error(f"NAME: found {found}, expected one or more of {NAMES}")
        if args.runs is None or args.out is None:
            parser.error("--runs N and --out FILE are needed to train")
    return args


def main(argv=None):
    """Run the command line `argv`; returns the exit code."""
    args = parse_args(argv)
    try:
        if args.table:
            results = [result for path in args.table for result in read_results(path)]
            print("\n".join(table(results)))
            draw(results, Path(args.table[0]).parent)
        else:
            run_benchmark(args)
    except RunError as error:
        print(f"benchmark.py: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"benchmark.py: error: {error.filename} cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmark.py: interrupted; the same command goes on with the runs that are missing", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
