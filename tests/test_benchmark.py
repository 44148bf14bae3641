"""The benchmark's file, and continuing after an interruption, with a stand-in for training."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from conftest import ROOT

import benchmark
from experiment.datasets import FILES, load_mnist
from experiment.errors import ExperimentError
from experiment.files import lock
from study.results import add_run


def metrics(result, seed, *_):
    """A stand-in for a run: (metrics.json, seconds)."""
    accuracies = (99.0, 99.4 + seed / 100)
    epochs = [{"test_accuracy": accuracy, "seconds": 2.0, "images": 100} for accuracy in accuracies]
    facts = {name: result[name] for name in ("sha256", "threads", "precision")}
    facts |= {"params": 1000, "peak_memory_mb": 500, "train_images": 80}
    return {"seed": seed, "epochs": epochs, "final_test_accuracy": accuracies[-1], "train_seconds": 4.0, **facts}, 9.0


@pytest.fixture
def run(mnist_dir):
    """run(*argv, train=metrics): the exit code of benchmark.py on the small data set."""

    def run(*argv, train=metrics):
        try:
            return benchmark.main([*map(str, argv), "--data-dir", str(mnist_dir)], train=train)
        except SystemExit as error:
            return error.code

    return run


def test_an_interrupted_benchmark_continues(run, tmp_path, capsys):
    out, asked = tmp_path / "results.json", []

    def train(result, seed, *other):
        asked.append((result["recipe"], seed))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return metrics(result, seed)

    command = ("default", "fast", "default", "--runs", 3, "--seed", 2, "--out", out)
    assert run(*command, train=train) == 130
    assert [[r["seed"] for r in result["runs"]] for result in json.loads(out.read_text())] == [[2], [2]]
    assert run(*command, train=train) == 0
    assert asked[3:] == [("default", 3), ("fast", 3), ("default", 4), ("fast", 4)]
    line = "| default | 1,000 | 2 | 2.5 | 99.430 ± 0.010% (3) | 99.405 to 99.455 | 99.42 | 3 of 3 | 4.0 (epoch 2) |"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"sha256": "of other data"}, {"threads": 3}, {"precision": "bf16"}])
def test_a_run_under_other_conditions_is_not_added(run, change, tmp_path, capsys):
    out = tmp_path / "results.json"
    assert run("default", "--runs", 2, "--out", out) == 0
    before = out.read_text()
    assert run("default", "--runs", 3, "--out", out, train=lambda *of: (metrics(*of)[0] | change, 9.0)) == 2
    [(name, value)] = change.items()
    assert f"default, seed 2: found {name} {value}, expected " in capsys.readouterr().err
    assert out.read_text() == before


def test_runs_that_are_not_alike_are_refused_before_training(run, mnist_dir, tmp_path, capsys):
    out = tmp_path / "results.json"
    assert run("net-9720", "--runs", 1, "--out", out) == 0
    labels, before = mnist_dir / FILES[1], out.read_text()
    results = json.loads(before)
    for argv, expected in [
        (("net-9720", "--runs", 1, "--seed", 5), "other seeds: found [0], expected 5 to 5"),
        (("net-9720", "--runs", 1, "--threads", 2), "a different threads: found 1, expected 2"),
    ]:
        assert run(*argv, "--out", out, train=pytest.fail) == 2
        assert expected in capsys.readouterr().err and out.read_text() == before
    for name in ("config", "machine", "versions", "dataset", "device", "precision"):
        out.write_text(json.dumps([{**results[0], name: "other"}]))
        assert run("net-9720", "--runs", 2, "--out", out, train=pytest.fail) == 2
        assert f"a different {name}: found other, expected" in capsys.readouterr().err
    out.write_text(before)
    labels.write_bytes(labels.read_bytes()[:-1] + b"\1")
    assert run("net-9720", "--runs", 2, "--out", out, train=pytest.fail) == 2
    assert "a different sha256" in capsys.readouterr().err and out.read_text() == before


def test_a_file_takes_more_recipes_and_more_runs_of_some(run, tmp_path):
    out = tmp_path / "results.json"
    assert run("fast", "net-9720", "--runs", 1, "--out", out) == 0
    assert run("default", "fast", "--runs", 2, "--out", out) == 0
    found = {result["recipe"]: [run["seed"] for run in result["runs"]] for result in json.loads(out.read_text())}
    assert found == {"fast": [0, 1], "net-9720": [0], "default": [0, 1]}


def test_a_file_keeps_the_threads_of_its_first_run(run, tmp_path):
    """The load of the machine decides them, and might be another one the next time."""
    out = tmp_path / "results.json"
    assert run("fast", "--runs", 1, "--out", out) == 0
    [result] = json.loads(out.read_text())
    out.write_text(json.dumps([{**result, "threads": 7}]))
    assert run("fast", "--runs", 2, "--out", out) == 0
    runs = json.loads(out.read_text())[0]["runs"]
    assert [run["threads"] for run in runs] == [1, 7]


def test_jobs_run_at_once_and_give_what_one_after_the_other_gives(run, tmp_path, capsys):
    """Each run waits until two are in training; with two of four GPUs in use at a time."""
    meeting, workers = threading.Barrier(2), []

    def train(result, seed, data_dir, gpu):
        workers.append(threading.current_thread())
        meeting.wait(timeout=60)
        return metrics(result, seed)

    side, one = tmp_path / "side.json", tmp_path / "one.json"
    assert run("default", "fast", "--runs", 2, "--jobs", 2, "--out", side, train=train) == 0
    assert "side by side: their times do not compare" in capsys.readouterr().out
    assert len(workers) == 4 and len(set(workers)) == 2 and threading.current_thread() not in workers
    assert run("default", "fast", "--runs", 2, "--out", one) == 0
    both = [json.loads(file.read_text()) for file in (side, one)]
    assert all(run.pop("jobs") == 2 for result in both[0] for run in result["runs"])
    assert both[0] == both[1]


def test_a_failing_job_stops_the_others(run, tmp_path):
    asked, over = [], threading.Event()

    def train(result, seed, data_dir, gpu):
        asked.append(seed)
        if seed == 0:
            raise ExperimentError("no")
        over.wait(timeout=60)
        return metrics(result, seed)

    assert run("default", "--runs", 50, "--jobs", 2, "--out", tmp_path / "results.json", train=train) == 2
    over.set()
    assert len(asked) <= 3


def test_each_job_has_a_gpu(mnist_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, env, **options: pytest.fail(env["CUDA_VISIBLE_DEVICES"]))
    with pytest.raises(pytest.fail.Exception, match="^3$"):
        benchmark.train_once(benchmark.new_result("fast", load_mnist(mnist_dir), threads=1), 7, mnist_dir, gpu=3)


def test_a_file_belongs_to_one_benchmark_at_a_time(run, tmp_path, capsys):
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
        (["default", "--runs", "1", "--out", "x", "--jobs", "0"], "--jobs: found 0"),
    ],
)
def test_bad_input(run, argv, expected, capsys):
    assert run(*argv, train=pytest.fail) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.err.count("\n") == 1


def test_train_once_returns_what_the_run_wrote_or_names_the_run(mnist_dir, tmp_path, monkeypatch):
    """The one real process here, on few images, in a folder with a train.py that is another one."""
    (tmp_path / "train.py").write_text("raise SystemExit('another train.py')")
    monkeypatch.chdir(tmp_path)
    result = benchmark.new_result("fast", load_mnist(mnist_dir), threads=1)
    metrics, seconds = benchmark.train_once(result, 7, mnist_dir)
    assert metrics["dataset"] == "small (MNIST format)" and metrics["seed"] == 7 and metrics["target"] is None
    assert metrics["config"] == result["config"] and metrics["recipe"] == "fast"
    assert all(metrics[name] == result[name] for name in ("sha256", "device", "threads", "precision"))
    assert metrics["total_seconds"] < seconds and metrics["peak_memory_mb"] > 100
    add_run(result, metrics, seconds)  # finds in them all that it wants
    with pytest.raises(ExperimentError, match="net-9720, seed 7: .*does not exist"):
        benchmark.train_once({**result, "recipe": "net-9720"}, 7, tmp_path / "missing")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send these signals to one process")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL", "SIGHUP"])
def test_a_run_ends_with_its_benchmark_however_that_ends(mnist_dir, tmp_path, number):
    """Python starts the run by telling this test; the connection lasts as long as the run."""
    server = socket.create_server(("localhost", 0))
    server.settimeout(60)
    (tmp_path / "sitecustomize.py").write_text(f"""
import runpy, socket, sys, threading
if "experiment.child" in sys.orig_argv:
    runpy.run_module = lambda *args, **options: threading.Event().wait()  # never ends by itself
    sys.kept = socket.create_connection({server.getsockname()})
""")
    argv = f"benchmark.py net-9720 --runs 9 --out {tmp_path}/out.json --data-dir {mnist_dir}".split()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with server, subprocess.Popen([sys.executable, *argv], cwd=ROOT, env=environment, stderr=-1, stdout=-1) as process:
        try:
            connection, _ = server.accept()
            connection.settimeout(60)
            process.send_signal(getattr(signal, number))
            assert connection.recv(1) == b""  # it has ended
            assert process.wait(timeout=60) != 0
        finally:
            process.kill()
