"""Train recipes many times with different seeds, each run in a separate process; report means, never the best run.

    python benchmark.py default fast --runs 20 --seed 1000 --out runs/ours.json
    python benchmark.py net-11034 --runs 3 --out runs/published.json       a published recipe

A run is `python train.py --recipe NAME --seed S --target none --no-plots` or `python -m study.train_published
NAME`. It is written to the file as soon as it is finished: the same command continues an interrupted benchmark, one
with other recipes adds these.
"""

import contextlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from functools import partial
from pathlib import Path

import psutil
from tqdm import tqdm

from experiment.cli import Parser, command, path, whole_number
from experiment.datasets import load_mnist
from experiment.errors import ExperimentError, FileError
from experiment.files import lock, write_json, writing
from experiment.machine import set_up, usable_cpus
from experiment.meter import on_terminal
from experiment.settings import RECIPES, Settings
from study.published import PUBLISHED
from study.report import plain_table
from study.results import add_run, describe_machine, read_results
from study.runs import run_process

ALL = {**RECIPES, **PUBLISHED}
SAME = ("config", "dataset", "sha256", "device", "precision", "machine", "versions")  # in one file


def new_result(name, dataset, threads):
    """The entry of the recipe `name` in the JSON, before its first run."""
    settings, config = set_up(Settings(threads=threads)), ALL[name].values
    config = json.loads(json.dumps(config))  # tuples are lists in JSON
    result = {"recipe": name, "params": None, "config": config, "dataset": dataset.name, "sha256": dataset.sha256}
    result |= {name: getattr(settings, name) for name in ("device", "threads", "precision")}
    return {**result, **describe_machine(), "runs": []}


def train_once(result, seed, data_dir=None):
    """Train the recipe of `result` in a separate process: (content of its metrics.json, seconds from start to exit)."""
    name = result["recipe"]
    if name in RECIPES:
        argv = ["-m", "train", "--recipe", name, "--target", "none", "--no-plots", "--precision", result["precision"]]
    else:
        argv = ["-m", "study.train_published", name]
    argv += ["--seed", seed, "--device", result["device"], "--threads", result["threads"]]
    argv += ["--data-dir", data_dir] if data_dir else []
    try:
        return run_process(argv)
    except ExperimentError as error:
        raise ExperimentError(f"{name}, seed {seed}: {error}") from error


def open_results(path, new, seeds, same):
    """`new`, and the results already in the file at `path`; FileError if these are not of the `same` conditions."""
    if not path.exists():
        return new
    old, requested = read_results(path), {result["recipe"]: result for result in new}
    for result in old:
        only_there = {**new[0], "config": result["config"]}  # of the same conditions, but with its own settings
        expected = requested.pop(result["recipe"], only_there)
        for name in same:
            if result.get(name) != expected[name]:
                what = f"a different {name}: found {result.get(name)}, expected {expected[name]}"
                raise FileError(f"{path} was written with {what}; restore that or use another file")
    if found := {run["seed"] for result in old for run in result["runs"]} - set(seeds):
        expected = f"{seeds[0]} to {seeds[-1]}"
        raise FileError(f"{path} holds other seeds: found {sorted(found)}, expected {expected}; use another file")
    return [*old, *requested.values()]


def side_by_side(function, tasks, jobs):
    """Yield (task, function(*task)) for all `tasks` as they finish, `jobs` at once."""
    if jobs == 1:  # without a thread that starts the next run before this one is written
        yield from ((task, function(*task)) for task in tasks)
        return
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(function, *task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:  # the runs in progress end too
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):  # one may be about to start
                for process in psutil.Process().children():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.terminate()
                wait(futures, timeout=0.1)
            raise


@command
def main(argv=None, train=train_once):
    parser = Parser(prog="benchmark.py", description=__doc__)
    about = f"one or more of {', '.join(ALL)}"
    parser.add_argument("recipes", nargs="+", choices=ALL, metavar="NAME", help=about)
    parser.add_argument("--runs", type=whole_number(1, 100_000), required=True, metavar="N", help="runs of each recipe")
    parser.add_argument("--seed", type=whole_number(0, 2**62), default=0, metavar="S", help="first seed (default: 0)")
    parser.add_argument("--out", type=path, required=True, metavar="FILE", help="JSON file to write, or to continue")
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="as for train.py")
    parser.add_argument("--threads", type=whole_number(1, 1024), metavar="N", help="of each run, as for train.py")
    about = "runs side by side, which share the free CPUs (default: 1)"
    parser.add_argument("--jobs", type=whole_number(1, 1024), default=1, metavar="N", help=about)
    args = parser.parse_args(argv)
    out, seeds = Path(args.out), range(args.seed, args.seed + args.runs)
    dataset = load_mnist(args.data_dir)
    with writing(out.parent, "name another file"):
        out.parent.mkdir(parents=True, exist_ok=True)
    held = lock(out)
    try:
        threads = args.threads or max(1, usable_cpus() // args.jobs)
        new = [new_result(name, dataset, threads) for name in dict.fromkeys(args.recipes)]
        results = open_results(out, new, seeds, (*SAME, *(["threads"] if args.threads else [])))
        requested = [result for result in results if result["recipe"] in args.recipes]
        missing = [(r, s) for s in seeds for r in requested if s not in {run["seed"] for run in r["runs"]}]
        finished = side_by_side(partial(train, data_dir=args.data_dir), missing, args.jobs)
        bar = tqdm(finished, total=len(missing), unit="run", disable=not on_terminal())
        for (result, seed), (metrics, process_seconds) in bar:
            if metrics["sha256"] != result["sha256"]:
                what = "the data have changed; restore them, or use another file"
                raise FileError(f"{result['recipe']}, seed {seed}: {what}")
            add_run(result, metrics, process_seconds, args.jobs)
            write_json(out, results)
    except KeyboardInterrupt:
        print("Interrupted; rerun the same command to continue with the missing runs")
        raise
    finally:
        held.release()
    print(plain_table(results))
    if any(run.get("jobs", 1) > 1 for result in results for run in result["runs"]):
        print("Some runs were trained side by side: their times do not compare with those of other runs")


if __name__ == "__main__":
    sys.exit(main())
