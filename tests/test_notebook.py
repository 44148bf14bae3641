"""The notebook runs from top to bottom, and is committed with what it shows.

python -m tests.test_notebook    runs it on MNIST and writes it with its outputs; needs nbclient and ipykernel
"""

import json
import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "mnist.ipynb"


def executed(folder, dataset):
    """The notebook, run in `folder` on `dataset`, without times and without the progress bar on stderr."""
    import nbformat
    from nbclient import NotebookClient

    notebook, warnings = nbformat.read(NOTEBOOK, as_version=4), ""
    options = {"record_timing": False, "coalesce_streams": True, "resources": {"metadata": {"path": str(folder)}}}
    NotebookClient(notebook, timeout=600, **options).execute(env={**os.environ, "MNIST_DATASET": dataset})
    for cell in code_cells(notebook):
        warnings += "".join(output["text"] for output in cell["outputs"] if output.get("name") == "stderr")
        cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    assert "Warning" not in warnings, warnings
    notebook["metadata"]["language_info"] = {"name": "python"}
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(notebook):
    """For each cell of code the types of its outputs, and which of them are pictures."""
    outputs = [cell["outputs"] for cell in code_cells(notebook)]
    return [[(output["output_type"], "image/png" in output.get("data", ())) for output in shown] for shown in outputs]


def test_the_notebook_runs_and_is_committed_with_outputs_of_the_same_kinds(tmp_path):
    from conftest import optional

    optional("ipykernel"), optional("nbclient")
    for path in ROOT.iterdir():
        if path.name not in (".git", "data", "runs"):
            (tmp_path / path.name).symlink_to(path)
    found, committed = kinds(executed(tmp_path, "digits")), kinds(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    assert found == committed and all(committed) and len(list((tmp_path / "runs").glob("*/mistakes.png"))) == 1


def test_the_committed_notebook_is_small_and_names_no_machine():
    notebook = json.loads(text := NOTEBOOK.read_text(encoding="utf-8"))
    cells = code_cells(notebook)
    assert len(text.encode()) < 300_000 and not any(cell["metadata"] for cell in notebook["cells"])
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    printed = "".join("".join(output.get("text", ())) for cell in cells for output in cell["outputs"])
    assert not re.search(r"/(home|root|tmp|work|usr|opt|Users)/|[A-Z]:\\|Warning|Error", printed)
    expected = r"inal test accuracy: 99\.[4-9].*\nTotal params: 19,882\n.*\n7, with a probability of [01]\.\d\d\n"
    assert re.search(expected, printed, re.S)


if __name__ == "__main__":
    import nbformat

    nbformat.write(executed(ROOT, "mnist"), NOTEBOOK)
