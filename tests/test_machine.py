"""Device, threads and memory: what is asked for, or what this machine has."""

import ctypes
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import DIGITS, ROOT, assert_refused

from experiment import machine
from experiment.machine import choose_device, peak_memory_mb, set_up, synchronized_time, usable_cpus
from experiment.settings import RECIPES, Settings


def test_a_device_that_is_not_there_is_refused_by_name(tmp_path, capsys):
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    assert choose_device("auto") == next(name for name, found in there.items() if found)
    for name, found in there.items():
        if found:
            assert choose_device(name) == name
        else:
            argv = [*DIGITS, "--device", name, "--out", tmp_path / "run"]
            assert_refused(capsys, argv, f"--device {name}: torch", "finds only", "cpu here; use --device auto")
            assert not (tmp_path / "run").exists()


def test_set_up_decides_what_is_open_takes_what_is_asked_for_and_binds_no_later_run(monkeypatch):
    monkeypatch.setattr(machine, "usable_cpus", lambda: 3)
    asked = Settings(RECIPES["tiny"], seed=3, dataset="digits", holdout=20, precision="bf16")
    for threads, expected in ((None, 3), (2, 2), (None, 3)):
        settings = set_up(replace(asked, threads=threads))
        assert settings == replace(asked, device=choose_device("auto"), threads=expected)
        assert torch.get_num_threads() == expected and set_up(settings) == settings


def test_set_up_keeps_freed_memory_where_the_c_library_can(monkeypatch):
    calls = {}
    for library in (SimpleNamespace(mallopt=calls.setdefault), object()):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, library=library: library)
        set_up(Settings(threads=1))
    assert calls.keys() == {-1, -3} and calls[-3] <= 32 * 2**20 < calls[-1]  # glibc refuses more


@pytest.mark.parametrize(
    ("allowed", "of_torch", "load", "affinity", "expected"),
    [
        (4, 2, [0] * 8, None, 2),
        (1, 8, [0] * 8, None, 1),
        (2, 2, [50, 50], None, 1),  # one busy process that moves from CPU to CPU
        (8, 8, [100, 90] + [0] * 6, None, 6),
        (2, 2, [0, 0, 100, 100], [2, 3], 1),
        (2, 2, [0, 0], [6, 7], 2),  # a container that numbers its CPUs anew
    ],
)
def test_threads_are_the_cpus_that_are_allowed_and_free(monkeypatch, allowed, of_torch, load, affinity, expected):
    monkeypatch.setattr("joblib.cpu_count", lambda: allowed)
    monkeypatch.setattr(machine, "TORCH_THREADS", of_torch)
    monkeypatch.setattr("psutil.Process.cpu_affinity", lambda _: affinity or [*range(len(load))], raising=False)
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: load)
    assert usable_cpus() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_affinity_of_a_process_decides_its_threads(monkeypatch):
    monkeypatch.setattr(machine, "TORCH_THREADS", 8)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_variables_of_openmp_are_set_by_the_time_that_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("import os; raise SystemExit(os.environ['GOMP_SPINCOUNT'])")
    script = f"import os, sys; sys.path.insert(1, {str(tmp_path)!r}); os.environ.pop('GOMP_SPINCOUNT', 0); import train"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stderr == "30000\n"


def test_the_clock_waits_for_the_device(monkeypatch):
    events = []
    module = SimpleNamespace(synchronize=lambda: events.append("synchronized"))
    monkeypatch.setattr(torch, "get_device_module", lambda device: events.append(device) or module)
    monkeypatch.setattr("time.perf_counter", lambda: events.append("read") or 7.0)
    assert synchronized_time("cpu") == synchronized_time("mps") == 7.0
    assert events == ["read", "mps", "synchronized", "read"]


def test_peak_memory_is_in_megabytes_of_this_process():
    pytest.importorskip("resource")  # not there on Windows, nor is the figure
    before, block = peak_memory_mb(), torch.ones(300_000_000, dtype=torch.uint8)
    assert len(block) / 1e6 <= peak_memory_mb() <= before + len(block) / 1e6 + 50
