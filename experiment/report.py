"""What the documents say in figures, made from the files that hold them.

    python -m experiment.report              fill in the documents, and draw the pictures of results/ (needs MNIST)
    python -m experiment.report --check      fail if a document does not match the files
    python -m experiment.report FILE...      print the table of these files

In a document, "<!-- KIND: FILE... -->" and "<!-- end -->" enclose what the function KINDS[KIND] makes from the files,
named relative to the document.
"""

import sys

if __name__ == "__main__":  # so that Ctrl-C prints one line even during the imports
    from experiment.command import exit_at_once, handle_signals

    handle_signals(exit_at_once)

import json
import re
import statistics
from pathlib import Path

import torch

from experiment import pictures
from experiment.command import Parser, command, echo, path
from experiment.errors import FileError
from experiment.files import replace_file
from experiment.published import PUBLISHED
from experiment.results import read_results, summarise
from experiment.weights import WEIGHTS
from model import Net, count_parameters, receptive_fields

RESULTS = Path(__file__).parents[1] / "results"
SITTING = RESULTS / "side-by-side.json"  # one session, with the published recipes: its times compare
ROOT = RESULTS.parent
DOCUMENTS = (ROOT / "README.md", RESULTS / "README.md", RESULTS / "SCALING.md", ROOT / "weights" / "README.md")
GENERATED = re.compile(r"(<!-- ([a-z ]+): (.+?) -->\n)(.*?)(<!-- end -->)", re.S)


def sitting_seconds(result):
    """Median training seconds in the SITTING of the recipe of `result`, and the settings that it had there instead."""
    sitting = (other for other in read_results(SITTING) if other["runs"])
    there = next((other for other in sitting if other["recipe"] == result["recipe"]), None)
    if not there:
        return "–"
    others = [f"{name} {value}" for name, value in there["config"].items() if value != result["config"].get(name)]
    return f"{summarise(there['runs'])['seconds'][-1]:.1f}" + f" ({', '.join(others)})" * bool(others)


def std(s):
    return "" if s["std"] is None else f" ± {s['std']:.3f}"


def to_target(s):
    """Training seconds until the mean over the runs is at least 99.4%, and the epoch."""
    return f"{s['seconds_to_target']:.1f} (epoch {s['first_epoch']})" if s["first_epoch"] else "never"


def linked(recipe):
    """The name of `recipe`, for the main README a link to its trained weights if there are any."""
    file = WEIGHTS / f"{recipe}.pth"
    return f"[{recipe}]({file.relative_to(ROOT).as_posix()})" if file.exists() else recipe


COLUMNS = {  # title: text, for a result and its summary
    "recipe": lambda result, s: result["recipe"],
    "recipe, weights": lambda result, s: linked(result["recipe"]),
    "parameters": lambda result, s: f"{result['params']:,}",
    "epochs": lambda result, s: s["epochs"],
    "passes": lambda result, s: f"{s['passes']:.3g}",
    "mean ± std (n)": lambda result, s: f"{s['mean']:.3f}{std(s)}% ({s['n']})",
    "95% CI of the mean": lambda result, s: "{:.3f} to {:.3f}".format(*s["ci95"]) if s["ci95"] else "–",
    "min": lambda result, s: f"{s['min']:.2f}",
    "runs ≥ 99.4%": lambda result, s: f"{s['reached']} of {s['n']}",
    "training s": lambda result, s: sitting_seconds(result),
    "training s to a mean of 99.4%": lambda result, s: to_target(s),
    "training s, all epochs": lambda result, s: f"{s['seconds'][-1]:.1f}",
    "whole process, s": lambda result, s: f"{s['total_seconds']:.1f}",
    "peak MB": lambda result, s: s["peak_memory_mb"] or "–",
}
SUMMARY = ("recipe, weights", "parameters", "passes", "mean ± std (n)", "runs ≥ 99.4%", "training s")
ACCURACY = ("recipe", "parameters", "epochs", "passes", "mean ± std (n)", "95% CI of the mean", "min", "runs ≥ 99.4%")
TIMES = ("training s to a mean of 99.4%", "training s, all epochs", "whole process, s", "peak MB")


def markdown(columns, rows):
    """The lines of a Markdown table."""
    return [f"| {' | '.join(map(str, row))} |" for row in (columns, ["---"] * len(columns), *rows)]


def table(results, columns=ACCURACY + TIMES):
    """The lines of a Markdown table of those `results` that have runs."""
    rows = [(result, summarise(result["runs"])) for result in results if result["runs"]]
    return markdown(columns, ([COLUMNS[column](result, s) for column in columns] for result, s in rows))


def read(path):
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read: {error}; restore it") from error


def tables(columns):
    """A kind of generated text: the table of all results in the files."""
    return lambda files, old: "\n".join(table([result for file in files for result in read_results(file)], columns))


def log(files, old):
    return "\n".join(["```", *(read(file).rstrip("\n") for file in files), "```"])


