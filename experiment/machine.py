"""The machine: device and threads of a run, decided once; clock and memory."""

import contextlib
import ctypes
import sys
import time
from dataclasses import replace

import joblib
import psutil
import torch

from experiment.errors import ExperimentError, SettingError

TORCH_THREADS = torch.get_num_threads()  # before any run sets their number


def set_up(settings):
    """`settings` with device and threads decided for this machine; torch is set to that many threads."""
    settings = replace(settings, device=choose_device(settings.device), threads=settings.threads or usable_cpus())
    torch.set_num_threads(settings.threads)  # their number decides how sums are rounded
    keep_freed_memory()
    return settings


def keep_freed_memory():
    """Keep freed memory, which glibc returns to the system at every step, for a fifth of the time: see mallopt(3)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt, m_trim_threshold, m_mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3
        mallopt(m_trim_threshold, 512 * 2**20)
        mallopt(m_mmap_threshold, 32 * 2**20)


def allowed_cpus():
    """CPUs that affinity, cgroup quota and OMP_NUM_THREADS allow this process."""
    return min(joblib.cpu_count(), TORCH_THREADS)


def usable_cpus():
    """The allowed CPUs less those that other processes keep busy, at least 1."""
    allowed = allowed_cpus()
    if allowed == 1:
        return 1
    try:
        percent = psutil.cpu_percent(interval=0.1, percpu=True)
        affinity = getattr(psutil.Process(), "cpu_affinity", list)()
    except (OSError, psutil.Error):  # a hardened container hides them
        return allowed
    if affinity and max(affinity) < len(percent):  # there is none on macOS; a container may number its CPUs anew
        percent = [percent[cpu] for cpu in affinity]
    return max(1, min(allowed, len(percent) - round(sum(percent) / 100)))


def without_compiler(optimizer):
    """The class `optimizer` of torch.optim without its decorators that import torch's compiler, which takes a second.

    functools.wraps keeps the plain methods as `__wrapped__`; where torch has no such decorator, nothing changes.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    plain = {name: getattr(getattr(optimizer, name), "__wrapped__", getattr(optimizer, name)) for name in names}
    return type(optimizer.__name__, (optimizer,), {**plain, "step": torch.no_grad()(plain["step"])})


def choose_device(requested):
    """The device for "auto", "cpu", "cuda" or "mps"."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
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


@contextlib.contextmanager
def memory_errors():
    """Turn all errors that mean full memory into one; torch has a type for them on CUDA only, else a message."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = "out of memory" in str(error) or "DefaultCPUAllocator" in str(error)
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not text:
            raise
        raise ExperimentError("out of memory; try a smaller --batch-size or smaller --widths") from error


def peak_memory_mb():
    """Peak resident memory of this process in MB; None on Windows, which does not report it."""
    with contextlib.suppress(OSError, IndexError), open("/proc/self/status") as status:
        return round(int(status.read().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6)
    with contextlib.suppress(ImportError):
        import resource  # on Linux it would count the process that started this one too

        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kB elsewhere
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)
