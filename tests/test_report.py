"""Figures in documents, and bars in pictures, are those of the files."""

import json

import pytest
from conftest import assert_one_line
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from study import figures, report
from study.report import KINDS, filled, main


def result(recipe, *finals, seconds=8.0):
    """Runs of two epochs that end with the accuracies `finals`."""
    runs = [
        {"seed": seed, "epoch_test_accuracy": [98.0, final], "final_test_accuracy": final, "passes": 2}
        | {"epoch_seconds": [seconds / 2] * 2, "total_seconds": 12.0, "peak_memory_mb": 500}
        for seed, final in enumerate(finals)
    ]
    config = {"lr": 1.0, "epochs": 2}
    return {"recipe": recipe, "params": 1000, "config": config, "machine": "", "versions": {}, "runs": runs}


@pytest.fixture
def document(tmp_path, monkeypatch):
    """A document with tables and a log of files beside it, all of them empty."""
    monkeypatch.setattr(report, "SESSION", tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps([result("default", *[99.31, 99.51] * 3), result("net-9720")]))
    (tmp_path / "log.txt").write_text("Run: x\nEpoch 1\ntwo\n")
    path = tmp_path / "README.md"
    kinds = ("summary table: a.json", "accuracy table: a.json a.json", "time table: a.json", "log: log.txt")
    path.write_text("before\n" + "".join(f"<!-- {kind} -->\n<!-- end -->\nbetween\n" for kind in kinds))
    monkeypatch.setattr(report, "DOCUMENTS", (path,))
    return path


def test_markers_are_filled_and_a_second_time_changes_nothing(document, capsys):
    text = filled(document)
    document.write_text(text)
    assert filled(document) == text
    row = "| [default](weights/default.pth) | 1,000 | 2 | 99.410 ± 0.110% (6) | 3 of 6 | 8.0 | 12.0 |\n"
    assert row + "<!-- end -->\nbetween" in text
    row = "| default | 1,000 | 2 | 2 | 99.410 ± 0.110% (6) | 99.295 to 99.525 | 99.31 | 3 of 6 |\n"
    assert row + row + "<!-- end -->" in text and "net-9720" not in text  # it has no runs
    assert "| default | 8.0 (epoch 2) | 8.0 | 12.0 | 12.0 | 500 |\n<!-- end -->" in text
    assert "<!-- log: log.txt -->\n```\nEpoch 1\ntwo\n```\n<!-- end -->" in text
    assert main([str(report.SESSION)]) == 0 and capsys.readouterr().out.count("\n") == 2  # only a table
    report.SESSION = document.with_name("other.json")  # until monkeypatch restores it
    for there in (result("default"), {**result("default", 99.4), "config": {"lr": 2.0}}, result("fast", 99.4)):
        report.SESSION.write_text(json.dumps([there]))  # without runs, with other settings, of another recipe
        assert "| 99.410 ± 0.110% (6) | 3 of 6 | – | – |\n" in filled(document)


def test_the_committed_documents_are_those_of_the_committed_files():
    assert main(["--check"]) == 0


def test_check_finds_a_changed_figure_and_a_missing_log(document, capsys):
    document.write_text(filled(document))
    assert main(["--check"]) == 0
    document.write_text(document.read_text().replace("99.410", "99.500", 1))
    assert main(["--check"]) == 2
    assert_one_line(capsys.readouterr(), f"{document}: a figure is out of date", name="report.py")
    (document.parent / "log.txt").unlink()
    assert main([]) == 2
    assert_one_line(capsys.readouterr(), "log.txt cannot be read", name="report.py")


