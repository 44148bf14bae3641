"""Device and threads: what is asked for, or what this machine has."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from conftest import DIGITS, ROOT, assert_refused

from experiment.errors import SettingError
from experiment.machine import choose_device, peak_memory_mb, set_up, usable_cpus
from experiment.settings import RECIPES, Settings
from study.results import describe_machine


def test_a_device_that_is_not_there_is_refused_by_name(tmp_path, capsys):
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    assert choose_device("auto") == next(name for name, found in there.items() if found)
    for name, found in there.items():
        if found:
            assert choose_device(name) == name
            continue
        with pytest.raises(SettingError, match=f"^--device {name}: torch .* finds only .*cpu here"):
            choose_device(name)
        argv = [*DIGITS, "--device", name, "--out", tmp_path / "run"]
        assert_refused(capsys, argv, f"--device {name}", "finds only", "--device auto")
        assert not (tmp_path / "run").exists()


def test_resolve_replaces_what_is_open_and_a_second_time_nothing():
    settings = Settings(RECIPES["tiny"], seed=3, dataset="digits", holdout=20)
    once = set_up(settings)
    assert once.device == choose_device("auto")
    assert once.threads == torch.get_num_threads() == 1  # as the tests have it
    changed = {name for name, value in vars(once).items() if value != getattr(settings, name)}
    assert changed == {"device", "threads", "processes"}
    assert set_up(once) == once


def test_resolve_takes_what_is_asked_for():
    settings = Settings(threads=2, device="cpu", precision="bf16", processes=1)
    assert set_up(settings) == settings and torch.get_num_threads() == 2


def test_one_run_does_not_bind_the_next(monkeypatch):
    monkeypatch.setattr("experiment.machine.TORCH_THREADS", 4)
    monkeypatch.setattr("joblib.cpu_count", lambda: 4)
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: [0] * 4)
    monkeypatch.setattr("psutil.Process.cpu_affinity", lambda process: [0, 1, 2, 3], raising=False)
    assert [set_up(Settings(threads=threads)).threads for threads in (None, 1, None)] == [4, 1, 4]


@pytest.mark.parametrize(
    ("allowed", "of_torch", "load", "affinity", "expected"),
    [
        (4, 2, [0] * 8, None, 2),
        (1, 8, [0] * 8, None, 1),
        (3, 3, [0, 10, 5, 20], None, 3),
        (2, 2, [100, 100], None, 1),
        (2, 2, [50, 60], None, 1),  # one busy process that moves from CPU to CPU
        (4, 4, [100, 100] + [0] * 6, None, 4),
        (8, 8, [100, 90] + [0] * 6, None, 6),
        (2, 2, [0, 0, 100, 100], [2, 3], 1),
        (2, 2, [0, 0], [6, 7], 2),  # a container that numbers its CPUs anew
    ],
)
def test_threads_are_the_cpus_that_are_allowed_and_free(monkeypatch, allowed, of_torch, load, affinity, expected):
    monkeypatch.setattr("joblib.cpu_count", lambda: allowed)
    monkeypatch.setattr("experiment.machine.TORCH_THREADS", of_torch)
    monkeypatch.setattr(
        "psutil.Process.cpu_affinity", lambda process: affinity or list(range(len(load))), raising=False
    )
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: load)
    assert usable_cpus() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
@pytest.mark.parametrize("how", ["affinity", "OMP_NUM_THREADS"])
def test_a_process_confined_to_one_cpu_trains_on_one(monkeypatch, how):
    monkeypatch.delenv("OMP_NUM_THREADS")
    first = f"os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})" if how == "affinity" else ""
    script = f"import os; {first}\nfrom experiment.machine import usable_cpus\nprint(usable_cpus())"
    if how != "affinity":
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout == "1\n"


def test_peak_memory_is_in_megabytes_of_this_process():
    pytest.importorskip("resource")  # not there on Windows, nor is the figure
    before, block = peak_memory_mb(), torch.ones(300_000_000, dtype=torch.uint8)
    assert len(block) / 1e6 <= peak_memory_mb() <= before + len(block) / 1e6 + 50


def test_the_description_names_processor_system_and_versions():
    description = describe_machine()
    assert platform.system() in description["machine"] and " cores, " in description["machine"]
    assert description["versions"]["python"] == platform.python_version()
    assert torch.__version__.startswith(description["versions"]["torch"])
