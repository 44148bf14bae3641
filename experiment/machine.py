"""The machine: device and threads of a run, resolved once; clock, memory, description."""

import contextlib
import ctypes
import os
import platform
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from experiment.errors import SettingError
from experiment.processes import world_size

TORCH_THREADS = torch.get_num_threads()  # before any run sets their number


def resolve(settings):
    """`settings` with device and threads decided for this machine, and torch set to that many threads."""
    processes = world_size()
    if settings.processes not in (None, processes):
        n, found = settings.processes, f"found {processes}, expected {settings.processes} as in the run"
        how = f"torchrun --nproc-per-node {n} train.py --resume RUN" if n > 1 else "python train.py --resume RUN"
        raise SettingError(f"processes: {found}; resume it with {how}")
    threads = settings.threads or usable_cpus()
    settings = replace(settings, device=choose_device(settings.device), threads=threads, processes=processes)
    torch.set_num_threads(settings.threads)  # their number decides how sums are rounded
    keep_freed_memory()
    return settings


def keep_freed_memory():
    """Keep freed memory in this process: getting it back from the system costs a fifth of the training time.

    By default glibc returns large blocks to the system at every step (see mallopt(3)); other C libraries differ.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt, m_trim_threshold, m_mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3
        mallopt(m_trim_threshold, 512 * 2**20)
        mallopt(m_mmap_threshold, 32 * 2**20)


def usable_cpus():
    """CPUs for this process: what affinity, cgroup quota and OMP_NUM_THREADS allow and others leave free; at least 1.

    A thread without a free CPU holds up all the others: training is then many times slower.
    """
    from joblib import cpu_count  # imported late, because that takes a quarter of a second

    allowed = min(cpu_count(), TORCH_THREADS)
    if allowed == 1:
        return 1
    percent = psutil.cpu_percent(interval=0.2, percpu=True)
    affinity = getattr(psutil.Process(), "cpu_affinity", list)()
    if affinity and max(affinity) < len(percent):  # there is none on macOS; a container may number its CPUs anew
        percent = [percent[cpu] for cpu in affinity]
    return max(1, min(allowed, len(percent) - round(sum(percent) / 100)))


def choose_device(requested):
    """The device for "auto", "cpu", "cuda" or "mps"."""
    mps = torch.backends.mps.is_available() and world_size() == 1
    available = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    found = [name for name, is_there in available.items() if is_there]
    if requested == "auto":
        return found[0]
    if requested not in found:
        here = f"torch {torch.__version__} finds only {', '.join(found)} here"
        raise SettingError(f"--device {requested}: {here}; use --device auto for a new run or --evaluate")
    return requested


def synchronized_time(device):
    """time.perf_counter() after `device` has finished all its work."""
    if device != "cpu":
        torch.get_device_module(device).synchronize()
    return time.perf_counter()


def peak_memory_mb():
    """Peak resident memory of this process in MB; None on Windows, which does not report it."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def describe_machine():
    """{"machine": processor, cores and system; "versions": of Python and the packages that matter}."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "torchvision")}}
    return {"machine": f"{model}, {os.cpu_count()} cores, {platform.system()}", "versions": versions}
