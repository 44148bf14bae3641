"""What the documents say in figures, made from the files that hold them.

    python -m study.report              fill in the documents, and draw the pictures of results/ (needs MNIST)
    python -m study.report --check      fail if a document does not match the files
    python -m study.report FILE...      print the table of these files

In a document, "<!-- KIND: FILE... -->" and "<!-- end -->" enclose what the function KINDS[KIND] makes from the files,
named relative to the document.
"""

import functools
import json
import re
import statistics
import sys
from pathlib import Path

import torch

from experiment.checkpoint import WEIGHTS
from experiment.cli import Parser, command, path
from experiment.errors import FileError
from experiment.files import replace_file
from model import Net, count_parameters
from study import figures
from study.published import PUBLISHED
from study.results import read_results, summarise

RESULTS = Path(__file__).parents[1] / "results"
SESSION = RESULTS / "side-by-side.json"  # all recipes in one session: its times compare
ROOT = RESULTS.parent
DOCUMENTS = (ROOT / "README.md", RESULTS / "README.md", RESULTS / "SCALING.md", ROOT / "weights" / "README.md")
GENERATED = re.compile(r"(<!-- ([a-z ]+): (.+?) -->\n)(.*?)(<!-- end -->)", re.S)


COLUMNS = {  # title: format of a cell, with the values of `cells`
    "recipe": "{recipe}",
    "recipe, weights": "{linked}",
    "parameters": "{params:,}",
    "epochs": "{epochs}",
    "passes": "{passes:.3g}",
    "mean ± std (n)": "{mean:.3f}{deviation}% ({n})",
    "95% CI of the mean": "{interval}",
    "min": "{min:.2f}",
    "runs ≥ 99.4%": "{reached} of {n}",
    "training s": "{session_seconds}",
    "training s to a mean of 99.4%": "{to_target}",
    "training s, all epochs": "{all_seconds:.1f}",
    "whole process, s": "{total_seconds:.1f}",
    "peak MB": "{memory}",
}
SUMMARY = ("recipe, weights", "parameters", "passes", "mean ± std (n)", "runs ≥ 99.4%", "training s")
ACCURACY = ("recipe", "parameters", "epochs", "passes", "mean ± std (n)", "95% CI of the mean", "min", "runs ≥ 99.4%")
TIMES = ("training s to a mean of 99.4%", "training s, all epochs", "whole process, s", "peak MB")


def cells(result):
    """What the columns show of a result that has runs."""
    summary, file = summarise(result["runs"]), WEIGHTS / f"{result['recipe']}.pth"
    reached = f"{summary['seconds_to_target']:.1f} (epoch {summary['first_epoch']})"
    return {
        **result,
        **summary,
        "linked": f"[{result['recipe']}](weights/{file.name})" if file.exists() else result["recipe"],
        "deviation": "" if summary["std"] is None else f" ± {summary['std']:.3f}",
        "interval": "{:.3f} to {:.3f}".format(*summary["ci95"]) if summary["ci95"] else "–",
        "session_seconds": session_seconds(result),
        "to_target": reached if summary["first_epoch"] else "never",
        "all_seconds": summary["seconds"][-1],
        "memory": summary["peak_memory_mb"] or "–",
    }


def session_seconds(result):
    """Training seconds in the SESSION of the recipe of `result`, and in brackets settings that have changed since."""
    for there in read_results(SESSION):
        if there["recipe"] == result["recipe"] and there["runs"]:
            config = there["config"].items()
            changed = [f"{name} {value}" for name, value in config if value != result["config"].get(name)]
            seconds = f"{summarise(there['runs'])['seconds'][-1]:.1f}"
            return f"{seconds} ({', '.join(changed)})" if changed else seconds
    return "–"


def markdown(columns, rows):
    """A Markdown table."""
    rows = (columns, ["---"] * len(columns), *rows)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def table(results, columns=ACCURACY + TIMES):
    """A Markdown table of those `results` that have runs."""
    rows = [cells(result) for result in results if result["runs"]]
    return markdown(columns, ([COLUMNS[column].format(**row) for column in columns] for row in rows))


def read(path):
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error}; restore it") from error


def tables(files, columns):
    """The table of all results in the files."""
    return table([result for file in files for result in read_results(file)], columns)


def log(files):
    return "\n".join(["```", *(read(file).rstrip("\n") for file in files), "```"])


