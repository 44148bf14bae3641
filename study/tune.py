"""Compare settings of a recipe on held-out training images: on the same splits and seeds, one line of JSON a run.

    python -m study.tune default --set "" --set "--epochs 8" --set "--lr 0.8 --momentum 0.85" --out tune.jsonl

A run is `python train.py --recipe NAME SETTING --holdout 10000 --target none --threads 1 --no-plots --seed S`; the seed
draws the split too. The same command continues an interrupted comparison.
"""

import json
import shlex
import statistics
import sys
from pathlib import Path

from experiment.cli import Parser, command, path, whole_number
from experiment.files import lock
from experiment.settings import RECIPES
from study.runs import run_process


def tune(recipe, setting, seed, data_dir):
    """One run: a dict with accuracy and loss on the held-out images after its last epoch."""
    argv = ["-m", "train", "--recipe", recipe, *shlex.split(setting), "--seed", seed, "--holdout", 10_000]
    argv += ["--target", "none", "--threads", 1, "--no-plots", *(["--data-dir", data_dir] if data_dir else [])]
    metrics, seconds = run_process(argv)
    last, images = metrics["epochs"][-1], sum(epoch["images"] for epoch in metrics["epochs"])
    figures = {"accuracy": last["holdout_accuracy"], "loss": last["holdout_loss"], "parameters": metrics["params"]}
    return figures | {"passes": round(images / metrics["train_images"], 3), "seconds": round(seconds, 1)}


@command
def main(argv=None):
    parser = Parser(prog="tune.py", description=__doc__)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument(
        "--set", action="append", required=True, metavar="FLAGS", help='flags of train.py, --set="--lr 2"; "": none'
    )
    parser.add_argument("--runs", type=whole_number(1, 10_000), default=8, metavar="N", help="of each (default: 8)")
    parser.add_argument("--seed", type=whole_number(0, 2**62), default=0, metavar="S", help="first seed (default: 0)")
    parser.add_argument("--out", type=path, required=True, metavar="FILE", help="file to write, or to continue")
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="as for train.py")
    args = parser.parse_args(argv)
    held, out = lock(args.out), Path(args.out)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for seed in range(args.seed, args.seed + args.runs):
        for setting in args.set:
            asked = {"recipe": args.recipe, "set": setting, "seed": seed}
            if not any(asked.items() <= row.items() for row in rows):
                rows.append(asked | tune(args.recipe, setting, seed, args.data_dir))
                with open(out, "a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    held.release()
    for setting in args.set:
        found = [row["accuracy"] for row in rows if (row["recipe"], row["set"]) == (args.recipe, setting)]
        std = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
        print(f"{statistics.fmean(found):.3f}{std}% ({len(found)})  {args.recipe} {setting}")


if __name__ == "__main__":
    sys.exit(main())
