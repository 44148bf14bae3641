"""The statistics over runs, by hand."""

import json

import pytest

from experiment.errors import FileError
from study.results import add_run, read_results, summarise


def result_of(*runs, seconds=(2.0, 2.0, 2.0)):
    """A result with runs of these seeds and accuracies after each epoch."""
    result = {"recipe": "default", "params": 1000, "config": {}, "machine": "", "versions": {}, "runs": []}
    for seed, *accuracies in runs:
        epochs = [{"test_accuracy": a, "seconds": s + seed, "images": 100} for a, s in zip(accuracies, seconds)]
        facts = {"params": 1000, "peak_memory_mb": 500 + seed, "train_images": 80, "threads": 2, "precision": "fp32"}
        figures = {"final_test_accuracy": accuracies[-1], "train_seconds": sum(epoch["seconds"] for epoch in epochs)}
        add_run(result, {"seed": seed, "epochs": epochs, **facts, **figures}, 9.0 + seed)
    return result


def test_summary_by_hand():
    finals = (99.3, 99.4, 99.5, 99.6, 99.7)
    result = result_of(*((seed, 98.0, 99.39 + 0.01 * (seed > 1), final) for seed, final in enumerate(finals)))
    assert result["mean"] == 99.5 and result["std"] == pytest.approx(0.1581, abs=1e-4)  # sqrt(0.1 / 4)
    half = 2.7764 * 0.15811 / 5**0.5  # Student's t for 4 degrees of freedom; 5 runs
    assert result["ci95"] == pytest.approx([99.5 - half, 99.5 + half], abs=2e-4)
    summary = summarise(result["runs"])
    assert (summary["reached"], summary["min"], summary["first_epoch"], summary["n"]) == (4, 99.3, 3, 5)
    assert summary["seconds"] == summary["seconds_to_target"] == 12.0  # of seed 2; one second more an epoch for each
    assert (summary["passes"], summary["total_seconds"], summary["peak_memory_mb"]) == (3 * 100 / 80, 11.0, 504)
    earlier = summarise(result_of((0, 98.0, 99.4, 99.3))["runs"])
    assert (earlier["first_epoch"], earlier["seconds_to_target"], earlier["reached"]) == (2, 4.0, 0)
    assert (earlier["seconds"], earlier["total_seconds"], earlier["total_seconds_to_target"]) == (6.0, 9.0, 7.0)
    runs = [{"epoch_seconds": e, "total_seconds": sum(e)} for e in ([1, 9], [2, 1], [9, 3])]  # medians 2 and 3
    runs = [{**run, **new} for run, new in zip(result_of((0, 99.0, 99.0), (1, 99, 99), (2, 99, 99))["runs"], runs)]
    assert summarise(runs)["seconds"] == 10  # the median of runs, not the sum of medians
    never = summarise(result_of((0, 98.0, 99.3))["runs"])
    assert (never["first_epoch"], never["seconds_to_target"]) == (None, 4.0)


def test_a_mean_of_exactly_the_target_reaches_it():
    runs = enumerate([99.3, 99.5] * 3)  # their floating-point mean is a little below 99.4
    assert summarise(result_of(*runs)["runs"])["first_epoch"] == 1


def test_runs_are_in_the_order_of_their_seeds_and_few_runs_have_no_interval():
    one, four = result_of((5, 99.0)), result_of(*((seed, 99.0) for seed in (3, 2, 7, 4)))
    assert one["std"] is None and one["ci95"] is None and four["std"] == 0 and four["ci95"] is None
    assert [run["seed"] for run in four["runs"]] == [2, 3, 4, 7]


@pytest.mark.parametrize("change", [{"epoch_test_accuracy": None}, {"final_test_accuracy": "99"}, {"seed": ...}])
def test_a_damaged_file_is_refused_by_name(tmp_path, change):
    result, path = result_of((5, 99.0, 99.4)), tmp_path / "results.json"
    path.write_text(json.dumps([result]))
    assert read_results(path) == [result]
    run = {name: value for name, value in {**result["runs"][0], **change}.items() if value is not ...}
    damaged = json.dumps([{**result, "runs": [run]}])
    for content in (damaged, "", "{}x", '[{"recipe": "default"}]', "[1]", '{"runs": []}', "[[]]"):
        path.write_text(content)
        with pytest.raises(FileError, match=f"{path} cannot be read .*; expected a benchmark's JSON"):
            read_results(path)
