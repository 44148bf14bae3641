"""The results of benchmark.py: what a run adds to its JSON, and the statistics over all runs."""

import contextlib
import json
import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path

from experiment.errors import FileError, reading

TARGET = 99.4
KEYS = {"recipe", "params", "config", "machine", "versions", "runs"}
RUN_KEYS = {"seed", "epoch_test_accuracy", "epoch_seconds", "passes"}
RUN_KEYS |= {"final_test_accuracy", "total_seconds", "peak_memory_mb"}


def add_run(result, metrics, process_seconds, jobs=1):
    """Add the content of a run's metrics.json to `result`, in the order of the seeds, and summarise all runs anew."""
    result["params"], epochs = metrics["params"], metrics["epochs"]
    copied = ("seed", "final_test_accuracy", "train_seconds", "peak_memory_mb", "threads", "precision")
    run = {name: metrics[name] for name in copied} | {
        "epoch_test_accuracy": [epoch["test_accuracy"] for epoch in epochs],
        "epoch_seconds": [epoch["seconds"] for epoch in epochs],
        "passes": round(sum(epoch["images"] for epoch in epochs) / metrics["train_images"], 4),
        "total_seconds": round(process_seconds, 3),
    }
    if jobs > 1:
        run["jobs"] = jobs  # trained side by side
    result["runs"] = sorted([*result["runs"], run], key=lambda run: run["seed"])
    summary = summarise(result["runs"])
    result.update({name: summary[name] for name in ("mean", "std", "ci95")})


def interval(values):
    """95% confidence interval (low, high) of the mean of two or more `values`, by Student's t."""
    from scipy.stats import t

    n, mean = len(values), statistics.fmean(values)
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
    return mean - half, mean + half


def summarise(runs):
    """Mean, sample standard deviation, from five runs on a 95% confidence interval, times, and more.

    `first_epoch` is the first with a mean accuracy of 99.4%, or None. Times are medians of the runs: of training and of
    the whole process, and the same without the training of later epochs, `to_target`.
    """
    finals = [run["final_test_accuracy"] for run in runs]
    n, mean = len(finals), statistics.fmean(finals)
    ci95 = [round(end, 4) for end in interval(finals)] if n >= 5 else None
    by_epoch = [statistics.fmean(column) for column in zip(*(run["epoch_test_accuracy"] for run in runs))]
    epoch = next((i for i, accuracy in enumerate(by_epoch, 1) if round(accuracy, 6) >= TARGET), None)
    training, whole = [sum(run["epoch_seconds"]) for run in runs], [run["total_seconds"] for run in runs]
    later = [sum(run["epoch_seconds"][epoch or len(by_epoch) :]) for run in runs]
    return {
        "n": n,
        "epochs": len(by_epoch),
        "passes": statistics.median(run["passes"] for run in runs),
        "by_epoch": by_epoch,
        "mean": round(mean, 4),
        "std": round(statistics.stdev(finals), 4) if n > 1 else None,
        "ci95": ci95,
        "min": min(finals),
        "reached": sum(final >= TARGET for final in finals),
        "first_epoch": epoch,
        "seconds": statistics.median(training),
        "seconds_to_target": statistics.median(all_epochs - rest for all_epochs, rest in zip(training, later)),
        "total_seconds": statistics.median(whole),
        "total_seconds_to_target": statistics.median(process - rest for process, rest in zip(whole, later)),
        "peak_memory_mb": max(run["peak_memory_mb"] or 0 for run in runs) or None,
    }


def summarise_all(results):
    """{recipe: summary} of those `results` that have runs."""
    return {result["recipe"]: summarise(result["runs"]) for result in results if result["runs"]}


def read_results(path):
    """The list of results in the file at `path`; FileError if it is damaged."""
    with reading(path, "expected a benchmark's JSON; name another file or remove it", FileError):
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        for result in results:
            for part, keys in [(result, KEYS), *((run, RUN_KEYS) for run in result["runs"])]:
                if missing := keys - part.keys():
                    raise ValueError(f"no {', '.join(sorted(missing))}")
        summarise_all(results)
    return results


def describe_machine():
    """{"machine": processor, cores and system; "versions": of Python and the packages that matter}."""
    lines = []
    with contextlib.suppress(OSError):  # not Linux, or hidden
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    model = models[0] if models else platform.processor() or platform.machine()
    versions = {"python": platform.python_version(), "torch": version("torch"), "torchvision": version("torchvision")}
    return {"machine": f"{model}, {os.cpu_count()} cores, {platform.system()}", "versions": versions}
