"""The benchmark's file, continuing after an interruption, runs side by side; mostly with a stand-in for training."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest
from conftest import PYTHON, ROOT

import benchmark
from experiment.datasets import FILES, load_mnist
from experiment.files import lock
from study.results import add_run


def metrics(result, seed, data_dir=None):
    """A stand-in for a run: (metrics.json, seconds)."""
    accuracies = (99.0, 99.4 + seed / 100)
    epochs = [{"test_accuracy": accuracy, "seconds": 2.0, "images": 100} for accuracy in accuracies]
    facts = {name: result[name] for name in ("sha256", "threads", "precision")}
    facts |= {"params": 1000, "peak_memory_mb": 500, "train_images": 80}
    return {"seed": seed, "epochs": epochs, "final_test_accuracy": accuracies[-1], "train_seconds": 4.0, **facts}, 9.0


@pytest.fixture
def run(mnist_dir, tmp_path):
    """run(*argv, train=metrics): the exit code of benchmark.py on the small data set; run.out is its file."""

    def run(*argv, train=metrics):
        return benchmark.main([*map(str, argv), "--data-dir", str(mnist_dir), "--out", str(run.out)], train=train)

    run.out = tmp_path / "out.json"
    return run


def test_an_interrupted_benchmark_continues(run, capsys):
    asked, command = [], ("default", "fast", "default", "--runs", 3, "--seed", 2)

    def train(result, seed, data_dir):
        asked.append((result["recipe"], seed))
        if asked.count(("default", 3)) == 1:
            raise KeyboardInterrupt
        return metrics(result, seed)

    assert run(*command, train=train) == 130 and "rerun the same command" in capsys.readouterr().out
    assert [[r["seed"] for r in result["runs"]] for result in json.loads(run.out.read_text())] == [[2], [2]]
    assert run(*command, train=train) == 0
    assert asked[-4:] == [("default", 3), ("fast", 3), ("default", 4), ("fast", 4)]
    table = capsys.readouterr().out.splitlines()[-3:]
    assert re.split("  +", table[1]) == ["default", "1,000", "99.430 ± 0.010% (3)", "3 of 3", "4.0", "9.0"]
    assert len({len(line) for line in table}) == 1 and len(table[0]) <= 80


def test_data_that_change_meanwhile_are_noticed(run, capsys):
    def train(result, seed, data_dir):
        return metrics({**result, "sha256": "other"} if seed else result, seed)

    assert run("fast", "--runs", 2, train=train) == 2
    assert "fast, seed 1: the data have changed" in capsys.readouterr().err
    assert [found["seed"] for found in json.loads(run.out.read_text())[0]["runs"]] == [0]


def test_runs_that_are_not_alike_or_a_file_in_use_are_refused_before_training(run, mnist_dir, capsys):
    held = lock(run.out)
    assert run("net-9720", "--runs", 1, train=pytest.fail) == 2
    assert f"{run.out} is in use by another process" in capsys.readouterr().err
    held.release()
    assert run("net-9720", "--runs", 1) == 0
    labels, [result] = mnist_dir / FILES[1], json.loads(run.out.read_text())

    def assert_refused(*argv, expected, **change):
        run.out.write_text(before := json.dumps([{**result, **change}]))
        assert run(*argv, train=pytest.fail) == 2
        assert expected in capsys.readouterr().err and run.out.read_text() == before

    assert_refused("net-9720", "--runs", 1, "--seed", 5, expected="other seeds: found [0], expected 5 to 5")
    assert_refused("net-9720", "--runs", 1, "--threads", 2, expected="a different threads: found 1, expected 2")
    for name in benchmark.SAME:
        expected = f"a different {name}: found other, expected"
        assert_refused("net-9720", "--runs", 2, expected=expected, **{name: "other"})
        if name != "config":  # each recipe has its own
            assert_refused("default", "--runs", 2, expected=expected, **{name: "other"})
    labels.write_bytes(labels.read_bytes()[:-1] + b"\1")
    assert_refused("net-9720", "--runs", 2, expected="a different sha256")
    with pytest.raises(SystemExit):
        run("nonsense", "--runs", 1, train=pytest.fail)
    assert "NAME: invalid choice: 'nonsense' (choose from " in capsys.readouterr().err


def test_a_file_takes_more_recipes_and_runs_and_keeps_the_threads_of_its_first(run):
    """The load of the machine decides the threads, and might be another one the next time."""
    assert run("fast", "net-9720", "--runs", 1) == 0
    run.out.write_text(json.dumps([{**result, "threads": 7} for result in json.loads(run.out.read_text())]))
    assert run("default", "fast", "--runs", 2) == 0
    results = json.loads(run.out.read_text())
    found = {result["recipe"]: [(run["seed"], run["threads"]) for run in result["runs"]] for result in results}
    assert found == {"fast": [(0, 1), (1, 7)], "net-9720": [(0, 1)], "default": [(0, 1), (1, 1)]}


def test_jobs_share_the_machine_and_give_what_one_after_the_other_gives(run, monkeypatch, capsys):
    """Each run waits until two are in training."""
    meeting, used = threading.Barrier(2, timeout=60), []

    def train(result, seed, data_dir):
        meeting.wait()
        used.append(result["threads"])
        meeting.wait()
        return metrics(result, seed)

    monkeypatch.setattr(benchmark, "usable_cpus", lambda: 9)
    assert run("default", "fast", "--runs", 2, "--jobs", 2, train=train) == 0
    assert used == [4] * 4
    assert "side by side: their times do not compare" in capsys.readouterr().out
    side = json.loads(run.out.read_text())
    assert all(run.pop("jobs") == 2 for result in side for run in result["runs"])
    run.out.unlink()
    assert run("default", "fast", "--runs", 2, "--threads", 4) == 0
    assert json.loads(run.out.read_text()) == side


def test_a_real_run_beside_another_train_py(mnist_dir, tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text("raise SystemExit('another train.py')")
    monkeypatch.chdir(tmp_path)
    result = benchmark.new_result("fast", load_mnist(mnist_dir), threads=1)
    metrics, seconds = benchmark.train_once(result, 7, mnist_dir)
    assert metrics["dataset"] == "small (MNIST format)" and metrics["seed"] == 7 and metrics["target"] is None
    for name in ("recipe", "config", "sha256", "device", "threads", "precision"):
        assert metrics[name] == result[name]
    assert metrics["total_seconds"] < seconds
    add_run(result, metrics, seconds)  # finds in them all that it wants


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send these signals to one process")
def test_both_runs_end_with_their_benchmark(mnist_dir, tmp_path):
    """Python starts each run by telling this test; the connection lasts as long as the run."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(60)
    (tmp_path / "sitecustomize.py").write_text(f"""
import socket, sys, threading
if "study.train_published" in sys.orig_argv:
    kept = socket.create_connection({server.getsockname()})
    threading.Event().wait()  # never ends by itself
""")
    argv = f"benchmark.py net-9720 --runs 9 --jobs 2 --out {tmp_path}/out.json --data-dir {mnist_dir}".split()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with server, subprocess.Popen([PYTHON, *argv], cwd=ROOT, env=environment, stderr=-1, stdout=-1) as process:
        try:
            connections = [server.accept()[0] for _ in range(2)]
            process.send_signal(signal.SIGTERM)
            for connection in connections:
                connection.settimeout(60)
                assert connection.recv(1) == b""  # it has ended
            assert process.wait(timeout=60) == 128 + signal.SIGTERM
        finally:
            process.kill()
