"""Tables in documents are those of their JSON files."""

import json

import pytest

from experiment import report
from experiment.report import draw, filled, main


def result(recipe, *finals):
    runs = [
        {"seed": seed, "epoch_test_accuracy": [98.0, final], "final_test_accuracy": final, "train_seconds": 8.0}
        | {"total_seconds": 12.0, "peak_memory_mb": 500}
        for seed, final in enumerate(finals)
    ]
    return {"recipe": recipe, "params": 1000, "config": {}, "machine": "", "versions": {}, "runs": runs}


@pytest.fixture
def document(tmp_path):
    """A document with two tables and a log of files beside it, all of them empty."""
    (tmp_path / "a.json").write_text(json.dumps([result("default", 99.3, 99.5), result("net-9720")]))
    (tmp_path / "log.txt").write_text("one\ntwo\n")
    path = tmp_path / "README.md"
    kinds = ("summary table: a.json", "full table: a.json a.json", "log: log.txt")
    path.write_text("before\n" + "".join(f"<!-- {kind} -->\n<!-- end -->\nbetween\n" for kind in kinds))
    return path


def test_markers_are_filled_and_a_second_time_changes_nothing(document):
    text = filled(document)
    document.write_text(text)
    assert filled(document) == text
    assert "| default | 1,000 | 2 | 99.400 ± 0.141% (2) | 1 of 2 |\n<!-- end -->\nbetween" in text
    full = "| default | 1,000 | 2 | 2 | 2 | 99.400 ± 0.141 | 98.129 to 100.671 | 99.30 | 1 of 2 "
    full += "| 2 | 8.0 | 8.0 | 12.0 | 500 |\n"
    assert full + full + "<!-- end -->" in text and "net-9720" not in text  # it has no runs
    assert "<!-- log: log.txt -->\n```\none\ntwo\n```\n<!-- end -->" in text


def test_the_committed_documents_are_those_of_the_committed_files():
    assert main(["--check"]) == 0


def test_check_finds_a_changed_figure(document, monkeypatch, capsys):
    document.write_text(filled(document))
    monkeypatch.setattr(report, "DOCUMENTS", (document,))
    assert main(["--check"]) == 0
    document.write_text(document.read_text().replace("99.400", "99.500", 1))
    assert main(["--check"]) == 2
    assert capsys.readouterr().err.startswith(f"report.py: error: {document}: ")


def test_a_file_is_printed_as_a_table(document, capsys):
    assert main([str(document.parent / "a.json")]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    assert main(["missing.json"]) == 2
    assert "missing.json is not a benchmark's JSON (No such file or directory)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--check", "a.json"])
    assert "--check: found with FILE" in capsys.readouterr().err


def test_the_picture_is_drawn_from_results_some_of_which_have_no_runs_yet():
    assert draw([result("default", 99.3, 99.5), result("net-9720")]).startswith(b"\x89PNG")


def test_a_document_or_log_that_is_not_there_is_one_line(document, monkeypatch, capsys):
    monkeypatch.setattr(report, "DOCUMENTS", (document, document.with_name("missing.md")))
    assert main([]) == 2 and "missing.md cannot be read" in capsys.readouterr().err
    (document.parent / "log.txt").unlink()
    assert main(["--check"]) == 2 and "log.txt cannot be read" in capsys.readouterr().err
