"""Tables and a picture of the benchmarks in results/.

    python -m experiment.report              rewrite the tables in README.md and results/README.md, and the picture
    python -m experiment.report --check      fail if those tables are not the ones that the JSON files give
    python -m experiment.report FILE...      print the table of these files

In the documents, "<!-- summary table: FILE... -->", "full table" or "log" and "<!-- end -->" enclose what is made from
the files, named relative to the document.
"""

import re
from pathlib import Path

from experiment.command import Parser, command, echo, path
from experiment.errors import FileError
from experiment.files import replace_file
from experiment.published import PUBLISHED
from experiment.results import TARGET, name_of, read_results, summarise

RESULTS = Path(__file__).parents[1] / "results"
DOCUMENTS = (RESULTS.parent / "README.md", RESULTS / "README.md")
TABLE = re.compile(r"(<!-- (summary table|full table|log): (.+?) -->\n).*?(<!-- end -->)", re.S)


def seconds(value):
    return "–" if value is None else f"{value:.1f}"


def std(s):
    return "" if s["std"] is None else f" ± {s['std']:.3f}"


COLUMNS = {  # title: text, for a result and its summary
    "recipe": lambda result, s: name_of(result),
    "parameters": lambda result, s: f"{result['params']:,}",
    "epochs": lambda result, s: s["epochs"],
    "n": lambda result, s: s["n"],
    "mean ± std (%)": lambda result, s: f"{s['mean']:.3f}{std(s)}",
    "mean ± std (n)": lambda result, s: f"{s['mean']:.3f}{std(s)}% ({s['n']})",
    "95% CI of the mean": lambda result, s: "{:.3f} to {:.3f}".format(*s["ci95"]) if s["ci95"] else "–",
    "min": lambda result, s: f"{s['min']:.2f}",
    "runs ≥ 99.4%": lambda result, s: f"{s['reached']} of {s['n']}",
    "first epoch with mean ≥ 99.4%": lambda result, s: s["first_epoch"] or "–",
    "training s/epoch": lambda result, s: seconds(s["seconds_per_epoch"]),
    "training s to it": lambda result, s: seconds(s["seconds_to_target"]),
    "process s": lambda result, s: seconds(s["total_seconds"]),
    "peak MB": lambda result, s: f"{s['peak_memory_mb']:.0f}",
}
SUMMARY = ("recipe", "parameters", "epochs", "mean ± std (n)", "runs ≥ 99.4%")
FULL = tuple(name for name in COLUMNS if name != "mean ± std (n)")


def table(results, columns=FULL):
    """The lines of a Markdown table of those `results` that have runs."""
    yield f"| {' | '.join(columns)} |"
    yield "|" + " --- |" * len(columns)
    for result in results:
        if result["runs"]:
            s = summarise(result["runs"])
            yield f"| {' | '.join(str(COLUMNS[column](result, s)) for column in columns)} |"


def filled(document):
    """The text of the file `document` with every table and log in it made anew."""

    def fill(match):
        begin, kind, files, end = match.groups()
        if kind == "log":
            return f"{begin}```\n{(document.parent / files).read_text(encoding='utf-8')}```\n{end}"
        results = [result for file in files.split() for result in read_results(document.parent / file)]
        return begin + "\n".join(table(results, SUMMARY if kind == "summary table" else FULL)) + "\n" + end

    return TABLE.sub(fill, document.read_text(encoding="utf-8"))


def draw(results, path):
    """Mean accuracy after each epoch over training seconds; the results should be of one session on one machine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for result in results:
        s = summarise(result["runs"])
        times = [s["seconds_per_epoch"] * epoch for epoch in range(1, s["epochs"] + 1)]
        style = "s:" if result["recipe"] in PUBLISHED else "o-"
        axes.plot(times, s["by_epoch"], style, markersize=4, label=f"{name_of(result)} (n = {s['n']})")
    axes.axhline(TARGET, color="grey", linestyle="--", linewidth=1)
    axes.set(xscale="log", ylim=(98.5, 99.8), xlabel="training seconds", ylabel="mean test accuracy (%)")
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)


@command
def main(argv=None):
    parser = Parser(prog="report.py", description=__doc__)
    parser.add_argument("files", nargs="*", type=path, metavar="FILE", help="only print the table of these files")
    parser.add_argument("--check", action="store_true", help="compare the tables with the JSON files, change nothing")
    args = parser.parse_args(argv)
    if args.check:
        for document in DOCUMENTS:
            if document.read_text(encoding="utf-8") != filled(document):
                raise FileError(
                    f"{document}: a table or log in it is not that of its files; run python -m experiment.report"
                )
    elif args.files:
        for line in table([result for file in args.files for result in read_results(file)]):
            echo(line)
    else:
        for document in DOCUMENTS:
            replace_file(document, filled(document).encode())
        draw(read_results(RESULTS / "side-by-side.json"), RESULTS / "accuracy_over_seconds.png")


if __name__ == "__main__":
    raise SystemExit(main())
