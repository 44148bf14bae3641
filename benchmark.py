"""Train recipes many times with different seeds, each run in a separate process; report means, never the best run.

    python benchmark.py default fast --runs 20 --seed 1000 --out results/ours.json
    python benchmark.py net-11034 --runs 3 --out results/published.json       a published recipe

A run is `python train.py --recipe NAME --seed S --target none --no-plots` or `python -m experiment.train_published
NAME`. It is written to the file as soon as it is finished: the same command continues an interrupted benchmark, one
with other recipes adds these.
"""

import sys

if __name__ == "__main__":  # so that Ctrl-C prints one line even during the imports
    from experiment.command import exit_at_once, handle_signals

    handle_signals(exit_at_once)

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

import torch
from tqdm import tqdm

from experiment.arguments import whole_number
from experiment.command import Parser, command, echo, path
from experiment.datasets import load_mnist
from experiment.errors import ExperimentError, FileError
from experiment.files import lock, write_json, writing
from experiment.machine import describe_machine, resolve, usable_cpus
from experiment.progress import on_terminal
from experiment.published import PUBLISHED
from experiment.report import table
from experiment.results import add_run, read_results
from experiment.settings import RECIPES, Settings

HERE = Path(__file__).parent
NAMES = ", ".join([*RECIPES, *PUBLISHED])
SAME = ("config", "dataset", "sha256", "device", "precision", "machine", "versions")  # in one file


def new_result(name, dataset, threads):
    """The entry of the recipe `name` in the JSON, before its first run."""
    if name in RECIPES:
        settings, config = resolve(Settings(RECIPES[name], threads=threads)), RECIPES[name].values
    else:
        settings, config = resolve(Settings(threads=threads)), PUBLISHED[name].config
    return {
        "recipe": name,
        "params": None,
        "config": json.loads(json.dumps(config)),  # tuples are lists in JSON
        "dataset": dataset.name,
        "sha256": dataset.sha256,
        **{name: getattr(settings, name) for name in ("device", "threads", "precision")},
        **describe_machine(),
        "runs": [],
    }


def train_once(result, seed, data_dir=None, gpu=None):
    """Train the recipe of `result` in a separate process: (content of its metrics.json, seconds from start to exit).

    The process sees only the GPU with the number `gpu`, or all of them if that is None.
    """
    name, flags = result["recipe"], ("seed", "device", "threads")
    if name in RECIPES:
        module, flags = ["train", "--recipe", name, "--target", "none", "--no-plots"], (*flags, "precision")
    else:
        module = ["experiment.train_published", name]
    values = {**result, "seed": seed}
    module += [word for flag in flags for word in (f"--{flag}", str(values[flag]))]
    module += ["--data-dir", str(data_dir)] if data_dir else []
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    child_end, own_end = os.pipe()
    try:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-P", "-m", "experiment.child", *module, "--out", str(Path(folder, "run"))]
            start = time.perf_counter()
            process = subprocess.run(
                command, stdin=child_end, capture_output=True, encoding="utf-8", errors="replace", env=environment
            )
            seconds = time.perf_counter() - start
            if process.returncode != 0:
                reason = (process.stderr.strip() or f"exit code {process.returncode}").splitlines()[-1]
                raise ExperimentError(f"{name}, seed {seed}: {reason}")
            return json.loads(Path(folder, "run", "metrics.json").read_text()), seconds
    finally:
        os.close(child_end)
        os.close(own_end)


def open_results(path, new, seeds, same=SAME):
    """`new`, and the results already in the file at `path`; FileError if these are not of the `same` conditions."""
    if not path.exists():
        return new
    old, requested = read_results(path), {result["recipe"]: result for result in new}
    for result in old:
        expected = requested.pop(result["recipe"], {**new[0], "config": result["config"]})
        for name in same:
            if result.get(name) != expected[name]:
                raise FileError(
                    f"{path} was written with a different {name}: found {result.get(name)}, expected {expected[name]}; "
                    "restore that or use another file"
                )
    found = {run["seed"] for result in old for run in result["runs"]} - set(seeds)
    if found:
        expected = f"{seeds[0]} to {seeds[-1]}"
        raise FileError(f"{path} holds other seeds: found {sorted(found)}, expected {expected}; use another file")
    return [*old, *requested.values()]


