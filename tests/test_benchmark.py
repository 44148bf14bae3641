"""The benchmark's file, and continuing after an interruption, with a stand-in for training."""

import json

import pytest

import benchmark
from experiment.errors import ExperimentError
from experiment.files import lock
from experiment.results import add_run


def metrics(recipe, seed, *_):
    """A stand-in for a run: (metrics.json, seconds)."""
    accuracies = (99.0, 99.4 + seed / 100)
    epochs = [{"test_accuracy": accuracy, "seconds": 2.0} for accuracy in accuracies]
    facts = {"dataset": "mnist", "params": 1000, "peak_memory_mb": 500, "threads": 2, "precision": "fp32"}
    return {"seed": seed, "epochs": epochs, "final_test_accuracy": accuracies[-1], "train_seconds": 4.0, **facts}, 9.0


def run(*argv, train=metrics):
    try:
        return benchmark.main([str(arg) for arg in argv], train=train)
    except SystemExit as error:
        return error.code


def test_an_interrupted_benchmark_continues(tmp_path, capsys):
    out, asked = tmp_path / "results.json", []

    def train(recipe, seed, *other):
        asked.append((recipe, seed))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return metrics(recipe, seed)

    command = ("default", "fast", "--runs", 3, "--seed", 2, "--out", out)
    assert run(*command, train=train) == 130
    assert [[r["seed"] for r in result["runs"]] for result in json.loads(out.read_text())] == [[2], [2]]
    assert run(*command, train=train) == 0
    assert asked[3:] == [("default", 3), ("fast", 3), ("default", 4), ("fast", 4)]
    line = "| default | 1,000 | 2 | 3 | 99.430 ± 0.010 | 99.405 to 99.455 | 99.42 | 3 of 3 | 2 |"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"dataset": "FashionMNIST"}, {"threads": 1}])
def test_runs_on_other_data_or_threads_are_refused(change, tmp_path, capsys):
    out = tmp_path / "results.json"
    assert run("default", "--runs", 2, "--out", out) == 0
    before = out.read_text()
    assert run("default", "--runs", 3, "--out", out, train=lambda *of: (metrics(*of)[0] | change, 9.0)) == 2
    assert (
        f"default, seed 2: found { {'dataset': 'mnist', 'threads': 2} | change }, expected " in capsys.readouterr().err
    )
    assert out.read_text() == before


def test_other_runs_are_never_mixed_or_overwritten(tmp_path, capsys, monkeypatch):
    out = tmp_path / "results.json"
    assert run("net-9720", "--runs", 1, "--out", out) == 0
    before = out.read_text()
    for argv, expected in [
        (("fast", "--runs", 1), "another recipe: found ['net-9720'], expected ['fast']"),
        (("net-9720", "--runs", 1, "--seed", 5), "other seeds: found [0], expected 5 to 5"),
        (("net-9720", "--runs", 1, "--loader", "fast"), "another config: found "),
    ]:
        assert run(*argv, "--out", out, train=pytest.fail) == 2
        assert expected in capsys.readouterr().err and out.read_text() == before


def test_a_file_belongs_to_one_benchmark_at_a_time(tmp_path, capsys):
    out = tmp_path / "results.json"
    held = lock(out)
    assert run("default", "--runs", 1, "--out", out, train=pytest.fail) == 2
    assert f"{out} is in use by another process" in capsys.readouterr().err
    held.release()
    assert run("default", "--runs", 1, "--out", out) == 0


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["nonsense", "--runs", "1", "--out", "x"], "found nonsense, expected one or more of default, fast"),
        (["--runs", "1", "--out", "x"], "NAME"),
        (["default", "--runs", "0", "--out", "x"], "--runs: found 0"),
        (["default", "--runs", "1"], "--out"),
    ],
)
def test_bad_input(argv, expected, capsys):
    assert run(*argv, train=pytest.fail) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.err.count("\n") == 1


def test_train_once_returns_what_the_run_wrote_or_names_the_run(mnist_dir, tmp_path):
    """The one real process here, on few images."""
    metrics, seconds = benchmark.train_once("fast", 7, mnist_dir)
    assert metrics["dataset"] == "small (MNIST format)" and metrics["seed"] == 7 and metrics["target"] is None
    result = benchmark.new_result("fast")
    assert metrics["config"] == result["config"] and metrics["recipe"] == "fast"
    assert metrics["total_seconds"] < seconds and metrics["peak_memory_mb"] > 100
    add_run(result, metrics, seconds)  # finds in them all that it wants
    with pytest.raises(ExperimentError, match="net-9720, seed 7: .*does not exist"):
        benchmark.train_once("net-9720", 7, tmp_path / "missing")
