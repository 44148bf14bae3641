"""Faults injected into runs: kills, crashes, full disks, damaged files, random command lines, many epochs.

pytest tests/test_faults.py                      quick forms
pytest tests/test_faults.py --full [-k NAME]     in full, with the figures of results/reliability.txt
"""

import contextlib
import gzip
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import PYTHON, ROOT, RUN, SMALL, RunsCode, assert_one_line, read_metrics, run, same, without_times
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiment import plots
from experiment.checkpoint import FORMAT, Checkpoint
from experiment.datasets import FILES, load_mnist
from experiment.settings import Recipe, Settings, flag

if sys.platform != "linux":
    pytest.skip("the faults are injected, and memory is measured, by means of Linux", allow_module_level=True)
import resource  # noqa: E402  not there on Windows

# Interruption

# Imports train.py once and runs it in a child for each line of its input, [kind, at, arguments]. The child is killed
# after `at` seconds, or kills itself at call `at` of the function os.<kind>. Prints the exit codes.
KILLER = """
import itertools, json, os, signal, sys, threading
import matplotlib.figure, sklearn.datasets, sklearn.model_selection
import train

def run(kind, at, argv):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if kind != "time":
        original, calls = getattr(os, kind), itertools.count(1)
        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
        setattr(os, kind, lambda *args: kill() if next(calls) == at else original(*args))
    os._exit(train.main(argv))

for line in sys.stdin:
    kind, at, argv = json.loads(line)
    child = os.fork() or run(kind, at, argv)
    killer = threading.Timer(at, os.kill, (child, signal.SIGKILL))
    if kind == "time":
        killer.start()
    status = os.waitpid(child, 0)[1]
    killer.cancel()
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture
def run_and_kill():
    """run_and_kill(kind, at, *argv): exit code of train.py in a process of its own, killed as KILLER says."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run_and_kill(kind, at, *argv):
            print(json.dumps([kind, at, list(map(str, argv))]), file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield run_and_kill


def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(whole_run, run_and_kill, tmp_path, repeat, capsys):
    expected, seconds = without_times(whole_run), read_metrics(whole_run)["train_seconds"] + 1
    draw, count, killed, inside = random.Random(0), repeat(3, 30), 0, 0
    while killed < count:
        folder = tmp_path / str(killed)
        kind = ("time", "replace", "fsync")[killed % 3]
        at = draw.uniform(0, seconds) if kind == "time" else draw.randint(1, 20)
        code = run_and_kill(kind, at, *RUN, "--out", folder)
        if code == 0:  # it was faster than its killer
            shutil.rmtree(folder)
            continue
        assert code == -signal.SIGKILL
        killed += 1
        inside += bool(list(folder.glob("*.tmp")))
        if (folder / "last.pt").exists():
            assert run("--resume", folder) == 0
        else:  # killed before it began
            shutil.rmtree(folder, ignore_errors=True)
            assert run(*RUN, "--out", folder) == 0
        assert same(without_times(folder), expected), folder
    assert inside > 0
    with capsys.disabled():
        print(f"\nkill -9: {count} of {count} runs end bit-identical, {inside} of them were killed inside a write")


def test_a_crash_before_any_write_takes_its_place(mnist_dir, tmp_path, monkeypatch):
    """Every replacement of a file in a run, one after the other."""

    class Crash(BaseException):
        pass

    def crash_at(call):
        calls = itertools.count(1)

        def replace_or_crash(*args):
            if next(calls) == call:
                raise Crash
            replace(*args)

        monkeypatch.setattr(os, "replace", replace_or_crash)

    replace = os.replace
    monkeypatch.setattr(plots, "png", lambda *values: b"")  # written, but not drawn each time
    argv = ["--data-dir", mnist_dir, *SMALL, "--batch-size", 35, "--epochs", 2, "--lr", 0.1, "--out"]
    assert run(*argv, tmp_path / "whole", plots=True) == 0
    expected = without_times(tmp_path / "whole")
    for call in itertools.count(1):
        folder = tmp_path / str(call)
        crash_at(call)
        try:
            assert run(*argv, folder, plots=True) == 0
            break
        except Crash:
            crash_at(None)
            resumable = call > 1  # the first write is that of the checkpoint to start from
            assert run("--resume", folder) == (0 if resumable else 2)
            assert not resumable or same(without_times(folder), expected)
    assert call > 12


# Full disks, damaged files


def test_a_disk_that_is_full_during_a_checkpoint(whole_run, tmp_path, capsys):
    """By a limit on the size of files, from the second epoch on."""
    limits, folder = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "run"

    def fill_disk(history):
        if len(history.epochs) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))

    try:
        assert run(*RUN, "--out", folder, on_epoch=fill_disk) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    captured = capsys.readouterr()
    assert_one_line(captured, "cannot be written: File too large")
    assert f"{PYTHON} train.py --resume {folder}" in captured.out + captured.err
    assert len(Checkpoint.load(folder / "last.pt").history.epochs) == 2
    assert not list(folder.glob("*.tmp"))
    assert run("--resume", folder) == 0
    assert same(without_times(folder), without_times(whole_run))


