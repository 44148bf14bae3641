"""The statistics over runs, by hand."""

import json

import pytest

from experiment.errors import FileError
from study.results import add_run, read_results, summarise


def metrics(seed, *accuracies, **other):
    epochs = [{"test_accuracy": accuracy, "seconds": 2.0, "images": 100} for accuracy in accuracies]
    facts = {"params": 1000, "peak_memory_mb": 500, "train_images": 80, "threads": 2, "precision": "fp32"}
    figures = {"final_test_accuracy": accuracies[-1], "train_seconds": 2.0 * len(epochs)}
    return {"seed": seed, "epochs": epochs, **facts, **figures, **other}


def new():
    return {"recipe": "default", "params": 1000, "config": {}, "machine": "", "versions": {}, "runs": []}


def test_summary_by_hand():
    result = new()
    for seed, final in enumerate((99.3, 99.4, 99.5, 99.6)):
        add_run(result, metrics(seed, 98.0, 99.5, final), 9.0)
    assert result["mean"] == pytest.approx(99.45)
    assert result["std"] == pytest.approx(0.1291, abs=1e-4)  # sqrt((0.15² + 0.05² + 0.05² + 0.15²) / 3)
    half = 3.1824 * 0.12910 / 2  # Student's t for 3 degrees of freedom; sqrt(4) runs
    assert result["ci95"] == pytest.approx([99.45 - half, 99.45 + half], abs=2e-4)
    summary = summarise(result["runs"])
    assert (summary["reached"], summary["min"], summary["first_epoch"]) == (3, 99.3, 2)
    assert summary["seconds"] == [2.0, 4.0, 6.0] and summary["passes"] == 3 * 100 / 80


def test_runs_are_in_the_order_of_their_seeds_and_one_run_has_no_deviation():
    result = new()
    add_run(result, metrics(5, 99.0), 9.0)
    assert result["std"] is None and result["ci95"] is None
    add_run(result, metrics(3, 99.2), 9.0)
    assert [run["seed"] for run in result["runs"]] == [3, 5] and result["mean"] == 99.1


@pytest.mark.parametrize("content", ["", "{}x", '[{"recipe": "default"}]', "[1]", '{"runs": []}', "[[]]"])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(FileError, match=f"{path} is not a benchmark's JSON"):
        read_results(path)
    path.write_text(json.dumps([new()]))
    assert read_results(path) == [new()]


@pytest.mark.parametrize("change", [{"epoch_test_accuracy": None}, {"final_test_accuracy": "99"}, {"seed": ...}])
def test_a_damaged_run_is_refused_too(tmp_path, change):
    result, path = new(), tmp_path / "results.json"
    add_run(result, metrics(5, 99.0, 99.4), 9.0)
    path.write_text(json.dumps([result]))
    assert read_results(path) == [result]
    run = {name: value for name, value in {**result["runs"][0], **change}.items() if value is not ...}
    path.write_text(json.dumps([{**result, "runs": [run]}]))
    with pytest.raises(FileError, match=f"{path} is not a benchmark's JSON"):
        read_results(path)
