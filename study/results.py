"""The results of benchmark.py: what a run adds to its JSON, and the statistics over all runs."""

import itertools
import json
import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path

from experiment.errors import FileError, reason

TARGET = 99.4
KEYS = {"recipe", "params", "config", "machine", "versions", "runs"}
RUN_KEYS = {"seed", "epoch_test_accuracy", "final_test_accuracy", "train_seconds", "total_seconds", "peak_memory_mb"}


def add_run(result, metrics, process_seconds, jobs=1):
    """Add the content of a run's metrics.json to `result`, in the order of the seeds, and summarise all runs anew."""
    accuracies = [epoch["test_accuracy"] for epoch in metrics["epochs"]]
    seconds = [epoch["seconds"] for epoch in metrics["epochs"]]
    result["params"] = metrics["params"]
    run = {
        "seed": metrics["seed"],
        "epoch_test_accuracy": accuracies,
        "epoch_seconds": seconds,
        "passes": round(sum(epoch["images"] for epoch in metrics["epochs"]) / metrics["train_images"], 4),
        "final_test_accuracy": metrics["final_test_accuracy"],
        "train_seconds": metrics["train_seconds"],
        "total_seconds": round(process_seconds, 3),
        **{name: metrics[name] for name in ("peak_memory_mb", "threads", "precision")},
        **({"jobs": jobs} if jobs > 1 else {}),  # trained side by side
    }
    result["runs"] = sorted([*result["runs"], run], key=lambda run: run["seed"])
    summary = summarise(result["runs"])
    result.update({name: summary[name] for name in ("mean", "std", "ci95")})


def summarise(runs):
    """Mean, sample standard deviation, 95% confidence interval of the mean (Student's t), times, and more.

    `seconds` holds the training time up to the end of each epoch, from medians over the runs; `first_epoch` is the
    first after which the mean accuracy is at least 99.4%; `seconds_to_target` is the time up to it, or all if there is
    none. The interval is given from five runs on.
    """
    from scipy.stats import t

    finals = [run["final_test_accuracy"] for run in runs]
    n, mean, std, ci95 = len(finals), statistics.fmean(finals), None, None
    if n > 1:
        std = statistics.stdev(finals)
        half = float(t.ppf(0.975, n - 1)) * std / n**0.5
        std, ci95 = round(std, 4), [round(mean - half, 4), round(mean + half, 4)] if n >= 5 else None
    by_epoch = [statistics.fmean(column) for column in zip(*(run["epoch_test_accuracy"] for run in runs))]
    epoch = next((i for i, accuracy in enumerate(by_epoch, 1) if accuracy >= TARGET), None)
    by_run = (run.get("epoch_seconds") or [run["train_seconds"] / len(by_epoch)] * len(by_epoch) for run in runs)
    seconds = list(itertools.accumulate(statistics.median(column) for column in zip(*by_run)))
    to_target = seconds[epoch - 1] if epoch else seconds[-1]
    return {
        "n": n,
        "epochs": len(by_epoch),
        "passes": statistics.median(run.get("passes", len(by_epoch)) for run in runs),
        "by_epoch": by_epoch,
        "mean": round(mean, 4),
        "std": std,
        "ci95": ci95,
        "min": min(finals),
        "reached": sum(final >= TARGET for final in finals),
        "first_epoch": epoch,
        "seconds": seconds,
        "seconds_to_target": to_target,
        "total_seconds": statistics.median(run["total_seconds"] for run in runs),
        "peak_memory_mb": max(run["peak_memory_mb"] or 0 for run in runs) or None,
    }


def read_results(path):
    """The list of results in the file at `path`; FileError if it is damaged."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        for result in results:
            for part, keys in [(result, KEYS), *((run, RUN_KEYS) for run in result["runs"])]:
                if missing := keys - part.keys():
                    raise ValueError(f"no {', '.join(sorted(missing))}")
            if result["runs"]:
                summarise(result["runs"])
    except Exception as error:  # whatever is in it
        raise FileError(f"{path} is not a benchmark's JSON ({reason(error)}); name another or remove it") from error
    return results


def describe_machine():
    """{"machine": processor, cores and system; "versions": of Python and the packages that matter}."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "torchvision")}}
    return {"machine": f"{model}, {os.cpu_count()} cores, {platform.system()}", "versions": versions}
