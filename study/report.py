"""What the documents say in figures, made from the files that hold them.

    python -m study.report              fill in the documents, and draw the pictures of results/ (needs MNIST)
    python -m study.report --check      fail if a document does not match the files
    python -m study.report FILE...      print the table of these files

In a document, "<!-- KIND: FILE... -->" and "<!-- end -->" enclose what the function KINDS[KIND] makes from the files,
named relative to the document.
"""

import csv
import json
import re
import statistics
import sys

import torch

from experiment.cli import Parser, command, path
from experiment.errors import FileError, reading
from experiment.files import replace_file
from experiment.plots import drawn
from experiment.weights import WEIGHTS
from model import Net, count_parameters
from study.figures import draw_frontier, draw_overview, draw_reliability
from study.published import PUBLISHED
from study.results import interval, read_results, summarise, summarise_all
from study.runs import ROOT

RESULTS = ROOT / "results"
FRONTIER = [RESULTS / name for name in ("frontier.jsonl", "default.json", "tiny.json", "best.json")]
SESSION = RESULTS / "side-by-side.json"  # all recipes in one session: its times compare
DOCUMENTS = (ROOT / "README.md", RESULTS / "README.md", RESULTS / "SCALING.md", ROOT / "weights" / "README.md")
GENERATED = re.compile(r"(<!-- ([a-z ]+): (.+?) -->\n)(.*?)(<!-- end -->)", re.S)

SUMMARY = ("recipe, weights", "parameters", "passes", "mean ± std (n)", "runs ≥ 99.4%", "training s", "whole process s")
ACCURACY = ("recipe", "parameters", "epochs", "passes", "mean ± std (n)", "95% CI of the mean", "min", "runs ≥ 99.4%")
TIMES = ("training s to a mean of 99.4%", "training s", "whole process s to 99.4%", "whole process s", "peak MB")


def cells(result, timed=None):
    """{column: text} of a result that has runs; its times are those of `timed`, by default of its own runs."""
    recipe, summary, times = result["recipe"], summarise(result["runs"]), summarise((timed or result)["runs"])
    std, epoch = "" if summary["std"] is None else f" ± {summary['std']:.3f}", times["first_epoch"]
    return {
        "recipe": recipe,
        "recipe, weights": f"[{recipe}](weights/{recipe}.pth)" if (WEIGHTS / f"{recipe}.pth").exists() else recipe,
        "parameters": f"{result['params']:,}",
        "epochs": summary["epochs"],
        "passes": f"{summary['passes']:.3g}",
        "mean ± std (n)": f"{summary['mean']:.3f}{std}% ({summary['n']})",
        "95% CI of the mean": "{:.3f} to {:.3f}".format(*summary["ci95"]) if summary["ci95"] else "–",
        "min": f"{summary['min']:.2f}",
        "runs ≥ 99.4%": f"{summary['reached']} of {summary['n']}",
        "training s": f"{times['seconds']:.1f}",
        "training s to a mean of 99.4%": f"{times['seconds_to_target']:.1f} (epoch {epoch})" if epoch else "–",
        "whole process s": f"{times['total_seconds']:.1f}",
        "whole process s to 99.4%": f"{times['total_seconds_to_target']:.1f}" if epoch else "–",
        "peak MB": times["peak_memory_mb"] or "–",
    }


def session_of(result):
    """The result of the same recipe and settings in the SESSION, if it has runs; settings may have been added since."""
    there = (other for other in read_results(SESSION) if other["recipe"] == result["recipe"] and other["runs"])
    return next((other for other in there if result["config"].items() <= other["config"].items()), None)


def markdown(columns, rows):
    """A Markdown table."""
    rows = (columns, ["---"] * len(columns), *rows)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def table(files, columns):
    """A Markdown table of all results in the files that have runs, with the times of the SESSION."""
    results = [result for file in files for result in read_results(file) if result["runs"]]
    pairs = [(result, session_of(result)) for result in results]
    rows = [cells(result, timed) | ({} if timed else dict.fromkeys(TIMES, "–")) for result, timed in pairs]
    return markdown(columns, ([row[column] for column in columns] for row in rows))


def plain_table(results):
    """A table of those `results` that have runs, for a terminal of 80 columns."""
    columns = ("recipe", "parameters", "mean ± std (n)", "runs ≥ 99.4%", "training s", "whole process s")
    rows = [[str(cells(result)[column]) for column in columns] for result in results if result["runs"]]
    rows.insert(0, ["recipe", "parameters", "mean ± std (n)", "≥ 99.4%", "training s", "in all s"])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def read(path):
    with reading(path, "restore it", FileError):
        return path.read_text(encoding="utf-8")


def machine(files):
    """How the times of the file were measured: numbers of runs, how much these differ, machine and version."""
    results = [result for result in read_results(files[0]) if result["runs"]]
    first, seconds = results[0], [[sum(run["epoch_seconds"]) for run in result["runs"]] for result in results]
    counts, spread = list(map(len, seconds)), max(max(times) / min(times) for times in seconds) - 1
    threads = "1 thread" if first["threads"] == 1 else f"{first['threads']} threads"
    runs = f"medians of {min(counts)} to {max(counts)} runs, which differ by up to {spread:.0%}"
    where = f"{threads} of {first['machine']}; PyTorch {first['versions']['torch']}"
    return f"Times: {runs}; {where}. Training excludes start-up and evaluation."


