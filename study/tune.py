"""Compare settings of a recipe on held-out training images: on the same splits and seeds, one line of JSON a run.

    python -m study.tune default --set "" --set "--epochs 8" --set "--lr 0.8 --momentum 0.85" --out tune.jsonl
    python -m study.tune tiny --set "--widths 8 8 8 8 8" --test --out final.jsonl       report, once it is chosen

A run is `python train.py --recipe NAME SETTING --holdout 10000 --target none --threads 1 --no-plots --seed S`; the seed
draws the split too. With --test none are held out. The same command continues an interrupted comparison.
"""

import json
import shlex
import statistics
import sys
from pathlib import Path

from experiment.cli import Parser, command, path, whole_number
from experiment.files import lock
from experiment.settings import RECIPES
from study.results import describe_machine
from study.runs import run_process


def tune(recipe, setting, seed, split, data_dir):
    """One run: a dict with accuracy and loss on `split`, "holdout" or "test", after its last epoch."""
    argv = ["-m", "train", "--recipe", recipe, *shlex.split(setting), "--seed", seed, "--target", "none"]
    argv += ["--threads", 1, "--no-plots", *(["--holdout", 10_000] if split == "holdout" else [])]
    metrics, seconds = run_process([*argv, *(["--data-dir", data_dir] if data_dir else [])])
    last, images = metrics["epochs"][-1], sum(epoch["images"] for epoch in metrics["epochs"])
    figures = {"accuracy": last[f"{split}_accuracy"], "loss": last[f"{split}_loss"], "parameters": metrics["params"]}
    figures |= {"passes": round(images / metrics["train_images"], 3), "seconds": round(seconds, 1)}
    return figures | {"torch": metrics["torch"], "machine": describe_machine()["machine"]}


@command
def main(argv=None):
    parser = Parser(prog="tune.py", description=__doc__)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument(
        "--set", action="append", required=True, metavar="FLAGS", help='flags of train.py, --set="--lr 2"; "": none'
    )
    parser.add_argument("--runs", type=whole_number(1, 10_000), default=8, metavar="N", help="of each (default: 8)")
    parser.add_argument("--seed", type=whole_number(0, 2**62), default=0, metavar="S", help="first seed (default: 0)")
    parser.add_argument("--test", action="store_true", help="train on all images, and count the test images")
    parser.add_argument("--out", type=path, required=True, metavar="FILE", help="file to write, or to continue")
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="as for train.py")
    args = parser.parse_args(argv)
    held, out, split = lock(args.out), Path(args.out), "test" if args.test else "holdout"
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for seed in range(args.seed, args.seed + args.runs):
        for setting in args.set:
            asked = {"recipe": args.recipe, "set": setting, "seed": seed, "split": split}
            if not any(asked.items() <= row.items() for row in rows):
                rows.append(asked | tune(*asked.values(), args.data_dir))
                with open(out, "a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    held.release()
    for setting in args.set:
        asked = {"recipe": args.recipe, "set": setting, "split": split}
        found = [row["accuracy"] for row in rows if asked.items() <= row.items()]
        std = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
        print(f"{statistics.fmean(found):.3f}{std}% ({len(found)})  {args.recipe} {setting}")


if __name__ == "__main__":
    sys.exit(main())
