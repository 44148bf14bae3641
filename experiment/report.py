"""Tables and a picture of the benchmarks in results/.

    python -m experiment.report              rewrite the tables in README.md and results/README.md, and the picture
    python -m experiment.report --check      fail if those tables do not match the JSON files
    python -m experiment.report FILE...      print the table of these files

In the documents, "<!-- summary table: FILE... -->", "full table" or "log" and "<!-- end -->" enclose what is generated
from the files, named relative to the document.
"""

import sys

if __name__ == "__main__":  # so that Ctrl-C prints one line even during the imports
    from experiment.command import exit_at_once, handle_signals

    handle_signals(exit_at_once)

import io
import re
from pathlib import Path

from experiment.command import Parser, command, echo, path
from experiment.errors import FileError
from experiment.files import replace_file
from experiment.published import PUBLISHED
from experiment.results import TARGET, read_results, summarise

RESULTS = Path(__file__).parents[1] / "results"
DOCUMENTS = (RESULTS.parent / "README.md", RESULTS / "README.md")
TABLE = re.compile(r"(<!-- (summary table|full table|log): (.+?) -->\n).*?(<!-- end -->)", re.S)


def seconds_to_target(s):
    """Of training until the mean over the runs is at least 99.4%; all, if it never is."""
    return f"{s['seconds'][s['first_epoch'] - 1]:.1f}" if s["first_epoch"] else f"never in {s['seconds'][-1]:.1f}"


def std(s):
    return "" if s["std"] is None else f" ± {s['std']:.3f}"


COLUMNS = {  # title: text, for a result and its summary
    "recipe": lambda result, s: result["recipe"],
    "parameters": lambda result, s: f"{result['params']:,}",
    "epochs": lambda result, s: s["epochs"],
    "passes": lambda result, s: f"{s['passes']:.3g}",
    "n": lambda result, s: s["n"],
    "mean ± std (%)": lambda result, s: f"{s['mean']:.3f}{std(s)}",
    "mean ± std (n)": lambda result, s: f"{s['mean']:.3f}{std(s)}% ({s['n']})",
    "95% CI of the mean": lambda result, s: "{:.3f} to {:.3f}".format(*s["ci95"]) if s["ci95"] else "–",
    "min": lambda result, s: f"{s['min']:.2f}",
    "runs ≥ 99.4%": lambda result, s: f"{s['reached']} of {s['n']}",
    "first epoch with mean ≥ 99.4%": lambda result, s: s["first_epoch"] or "–",
    "training s to it": lambda result, s: seconds_to_target(s),
    "training s": lambda result, s: f"{s['seconds'][-1]:.1f}",
    "process s": lambda result, s: f"{s['total_seconds']:.1f}",
    "peak MB": lambda result, s: s["peak_memory_mb"] or "–",
}
SUMMARY = ("recipe", "parameters", "passes", "mean ± std (n)", "runs ≥ 99.4%")
FULL = tuple(name for name in COLUMNS if name != "mean ± std (n)")


def table(results, columns=FULL):
    """The lines of a Markdown table of those `results` that have runs."""
    yield f"| {' | '.join(columns)} |"
    yield "|" + " --- |" * len(columns)
    for result in results:
        if result["runs"]:
            s = summarise(result["runs"])
            yield f"| {' | '.join(str(COLUMNS[column](result, s)) for column in columns)} |"


def read(path):
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read: {error}; restore it") from error


def filled(document):
    """The text of the file `document` with every table and log in it regenerated."""

    def fill(match):
        begin, kind, files, end = match.groups()
        if kind == "log":
            return f"{begin}```\n{read(document.parent / files)}```\n{end}"
        results = [result for file in files.split() for result in read_results(document.parent / file)]
        return begin + "\n".join(table(results, SUMMARY if kind == "summary table" else FULL)) + "\n" + end

    return TABLE.sub(fill, read(document))


def draw(results):
    """PNG bytes: mean accuracy after each epoch over training seconds; the results should be of one session."""
    from matplotlib.figure import Figure

    picture, figure = io.BytesIO(), Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for result in (result for result in results if result["runs"]):
        s = summarise(result["runs"])
        style = "s:" if result["recipe"] in PUBLISHED else "o-"
        axes.plot(s["seconds"], s["by_epoch"], style, markersize=4, label=f"{result['recipe']} (n = {s['n']})")
    axes.axhline(TARGET, color="grey", linestyle="--", linewidth=1)
    axes.set(xscale="log", ylim=(98.5, 99.8), xlabel="training seconds", ylabel="mean test accuracy (%)")
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    figure.savefig(picture, dpi=120)
    return picture.getvalue()


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
                raise FileError(f"{document}: a table or log is out of date; run python -m experiment.report")
    elif args.files:
        for line in table([result for file in args.files for result in read_results(file)]):
            echo(line)
    else:
        for document in DOCUMENTS:
            replace_file(document, filled(document).encode())
        replace_file(RESULTS / "accuracy_over_seconds.png", draw(read_results(RESULTS / "side-by-side.json")))


if __name__ == "__main__":
    sys.exit(main())