def side_by_side(function, tasks, jobs):
    """Yield (task, function(*task, number of the worker)) for all `tasks` as they finish, `jobs` at once.

    The workers are threads that end with this process, and with each its run.
    """
    if jobs == 1:
        yield from ((task, function(*task, 0)) for task in tasks)
        return
    todo, done = deque(tasks), queue.SimpleQueue()

    def work(number):
        with contextlib.suppress(IndexError):  # nothing is left to do
            while True:
                task = todo.popleft()
                try:
                    done.put((task, function(*task, number), None))
                except BaseException as error:  # raised again below
                    done.put((task, None, error))

    for number in range(jobs):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    try:
        for _ in tasks:
            task, outcome, error = done.get()
            if error:
                raise error
            yield task, outcome
    finally:
        todo.clear()


def run_benchmark(args, train=train_once):
    """Perform the requested runs that the file lacks, using `train`, then print the table."""
    out, seeds = Path(args.out), range(args.seed, args.seed + args.runs)
    dataset = load_mnist(args.data_dir)
    with writing(out.parent, "name another file"):
        out.parent.mkdir(parents=True, exist_ok=True)
    held = lock(out)
    try:
        threads = args.threads or max(1, usable_cpus() // args.jobs)
        gpus = torch.cuda.device_count()
        new = [new_result(name, dataset, threads) for name in dict.fromkeys(args.recipes)]
        results = open_results(out, new, seeds, (*SAME, *(["threads"] if args.threads else [])))
        requested = [result for result in results if result["recipe"] in args.recipes]
        missing = [(s, r) for s in seeds for r in requested if s not in {run["seed"] for run in r["runs"]}]

        def work(seed, result, worker):
            return train(result, seed, args.data_dir, worker % gpus if gpus > 1 else None)

        finished = side_by_side(work, missing, args.jobs)
        bar = tqdm(finished, total=len(missing), unit="run", disable=not on_terminal())
        for (seed, result), (metrics, process_seconds) in bar:
            for name in ("sha256", "threads", "precision"):
                if metrics[name] != result[name]:
                    found = f"found {name} {metrics[name]}, expected {result[name]}"
                    raise FileError(f"{result['recipe']}, seed {seed}: {found}; restore that or use another file")
            add_run(result, metrics, process_seconds, args.jobs)
            write_json(out, results)
    except KeyboardInterrupt:
        echo("Interrupted; rerun the same command to continue with the missing runs")
        raise
    finally:
        held.release()
    for line in table(results):
        echo(line)
    if any(run.get("jobs", 1) > 1 for result in results for run in result["runs"]):
        echo("Some runs were trained side by side: their times do not compare with those of other runs")


@command
def main(argv=None, train=train_once):
    parser = Parser(prog="benchmark.py", description=__doc__)
    parser.add_argument("recipes", nargs="+", metavar="NAME", help=f"one or more of {NAMES}")
    parser.add_argument("--runs", type=whole_number(1, 100_000), required=True, metavar="N", help="runs of each recipe")
    parser.add_argument("--seed", type=whole_number(0, 2**62), default=0, metavar="S", help="first seed (default: 0)")
    parser.add_argument("--out", type=path, required=True, metavar="FILE", help="JSON file to write, or to continue")
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="as for train.py")
    parser.add_argument("--threads", type=whole_number(1, 1024), metavar="N", help="of each run, as for train.py")
    about = "runs side by side, which share the free CPUs and have a GPU each if there are several (default: 1)"
    parser.add_argument("--jobs", type=whole_number(1, 1024), default=1, metavar="N", help=about)
    args = parser.parse_args(argv)
    unknown = [name for name in args.recipes if name not in {**RECIPES, **PUBLISHED}]
    if unknown:
        parser.error(f"NAME: found {', '.join(unknown)}, expected one or more of {NAMES}")
    run_benchmark(args, train)


if __name__ == "__main__":
    sys.exit(main())
