"""Device, threads and memory: what is asked for, or what this machine has."""

import ctypes
import inspect
import os
import platform
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest
import torch
from conftest import DIGITS, ROOT, RUN, assert_refused, read_metrics, same

import train
from experiment import machine
from experiment.machine import choose_device, peak_memory_mb, set_up, synchronized_time, usable_cpus, without_compiler
from experiment.settings import RECIPES, Settings
from model import Net
from study import results


def test_a_device_that_is_not_there_is_refused_by_name(tmp_path, monkeypatch, capsys):
    for module, there in ((torch.cuda, False), (torch.backends.mps, True)):
        monkeypatch.setattr(module, "is_available", lambda there=there: there)
    assert (choose_device("auto"), choose_device("mps"), choose_device("cpu")) == ("mps", "mps", "cpu")
    expected = f"--device cuda: torch {torch.__version__} finds only mps, cpu here; use --device auto"
    assert_refused(capsys, [*DIGITS, "--device", "cuda", "--out", tmp_path / "run"], expected)
    assert not (tmp_path / "run").exists()


def test_set_up_decides_what_is_open_takes_what_is_asked_for_binds_no_later_run_and_keeps_freed_memory(monkeypatch):
    monkeypatch.setattr(machine, "usable_cpus", lambda: 3)
    asked = Settings(RECIPES["tiny"], seed=3, dataset="digits", holdout=20, precision="bf16")
    for threads, expected in ((None, 3), (2, 2), (None, 3)):
        settings = set_up(replace(asked, threads=threads))
        assert settings == replace(asked, device=choose_device("auto"), threads=expected)
        assert torch.get_num_threads() == expected and set_up(settings) == settings
    calls = {}
    for library in (SimpleNamespace(mallopt=calls.setdefault), object()):  # which may be another one than glibc
        monkeypatch.setattr(ctypes, "CDLL", lambda name, library=library: library)
        set_up(asked)
    assert calls.keys() == {-1, -3} and calls[-3] <= 32 * 2**20 < calls[-1]  # glibc refuses more


@pytest.mark.parametrize(
    ("allowed", "of_torch", "load", "affinity", "expected"),
    [
        (4, 2, [0] * 8, [*range(8)], 2),
        (1, 8, [0] * 8, [*range(8)], 1),
        (2, 2, [50, 50], [0, 1], 1),  # one busy process that moves from CPU to CPU
        (8, 8, [100, 90] + [0] * 6, [*range(8)], 6),
        (2, 2, [0, 0, 100, 100], [2, 3], 1),
        (2, 2, [0, 0], [6, 7], 2),  # a container that numbers its CPUs anew
        (5, 6, PermissionError(13, "Permission denied"), [*range(5)], 5),  # or hides them
        (5, 6, [100] * 5, psutil.AccessDenied(), 5),
    ],
    ids=str,
)
def test_threads_are_the_cpus_that_are_allowed_and_free(monkeypatch, allowed, of_torch, load, affinity, expected):
    monkeypatch.setattr("joblib.cpu_count", lambda: allowed)
    monkeypatch.setattr(machine, "TORCH_THREADS", of_torch)
    monkeypatch.setattr("psutil.cpu_percent", Mock(side_effect=[load]))
    monkeypatch.setattr("psutil.Process.cpu_affinity", Mock(side_effect=[affinity]), raising=False)
    assert usable_cpus() == expected


def test_the_description_names_the_first_processor_or_where_it_is_hidden_its_kind(monkeypatch):
    read = Mock(side_effect=["flags: fpu\nmodel name\t: A: B\nmodel name: C\n", PermissionError()])
    monkeypatch.setattr(results, "Path", lambda name: SimpleNamespace(read_text=read))
    for expected in ("A: B", platform.processor() or platform.machine()):
        assert results.describe_machine()["machine"] == f"{expected}, {os.cpu_count()} cores, {platform.system()}"


def test_without_the_compiler_an_optimizer_takes_the_same_steps_bit_for_bit(monkeypatch):
    """Also where torch has no decorators; fused or not; and after its state went into another one, as on resume."""
    plain, ends = torch.optim.SGD, []
    decorated = inspect.getmembers(plain, lambda member: hasattr(member, "__wrapped__"))
    bare = type("SGD", (plain,), {name: inspect.unwrap(method) for name, method in decorated})
    for make in (without_compiler, lambda _: without_compiler(bare), lambda _: plain):
        monkeypatch.setattr(train, "without_compiler", make)
        torch.manual_seed(0)
        net = Net(**RECIPES["best"].network)
        optimizer = train.make_optimizer(net, RECIPES["best"])
        for step in range(6):
            if step == 3:
                state, optimizer = optimizer.state_dict(), train.make_optimizer(net, RECIPES["fast"])
                optimizer.load_state_dict(state)
            for group in optimizer.param_groups:
                group["fused"] = step != 2
            optimizer.zero_grad()
            net(torch.rand(8, 1, 28, 28)).square().mean().backward()
            optimizer.step()
        ends.append([dict(net.state_dict()), optimizer.state_dict()])
    assert same(ends[0], ends[2]) and same(ends[1], ends[2])


def test_a_run_sets_openmp_before_torch_counts_what_its_process_did_before_and_imports_no_compiler(tmp_path):
    """If it does import one with a new torch, without_compiler no longer does what it is for."""
    script = """if True:
        import os, sys, time
        os.environ.pop("GOMP_SPINCOUNT", None)
        time.process_time, found = lambda: 1000.0, []
        at_import = lambda event, args: event == "import" and found.append((args[0], os.environ.get("GOMP_SPINCOUNT")))
        sys.addaudithook(at_import)
        import train
        assert ("torch", None) not in found and train.main() == 0 and "torch._dynamo" not in sys.modules"""
    command = [sys.executable, "-c", script, *RUN, "--epochs", "2", "--out", tmp_path / "run"]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    metrics = read_metrics(tmp_path / "run")
    assert metrics["total_seconds"] >= 1000 + metrics["train_seconds"] > 1000


def test_the_clock_waits_for_the_device(monkeypatch):
    events = []
    module = SimpleNamespace(synchronize=lambda: events.append("synchronized"))
    monkeypatch.setattr(torch, "get_device_module", lambda device: events.append(device) or module)
    monkeypatch.setattr("time.perf_counter", lambda: events.append("read") or 7.0)
    assert synchronized_time("cpu") == synchronized_time("mps") == 7.0
    assert events == ["read", "mps", "synchronized", "read"]


def test_peak_memory_is_in_megabytes_of_this_process_alone():
    pytest.importorskip("resource")  # not there on Windows, nor is the figure
    before, block = peak_memory_mb(), torch.ones(300_000_000, dtype=torch.uint8)
    assert len(block) / 1e6 <= peak_memory_mb() <= before + len(block) / 1e6 + 50
    code = "from experiment.machine import peak_memory_mb; print(peak_memory_mb())"
    assert int(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT)) < peak_memory_mb() - 200