def test_the_ratio_is_to_the_quickest_that_gets_there_and_the_quickest_that_does_not(tmp_path):
    """fast gets there in its second epoch, net-19576 in its first of two of 200 s, the others never."""
    file, there = tmp_path / "a.json", result("net-19576", 99.5, seconds=400.0)
    fast = {**result("fast", 99.4), "threads": 2, "versions": {"torch": "2.14"}}
    there["runs"][0] |= {"epoch_test_accuracy": [99.4, 99.3], "total_seconds": 440.0}
    slow = [result("net-9720", 99.3, 99.38, seconds=80.0), result("net-11034", 99.3, seconds=91.0)]
    slow[0]["runs"][1]["epoch_seconds"] = [60.0, 40.0]
    file.write_text(json.dumps([fast, there, *slow]))
    assert KINDS["ratio"]([file]).splitlines()[2:] == [
        "| fast, epoch 2 | 99.40% (1) | 8 | 12 |",
        "| net-19576, epoch 1 | 99.30% (1) | 200 (**25 times**) | 240 (**20 times**) |",
        "| net-9720, all epochs, stays below | 99.34% (2) | 90 (**11 times**) | 12 (**1 times**) |",
    ]
    file.write_text(json.dumps([fast, *slow]))
    assert len(KINDS["ratio"]([file]).splitlines()) == 4
    text = KINDS["machine"]([file])
    assert "medians of 1 to 2 runs, which differ by up to 25%; 2 threads of" in text and "PyTorch 2.14" in text


def test_a_bar_is_as_long_as_the_recipe_takes_and_shows_whose_it_is(tmp_path):
    axes = Figure().subplots()
    results = [result("net-9720", 99.3, seconds=400.0), result("net-11034", 99.4, seconds=90.0), result("tiny")]
    figures.draw_seconds_to_target(axes, [*results, result("fast", 99.4, 99.6)])
    bars = sorted(axes.patches, key=lambda bar: bar.get_y())
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["fast", "net-11034", "net-9720"]
    assert [bar.get_y() + bar.get_height() / 2 for bar in bars] == list(axes.get_yticks()) == [0, 1, 2]
    assert [(bar.get_width(), bar.get_hatch() or "") for bar in bars] == [(8, ""), (90, ""), (400, "///")]
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [figures.BLUE.lower(), *[figures.VERMILLION.lower()] * 2]
    texts = [(text.get_text(), text.get_position()) for text in axes.texts]
    expected = " 8.0 s (n = 2)", " 90 s (n = 1)", " 400 s, mean 99.30% (n = 1)"
    assert texts == [(text, (seconds, y)) for y, (text, seconds) in enumerate(zip(expected, (8, 90, 400)))]
    assert axes.get_xscale() == "log" and axes.yaxis_inverted() and axes.get_xlim()[1] > 400 > 1 == axes.get_xlim()[0]
    assert "training seconds until the mean is 99.4%" in axes.get_title() and axes.get_xlabel() == "logarithmic scale"


def test_the_frontier_has_a_mean_for_each_net_and_what_others_publish(tmp_path):
    rows = [("tiny", "--epochs 2", 500, 99.0), ("tiny", "", 1000, 99.5), ("tiny", "--epochs 2", 500, 99.2)]
    rows = [dict(zip(("recipe", "set", "parameters", "accuracy"), row)) for row in (*rows, rows[1])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "default.json").write_text(json.dumps([{**result("default", 99.5, 99.6), "params": 2000}]))
    files = [tmp_path / "default.json", tmp_path / "a.jsonl"]
    half = 12.706 * 0.1  # Student's t for one degree of freedom, times the standard error
    row = f"| 500 | `tiny --epochs 2` | 99.100 ± 0.141% (2) | {99.1 - half:.3f} to {99.1 + half:.3f} |"
    assert row in KINDS["frontier"](files).splitlines()[2]
    content = "repository,parameters,accuracy,runs\na/b,697,99.03,about 700\nc/d,3130,99.45,1\n"
    (tmp_path / "public.csv").write_text(content)
    link = "| [a/b](https://github.com/a/b) | 697 | 99.03 | about 700 |"
    assert link in KINDS["public"]([tmp_path / "public.csv"])
    figure, points = Figure(), report.frontier(files)
    figures.draw_frontier(figure, points, report.csv_rows(tmp_path / "public.csv"))
    [axes] = figure.axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines if line.get_label()[0] != "_"}
    assert list(drawn.values()) == [[[3130, pytest.approx(0.55)]], [[697, pytest.approx(0.97)]]]
    family, plain = (bars.lines[0].get_xydata() for bars in axes.containers)
    assert family.flatten() == pytest.approx([500, 0.9, 1000, 0.5]) and plain.flatten() == pytest.approx([2000, 0.45])
    assert [text.get_text() for text in axes.texts] == ["c", "a"] and axes.yaxis_inverted()