def tree(files, old):
    """The `old` annotated list of files, with their numbers of lines."""

    def counted(match):
        lines = read(files[0] / match[1]).count("\n")
        return f"{match[1]}{lines:{len(match[2])}} "

    return re.sub(r"^(\S+\.py)( +\d+) ", counted, old.rstrip("\n"), flags=re.M)


def machine(files, old):
    """The machine, versions and numbers of runs of `files`."""
    results = read_results(files[0])
    result, runs = results[0], sorted(len(result["runs"]) for result in results)
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    threads = f"{result['threads']} thread" + "s" * (result["threads"] > 1)
    what = f"Training s: all epochs, median of {runs[0]} to {runs[-1]} runs"
    return f"{what}, {threads} of {result['machine']}; {versions}."


def ratio(files, old):
    """How much longer the published recipe of the least time to a mean of 99.4%, or in vain, trains than `fast`."""
    results = {result["recipe"]: summarise(result["runs"]) for result in read_results(files[0]) if result["runs"]}
    seconds = {name: s["seconds_to_target"] for name, s in results.items()}
    best = min((name for name in results if name in PUBLISHED), key=seconds.get)
    end = "" if results[best]["first_epoch"] else f" and ends at {results[best]['by_epoch'][-1]:.2f}%"
    return (
        f"`fast` reaches a mean of 99.4% in {seconds['fast']:.1f} s (n = {results['fast']['n']}); the shortest of "
        f"the five, {best}, trains for {seconds[best]:.0f} s{end} (n = {results[best]['n']}): "
        f"**{seconds[best] / seconds['fast']:.0f} times** as long."
    )


def weights(files, old):
    """A table of the JSON files of trained weights."""

    def row(file):
        about = json.loads(read(file))
        correct, count = about["correct"], about["test_images"]
        accuracy, error = 100 * correct / count, 100 * (correct * (count - correct) / count**3) ** 0.5
        right, size = f"{correct:,} of {count:,}", f"{file.with_suffix('.pth').stat().st_size / 1000:.0f} KB"
        return file.stem, f"{about['parameters']:,}", right, f"{accuracy:.2f} ± {error:.2f}%", size

    columns = ("weights", "parameters", "test images right", "accuracy ± standard error", "size")
    return "\n".join(markdown(columns, map(row, files)))


def scaling(files, old):
    """A table of what experiment.scaling measured."""

    def row(case):
        what = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in case["case"].items())
        return what, f"{statistics.median(case['seconds']):.1f}", max(case["peak_memory_mb"])

    return "\n".join(
        markdown(("what differs", "seconds per epoch", "peak MB"), map(row, json.loads(read(files[0]))["cases"]))
    )


def layers(files, old):
    """A table of the blocks of the default network."""
    net, rows = Net().eval(), []
    values = torch.zeros(1, 1, net.side, net.side)
    for number, (block, field) in enumerate(zip(net.blocks, receptive_fields(net)), 1):
        values, kernel = block(values), block[0].kernel_size[0]
        what = f"{kernel} × {kernel} convolution" + ", pooling" * (len(block) > 3)
        shape = " × ".join(map(str, values.shape[1:]))
        rows.append((number, what, shape, f"{field} × {field}", f"{count_parameters(block):,}"))
    head = "global average pooling, dropout, linear"
    rows.append((len(rows) + 1, head, 10, "all", f"{count_parameters(net.classifier):,}"))
    return "\n".join(markdown(("", "block", "output", "receptive field", "parameters"), rows))


KINDS = {
    "layers": layers,
    "summary table": tables(SUMMARY),
    "accuracy table": tables(ACCURACY),
    "time table": tables(("recipe", *TIMES)),
    "log": log,
    "tree": tree,
    "machine": machine,
    "ratio": ratio,
    "weights": weights,
    "scaling": scaling,
}


def filled(document):
    """The text of the file `document` with everything generated in it made anew."""

    def fill(match):
        begin, kind, files, old, end = match.groups()
        files = [document.parent / file for file in files.split()]
        return f"{begin}{KINDS[kind](files, old)}\n{end}"

    return GENERATED.sub(fill, read(document))


@command
def main(argv=None):
    parser = Parser(prog="report.py", description=__doc__)
    parser.add_argument("files", nargs="*", type=path, metavar="FILE", help="only print the table of these files")
    parser.add_argument("--check", action="store_true", help="exit with an error if they do not match the JSON files")
    args = parser.parse_args(argv)
    if args.check and args.files:
        parser.error("--check: found with FILE; drop one of them")
    if args.check:
        for document in DOCUMENTS:
            if read(document) != filled(document):
                raise FileError(f"{document}: a figure is out of date; run python -m experiment.report")
    elif args.files:
        for line in table([result for file in args.files for result in read_results(file)]):
            echo(line)
    else:
        for document in DOCUMENTS:
            replace_file(document, filled(document).encode())
        results = read_results(SITTING)
        replace_file(RESULTS / "accuracy_over_seconds.png", pictures.accuracy_over_seconds(results))
        replace_file(RESULTS / "overview.png", pictures.overview(results, WEIGHTS / "default.pth"))


if __name__ == "__main__":
    sys.exit(main())