def ratio(files):
    """A table of `fast`, the quickest published recipe whose mean gets there, and the quickest whose mean does not."""
    summaries, rows = summarise_all(read_results(files[0])), []
    published = sorted(PUBLISHED.keys() & summaries, key=lambda name: summaries[name]["seconds_to_target"])
    there = [name for name in published if summaries[name]["first_epoch"]]
    for name in ("fast", *there[:1], *[name for name in published if name not in there][:1]):
        summary, fast, times = summaries[name], summaries["fast"], []
        for key in ("seconds_to_target", "total_seconds_to_target"):
            times.append(f"{summary[key]:.3g}" + (name != "fast") * f" (**{summary[key] / fast[key]:.0f} times**)")
        until = f"epoch {summary['first_epoch']}" if summary["first_epoch"] else "all epochs, stays below"
        rows.append((f"{name}, {until}", f"{summary['by_epoch'][-1]:.2f}% ({summary['n']})", *times))
    return markdown(("to a mean of 99.4%", "last epoch, these runs (n)", "training s", "whole process s"), rows)


def weights(files):
    """A table of the JSON files of trained weights."""
    rows = []
    for file in files:
        about, size = json.loads(read(file)), f"{file.with_suffix('.pth').stat().st_size / 1000:.0f} KB"
        correct, count = about["correct"], about["test_images"]
        error = 100 * (correct * (count - correct) / count**3) ** 0.5
        accuracy = f"{100 * correct / count:.2f} ± {error:.2f}%"
        rows.append((file.stem, f"{about['parameters']:,}", f"{correct:,} of {count:,}", accuracy, size))
    return markdown(("weights", "parameters", "test images right", "accuracy ± standard error", "size"), rows)


def scaling(files):
    """A table of what study.scaling measured."""
    rows = []
    for case in json.loads(read(files[0]))["cases"]:
        what = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in case["case"].items())
        rows.append((what or "nothing", f"{statistics.median(case['seconds']):.1f}"))
    return markdown(("what differs", "seconds per epoch"), rows)


def csv_rows(file):
    """Each row of a CSV file as a dict."""
    return list(csv.DictReader(read(file).splitlines()))


def public(files):
    """A table of what other repositories publish."""
    rows = [
        (f"[{name}](https://github.com/{name})", f"{int(parameters):,}", accuracy, runs)
        for name, parameters, accuracy, runs in map(dict.values, csv_rows(files[0]))
    ]
    return markdown(("repository", "parameters", "accuracy (%)", "best of runs"), rows)


def frontier(files):
    """{what is trained: (parameters, accuracies of runs)} of the files of study.tune (.jsonl) and benchmark.py."""
    points = {}
    for file in files:
        if file.suffix == ".jsonl":
            for row in map(json.loads, read(file).splitlines()):
                name = f"{row['recipe']} {row['set']}"
                points.setdefault(name, (row["parameters"], []))[1].append(row["accuracy"])
        else:
            for result in read_results(file):
                points[result["recipe"]] = result["params"], [run["final_test_accuracy"] for run in result["runs"]]
    return dict(sorted(points.items(), key=lambda point: point[1][0]))


def frontier_table(files):
    """A table of the points that draw_frontier draws."""
    rows = []
    for name, (parameters, found) in frontier(files).items():
        accuracy = f"{statistics.fmean(found):.3f} ± {statistics.stdev(found):.3f}% ({len(found)})"
        rows.append((f"{parameters:,}", f"`{name}`", accuracy, "{:.3f} to {:.3f}".format(*interval(found))))
    return markdown(("parameters", "recipe and flags", "mean ± std (n)", "95% CI of the mean"), rows)


def layers(files):
    """A table of the blocks of the default network."""
    net, rows = Net().eval(), []
    values = torch.zeros(1, 1, net.side, net.side)
    for number, block in enumerate(net.blocks, 1):
        values, kernel = block(values), block[0].kernel_size[0]
        what = f"{kernel} × {kernel} convolution" + (", pooling" if len(block) > 3 else "")
        rows.append((number, what, " × ".join(map(str, values.shape[1:])), f"{count_parameters(block):,}"))
    last = "global average pooling, dropout, linear"
    rows.append((len(rows) + 1, last, 10, f"{count_parameters(net.classifier):,}"))
    return markdown(("", "block", "output", "parameters"), rows)


KINDS = {
    "layers": layers,
    "summary table": lambda files: table(files, SUMMARY),
    "accuracy table": lambda files: table(files, ACCURACY),
    "time table": lambda files: table(files, ("recipe", *TIMES)),
    "log": lambda files: f"```\n{read(files[0])[read(files[0]).find('Epoch') :]}```",  # without which run it is
    "machine": machine,
    "ratio": ratio,
    "weights": weights,
    "scaling": scaling,
    "public": public,
    "frontier": frontier_table,
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
    group, about = parser.add_mutually_exclusive_group(), "only print the table of these files"
    group.add_argument("files", nargs="*", type=path, default=[], metavar="FILE", help=about)
    group.add_argument("--check", action="store_true", help="exit with an error if a document does not match the files")
    args = parser.parse_args(argv)
    if args.files:
        print(plain_table([result for file in args.files for result in read_results(file)]))
        return
    for document in DOCUMENTS:
        text = filled(document)
        if not args.check:
            replace_file(document, text.encode())
        elif read(document) != text:
            raise FileError(f"{document}: a figure is out of date; run python -m study.report")
    if not args.check:
        replace_file(RESULTS / "overview.png", drawn(draw_overview, read_results(SESSION), WEIGHTS / "default.pth"))
        points, others = frontier(FRONTIER), csv_rows(RESULTS / "public.csv")
        replace_file(RESULTS / "frontier.png", drawn(draw_frontier, points, others))
        replace_file(RESULTS / "reliability.png", drawn(draw_reliability, WEIGHTS / "best.pth"))


if __name__ == "__main__":
    sys.exit(main())