@contextlib.contextmanager
def at_most(seconds, more_bytes):
    """Ends what takes longer; refuses the process more memory than it has, but for `more_bytes`."""

    class TooLong(BaseException):
        """No error that the code under test may catch."""

    def too_long(*_):
        raise TooLong(f"took longer than {seconds} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def damage_idx(path, draw):
    """Damage the IDX file at `path` in a way that `draw` chooses; returns whether it must still load."""
    content = path.read_bytes()
    kind = draw.choice(["cut", "header", "header", "claim", "gzip", "empty", "directory", "secret", "loop", "longer"])
    path.unlink()
    if kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "header":
        bit = draw.randrange(8 * (16 if "images" in path.name else 8))
        flipped = content[bit // 8] ^ 1 << bit % 8
        path.write_bytes(content[: bit // 8] + bytes([flipped]) + content[bit // 8 + 1 :])
    elif kind == "claim":  # 128 million images are 100 GB
        path.write_bytes(content[:4] + draw.choice([b"\x07\xa1\x20\0", b"\xff\xff\xff\xff"]) + content[8:])
    elif kind == "gzip":
        packed = bytearray(gzip.compress(content))
        packed[draw.randrange(len(packed))] ^= 1 << draw.randrange(8)
        Path(f"{path}.gz").write_bytes(draw.choice([packed, packed[: draw.randrange(len(packed))], content]))
        return None  # the time stamp in gzip's header, for one, may be anything
    elif kind == "empty":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "secret":
        path.write_bytes(content)
        path.chmod(0)
        return os.access(path, os.R_OK)  # root may read it
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.write_bytes(content + draw.randbytes(draw.randint(1, 99)))
    return False


def test_damaged_idx_files_load_right_or_end_in_one_line(mnist_dir, tmp_path, repeat, capsys):
    draw, count, loaded = random.Random(0), repeat(60, 1000), 0
    expected = load_mnist(mnist_dir).sha256
    for trial in range(count):
        folder, out = shutil.copytree(mnist_dir, tmp_path / "damaged"), tmp_path / str(trial)
        must_load = damage_idx(folder / draw.choice(FILES), draw)
        with at_most(seconds=repeat(60, 5), more_bytes=1_000_000_000):
            code = run("--data-dir", folder, *SMALL, "--batch-size", 70, "--epochs", 1, "--out", out)
        captured = capsys.readouterr()
        if code == 0:
            assert must_load is not False
            assert read_metrics(out)["sha256"] == expected
            loaded += 1
        else:
            assert code == 2 and must_load is not True
            assert_one_line(captured, str(folder))
            assert not out.exists()
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{count} damaged IDX files: {loaded} load right, {count - loaded} end in one line and code 2")


def damage_checkpoint(path, draw, trap):
    """Damage the checkpoint at `path` in a way that `draw` chooses; `trap` is a folder that nobody may make."""
    content, checkpoint = bytearray(path.read_bytes()), torch.load(path, weights_only=True)
    kind = draw.choice(
        ["cut", "bits", "bits", "zeros", "model", "net", "version", "key", "part", "code", "other", "junk"]
    )
    if kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "bits":
        for _ in range(draw.choice([1, 1, 10])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    elif kind == "zeros":  # a block that never reached the disk
        start = draw.randrange(len(content))
        end = min(start + 4096, len(content))
        path.write_bytes(content[:start] + bytes(end - start) + content[end:])
    elif kind == "junk":
        path.write_bytes(draw.randbytes(draw.randrange(5000)))
    else:
        recipe, history = checkpoint["settings"]["recipe"], checkpoint["history"]
        if kind == "model":
            name = draw.choice(sorted(checkpoint["model"]))
            change = draw.choice([lambda t: t[..., None], lambda t: t.double(), lambda t: "weights"])
            checkpoint["model"][name] = change(checkpoint["model"][name])
        elif kind == "net":
            widths = [(4, 4, 4, 4, 5), (4,) * 4, (10**9,) * 5, (-1,) * 5, (4096,) * 5, [4] * 5, "wide", None]
            recipe["widths"] = draw.choice(widths)
        elif kind == "version":
            checkpoint["format"] = draw.choice([0, FORMAT - 1, str(FORMAT), None])
        elif kind == "key":
            part = draw.choice([checkpoint, checkpoint["model"], history, history["epochs"][3]])
            del part[draw.choice(sorted(part))]
        elif kind == "part":
            part, value = draw.choice(
                [
                    ("settings", {}),
                    ("settings", {**checkpoint["settings"], "recipe": {**recipe, "separable": True}}),
                    ("settings", {**checkpoint["settings"], "recipe": None}),
                    ("settings", {**checkpoint["settings"], "threads": "two"}),
                    ("history", {}),
                    ("history", "none"),
                    ("history", {**history, "epochs": [1]}),
                    ("log_bytes", "none"),
                    ("optimizer", {}),
                    ("optimizer", {"state": {}, "param_groups": []}),
                    ("scheduler", 7),
                    ("random", {"cpu": torch.zeros(3)}),
                    ("random", {"tpu": torch.zeros(3)}),
                ]
            )
            checkpoint[part] = value
        elif kind == "code":
            checkpoint[draw.choice(sorted(checkpoint))] = RunsCode(trap)
        torch.save(checkpoint if kind != "other" else draw.choice([[1], 7, checkpoint["model"], {}]), path)


def test_damaged_checkpoints_load_right_or_end_in_one_line(whole_run, tmp_path, repeat, capsys):
    draw, count, loaded = random.Random(0), repeat(60, 500), 0
    expected = without_times(whole_run)
    for _ in range(count):
        folder = shutil.copytree(whole_run, tmp_path / "damaged")
        damage_checkpoint(folder / "last.pt", draw, trap=tmp_path / "trap")
        with at_most(seconds=repeat(60, 5), more_bytes=1_000_000_000):
            code = run("--resume", folder)
        captured = capsys.readouterr()
        if code == 0:
            assert same(without_times(folder), expected)
            loaded += 1
        else:
            assert code == 2
            assert_one_line(captured, "last.pt")
            assert run("--evaluate", folder / "last.pt") in (0, 2)  # it needs no optimizer
            assert capsys.readouterr().err.count("\n") <= 1
        assert not (tmp_path / "trap").exists()
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{count} damaged checkpoints: {loaded} load right, {count - loaded} end in one line, no code was run")


# Random command lines, many epochs

NUMBERS = ["0", "1", "2", "-1", "0.5", "0.999", "1e-30", "1e300", "nan", "inf", "", "x", "0x10", "none", "100", "٣"]
LIMITS = {flag(f.name): f.metadata["limits"] for cls in (Recipe, Settings) for f in fields(cls) if f.metadata}
VALUES = {name: [*limits.choices, "wrong"] if limits.choices else NUMBERS for name, limits in LIMITS.items()}
VALUES.update({name: [] for name, limits in LIMITS.items() if limits.kind is bool})
VALUES.update(
    {
        "--epochs": ["1", "2", "0", "-1", "1.5", "x"],  # many epochs are for the test after this one
        "--batch-size": ["7", "70", "71", "0", "x"],
        "--widths": ["4", "1", "0", "-3", "x"],
        "--threads": ["1", "2", "0", "x"],
        "--dataset": ["mnist", "digits", "wrong"],
        "--data-dir": ["nowhere", "", __file__],
        "--recipe": ["default", "fast", "wrong"],
        "--target": [*NUMBERS, "99.4"],
        "--resume": ["nowhere", "."],
        "--evaluate": ["nowhere", ".", __file__],
        "--nonsense": NUMBERS,
    }
)


@st.composite
def command_lines(draw):
    argv = []
    for name in draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=6)):
        values, usual = VALUES[name], 5 if name == "--widths" else 1
        count = draw(st.sampled_from([usual] * 4 + [usual + 1, max(usual - 1, 0)])) if values else 0
        argv += [name, *(draw(st.sampled_from(values)) for _ in range(count))]
    return argv


def test_random_command_lines_never_give_a_traceback(mnist_dir, repeat, capsys):
    codes = []
    options = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}

    @settings(max_examples=repeat(40, 1000), **options)
    @given(command_lines())
    def check(argv):
        with tempfile.TemporaryDirectory() as folder:
            argv = ["--data-dir", mnist_dir, "--batch-size", "35", "--epochs", "1", *argv]
            if "--resume" not in argv and "--evaluate" not in argv:
                argv += ["--out", Path(folder, "run")]
            code = run(*argv)
        captured = capsys.readouterr()
        assert code in (0, 2), argv
        if code == 2:
            assert_one_line(captured)
        codes.append(code)

    check()
    assert 0 in codes and 2 in codes
    with capsys.disabled():
        print(f"\n{len(codes)} random command lines: {codes.count(0)} trained, {codes.count(2)} ended in one line")


def test_memory_and_open_files_stay_flat_over_many_epochs(mnist_dir, tmp_path, repeat, capsys):
    epochs, files, pages = repeat(60, 500), [], []

    def measure(history):
        files.append(len(os.listdir("/proc/self/fd")))
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]))

    argv = ["--data-dir", mnist_dir, *SMALL, "--batch-size", 70, "--lr", 0.1, "--epochs", epochs]
    assert run(*argv, "--out", tmp_path / "run", on_epoch=measure) == 0
    half = epochs // 2
    growth = (max(pages[half:]) - max(pages[:half])) * resource.getpagesize() / 1e6
    assert len(set(files[half // 2 :])) == 1
    assert growth < 20
    numbers, log = list(range(1, epochs + 1)), (tmp_path / "run" / "log.txt").read_text()
    assert [epoch["epoch"] for epoch in read_metrics(tmp_path / "run")["epochs"]] == numbers
    assert [int(number) for number in re.findall(r"^Epoch (\d+)/", log, re.M)] == numbers
    assert log.count("Test set: ") == epochs
    with capsys.disabled():
        print(f"\n{epochs} epochs: {files[-1]} open files, second half took {growth:.1f} MB more than the first")
