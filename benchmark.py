"""Train recipes many times with different seeds, each run in a separate process; report means, never the best run.

    python benchmark.py default fast --runs 20 --seed 1000 --out results/ours.json
    python benchmark.py net-11034 --runs 3 --out results/published.json       a published recipe

A run is `python train.py --recipe NAME --seed S --target none` or `python -m experiment.train_published NAME`, and is
written to the file as soon as it is finished: the same command continues an interrupted benchmark.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from experiment.arguments import whole_number
from experiment.command import Parser, command, echo, path
from experiment.errors import ExperimentError, FileError
from experiment.files import lock, write_json, writing
from experiment.machine import describe_machine
from experiment.published import PUBLISHED
from experiment.report import table
from experiment.results import add_run, read_results
from experiment.settings import RECIPES

HERE = Path(__file__).parent
NAMES = ", ".join([*RECIPES, *PUBLISHED])


def new_result(recipe, loader="torchvision"):
    """The entry of `recipe` in the JSON, before its first run."""
    config = asdict(RECIPES[recipe]) if recipe in RECIPES else PUBLISHED[recipe].config(loader)
    config = json.loads(json.dumps(config))  # tuples are lists in JSON
    return {"recipe": recipe, "params": None, "config": config, **describe_machine(), "runs": []}


def train_once(recipe, seed, data_dir=None, loader="torchvision"):
    """Train `recipe` in a separate process: (content of its metrics.json, seconds from start to exit)."""
    if recipe in RECIPES:
        command = ["train", "--recipe", recipe, "--target", "none"]
    else:
        command = ["experiment.train_published", recipe, "--loader", loader]
    command += ["--seed", str(seed)] + (["--data-dir", str(data_dir)] if data_dir else [])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", *command, "--out", str(Path(folder, "run"))]
        process = subprocess.run(command, capture_output=True, text=True, env=environment)
        seconds = time.perf_counter() - start
        if process.returncode != 0:
            reason = (process.stderr.strip() or f"exit code {process.returncode}").splitlines()[-1]
            raise ExperimentError(f"{recipe}, seed {seed}: {reason}")
        return json.loads(Path(folder, "run", "metrics.json").read_text()), seconds


def check_alike(results, recipe, metrics):
    """FileError if a finished run had other data or another number of threads than the runs in `results`."""
    for result in (result for result in results if result["runs"]):
        expected = {"dataset": result["dataset"], "threads": result["runs"][0]["threads"]}
        found = {name: metrics[name] for name in expected}
        if found != expected:
            seed = metrics["seed"]
            raise FileError(
                f"{recipe}, seed {seed}: found {found}, expected {expected}; restore that or use another file"
            )


def open_results(path, new, seeds):
    """Load results to continue, or return `new` if there is no file; FileError if it holds other ones."""
    if not path.exists():
        return new
    old = read_results(path)
    for name in ("recipe", "config", "machine", "versions"):
        found, expected = ([result[name] for result in results] for results in (old, new))
        if found != expected:
            raise FileError(
                f"{path} was made with another {name}: found {found}, expected {expected}; use another file"
            )
    found = {run["seed"] for result in old for run in result["runs"]} - set(seeds)
    if found:
        expected = f"{seeds[0]} to {seeds[-1]}"
        raise FileError(f"{path} holds other seeds: found {sorted(found)}, expected {expected}; use another file")
    return old


def run_benchmark(args, train=train_once):
    """Do the runs that `args` ask for and the file lacks, by `train`, then print the table."""
    out, seeds = Path(args.out), range(args.seed, args.seed + args.runs)
    with writing(out.parent, "name another file"):
        out.parent.mkdir(parents=True, exist_ok=True)
    held = lock(out)
    try:
        results = open_results(out, [new_result(recipe, args.loader) for recipe in args.recipes], seeds)
        missing = [(s, r) for s in seeds for r in results if s not in {run["seed"] for run in r["runs"]}]
        for seed, result in tqdm(missing, unit="run", disable=None):
            metrics, process_seconds = train(result["recipe"], seed, args.data_dir, args.loader)
            check_alike(results, result["recipe"], metrics)
            add_run(result, metrics, process_seconds)
            write_json(out, results)
    except KeyboardInterrupt:
        echo("Interrupted; the same command continues with the runs that are missing")
        raise
    finally:
        held.release()
    for line in table(results):
        echo(line)


@command
def main(argv=None, train=train_once):
    parser = Parser(prog="benchmark.py", description=__doc__)
    parser.add_argument("recipes", nargs="+", metavar="NAME", help=f"one or more of {NAMES}")
    parser.add_argument("--runs", type=whole_number(1, 100_000), required=True, metavar="N", help="runs of each recipe")
    parser.add_argument("--seed", type=whole_number(0, 2**62), default=0, metavar="S", help="first seed (default: 0)")
    parser.add_argument("--out", type=path, required=True, metavar="FILE", help="JSON file to write, or to continue")
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="as for train.py")
    about = "of the published recipes: their own, or this project's (default: %(default)s)"
    parser.add_argument("--loader", choices=("torchvision", "fast"), default="torchvision", help=about)
    args = parser.parse_args(argv)
    unknown = [name for name in args.recipes if name not in {**RECIPES, **PUBLISHED}]
    if unknown:
        parser.error(f"NAME: found {', '.join(unknown)}, expected one or more of {NAMES}")
    run_benchmark(args, train)


if __name__ == "__main__":
    sys.exit(main())
