"""Figures in documents are those of the files."""

import json

import pytest

from study import report
from study.figures import accuracy_over_seconds
from study.report import KINDS, filled, main


def result(recipe, *finals):
    runs = [
        {"seed": seed, "epoch_test_accuracy": [98.0, final], "final_test_accuracy": final, "train_seconds": 8.0}
        | {"total_seconds": 12.0, "peak_memory_mb": 500}
        for seed, final in enumerate(finals)
    ]
    config = {"lr": 1.0, "epochs": 2}
    return {"recipe": recipe, "params": 1000, "config": config, "machine": "", "versions": {}, "runs": runs}


@pytest.fixture
def document(tmp_path, monkeypatch):
    """A document with tables and a log of files beside it, all of them empty."""
    monkeypatch.setattr(report, "SITTING", tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps([result("default", 99.3, 99.5), result("net-9720")]))
    (tmp_path / "log.txt").write_text("one\ntwo\n")
    path = tmp_path / "README.md"
    kinds = ("summary table: a.json", "accuracy table: a.json a.json", "time table: a.json", "log: log.txt")
    path.write_text("before\n" + "".join(f"<!-- {kind} -->\n<!-- end -->\nbetween\n" for kind in kinds))
    return path


def test_markers_are_filled_and_a_second_time_changes_nothing(document):
    text = filled(document)
    document.write_text(text)
    assert filled(document) == text
    row = "| [default](weights/default.pth) | 1,000 | 2 | 99.400 ± 0.141% (2) | 1 of 2 | 8.0 |\n<!-- end -->\nbetween"
    assert row in text
    row = "| default | 1,000 | 2 | 2 | 99.400 ± 0.141% (2) | 98.129 to 100.671 | 99.30 | 1 of 2 |\n"
    assert row + row + "<!-- end -->" in text and "net-9720" not in text  # it has no runs
    assert "| default | 8.0 (epoch 2) | 8.0 | 12.0 | 500 |\n<!-- end -->" in text
    assert "<!-- log: log.txt -->\n```\none\ntwo\n```\n<!-- end -->" in text


def test_a_time_side_by_side_names_the_settings_that_were_others_then(document, monkeypatch):
    there = document.parent / "there.json"
    monkeypatch.setattr(report, "SITTING", there)
    there.write_text(json.dumps([{**result("default", 99.4), "config": {"lr": 1.0, "epochs": 6}}]))
    assert "| 1 of 2 | 8.0 (epochs 6) |\n" in filled(document)
    there.write_text(json.dumps([result("default"), result("fast", 99.4)]))  # no runs of it
    assert "| 1 of 2 | – |\n" in filled(document)


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
    assert accuracy_over_seconds([result("default", 99.3, 99.5), result("net-9720")]).startswith(b"\x89PNG")


def test_the_ratio_counts_all_seconds_of_a_recipe_that_never_gets_there(tmp_path):
    """Two epochs of 4 s each: fast gets there in the second, net-9720 too, net-11034 never."""
    file, fast = tmp_path / "a.json", {**result("fast", 99.4), "threads": 2}
    slow = result("net-11034", 99.3, 99.38)
    for run in slow["runs"]:
        run["train_seconds"] = 400.0
    file.write_text(json.dumps([fast, slow]))
    text = KINDS["ratio"]([file], "")
    assert "in 8.0 s (n = 1)" in text and "net-11034, trains for 400 s and ends at 99.34% (n = 2)" in text
    assert "**50 times**" in text and "| never | 400.0 |" in KINDS["time table"]([file], "")
    assert "median of 1 to 2 runs, 2 threads of" in KINDS["machine"]([file], "")
    slow["runs"][0]["final_test_accuracy"] = 99.5
    for run in slow["runs"]:
        run["epoch_test_accuracy"] = [99.4, 99.5]
    file.write_text(json.dumps([fast, slow]))
    assert "net-11034, trains for 200 s (n = 2): **25 times**" in KINDS["ratio"]([file], "")


def test_the_tree_has_the_numbers_of_lines(tmp_path):
    (tmp_path / "a.py").write_text("1\n2\n")
    (tmp_path / "b.py").write_text("1\n" * 120)
    old = "```\na.py      0  one\nb.py    999  two\nfolder/      three\n```\n"
    assert KINDS["tree"]([tmp_path], old) == "```\na.py      2  one\nb.py    120  two\nfolder/      three\n```"


def test_a_document_or_log_that_is_not_there_is_one_line(document, monkeypatch, capsys):
    monkeypatch.setattr(report, "DOCUMENTS", (document, document.with_name("missing.md")))
    assert main([]) == 2 and "missing.md cannot be read" in capsys.readouterr().err
    (document.parent / "log.txt").unlink()
    assert main(["--check"]) == 2 and "log.txt cannot be read" in capsys.readouterr().err