def machine(files):
    """The machine, versions and numbers of runs of the file."""
    results = read_results(files[0])
    result, runs = results[0], sorted(len(result["runs"]) for result in results)
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
    what = f"Training s: all epochs, median of {runs[0]} to {runs[-1]} runs"
    return f"{what}, {threads} of {result['machine']}; {versions}."


def ratio(files):
    """How much longer the published recipe of the least time to a mean of 99.4%, or in vain, trains than `fast`."""
    results = {result["recipe"]: summarise(result["runs"]) for result in read_results(files[0]) if result["runs"]}
    seconds = {name: summary["seconds_to_target"] for name, summary in results.items()}
    best = min((name for name in results if name in PUBLISHED), key=seconds.get)
    end = "" if results[best]["first_epoch"] else f" and ends at {results[best]['by_epoch'][-1]:.2f}%"
    return (
        f"`fast` reaches a mean of 99.4% in {seconds['fast']:.1f} s (n = {results['fast']['n']}); the shortest of "
        f"the five, {best}, trains for {seconds[best]:.0f} s{end} (n = {results[best]['n']}): "
        f"**{seconds[best] / seconds['fast']:.0f} times** as long."
    )


def weights(files):
    """A table of the JSON files of trained weights."""

    def row(file):
        about = json.loads(read(file))
        correct, count = about["correct"], about["test_images"]
        accuracy, error = 100 * correct / count, 100 * (correct * (count - correct) / count**3) ** 0.5
        right, size = f"{correct:,} of {count:,}", f"{file.with_suffix('.pth').stat().st_size / 1000:.0f} KB"
        return file.stem, f"{about['parameters']:,}", right, f"{accuracy:.2f} ± {error:.2f}%", size

    columns = ("weights", "parameters", "test images right", "accuracy ± standard error", "size")
    return markdown(columns, map(row, files))


def scaling(files):
    """A table of what study.scaling measured."""

    def row(case):
        what = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in case["case"].items())
        return what, f"{statistics.median(case['seconds']):.1f}", max(case["peak_memory_mb"])

    return markdown(("what differs", "seconds per epoch", "peak MB"), map(row, json.loads(read(files[0]))["cases"]))


def layers(files):
    """A table of the blocks of the default network."""
    net, rows = Net().eval(), []
    values = torch.zeros(1, 1, net.side, net.side)
    for number, block in enumerate(net.blocks, 1):
        values, kernel = block(values), block[0].kernel_size[0]
        what = f"{kernel} × {kernel} convolution" + (", pooling" if len(block) > 3 else "")
        rows.append((number, what, " × ".join(map(str, values.shape[1:])), f"{count_parameters(block):,}"))
    head = "global average pooling, dropout, linear"
    rows.append((len(rows) + 1, head, 10, f"{count_parameters(net.classifier):,}"))
    return markdown(("", "block", "output", "parameters"), rows)


KINDS = {
    "layers": layers,
    "summary table": functools.partial(tables, columns=SUMMARY),
    "accuracy table": functools.partial(tables, columns=ACCURACY),
    "time table": functools.partial(tables, columns=("recipe", *TIMES)),
    "log": log,
    "machine": machine,
    "ratio": ratio,
    "weights": weights,
    "scaling": scaling,
}


def filled(document):
    """The text of the file `document` with everything generated in it made anew."""

    def fill(match):
        begin, kind, files, _, end = match.groups()
        return f"{begin}{KINDS[kind]([document.parent / file for file in files.split()])}\n{end}"

    return GENERATED.sub(fill, read(document))


@command
def main(argv=None):
    parser = Parser(prog="report.py", description=__doc__)
    parser.add_argument("files", nargs="*", type=path, metavar="FILE", help="only print the table of these files")
    parser.add_argument("--check", action="store_true", help="exit with an error if they do not match the JSON files")
    args = parser.parse_args(argv)
    if args.check and args.files:
        parser.error("--check: found with FILE; drop one of them")
    if args.files:
        print(tables(args.files, ACCURACY + TIMES))
        return
    for document in DOCUMENTS:
        text = filled(document)
        if not args.check:
            replace_file(document, text.encode())
        elif read(document) != text:
            raise FileError(f"{document}: a figure is out of date; run python -m study.report")
    if not args.check:
        replace_file(RESULTS / "overview.png", figures.overview(read_results(SESSION), WEIGHTS / "default.pth"))


if __name__ == "__main__":
    sys.exit(main())
