"""Faults injected into runs: kills, crashes, full disks, damaged files, random command lines, many epochs.

pytest tests/test_faults.py                      quick forms
pytest tests/test_faults.py --full [-k NAME]     in full, with the figures of results/reliability.txt
"""

import contextlib
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import PYTHON, ROOT, RUN, SMALL, RunsCode, assert_one_line, read_metrics, run, same, without_times

from experiment.checkpoint import FORMAT, Checkpoint
from experiment.datasets import FILES, load_mnist
from experiment.settings import Recipe, Settings, flag, setting_fields

if sys.platform != "linux":
    pytest.skip("the faults are injected, and memory is measured, by means of Linux", allow_module_level=True)
import resource  # noqa: E402  not there on Windows

# Imports train.py once and runs it in a child for each line of its input, [kind, at, arguments]. The child is killed
# after `at` seconds, or kills itself at call `at` of the function os.<kind>; or it has no standard streams, and gets
# SIGTERM after `at` epochs. Prints the exit codes.
KILLER = """
import itertools, json, os, signal, sys, threading
import matplotlib.figure, sklearn.datasets, sklearn.model_selection
import train

train.TrainLoader.FEWEST = 0  # as conftest.py has it

def run(kind, at, argv):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if kind == "streams":
        sys.stdin = sys.stdout = sys.stderr = os.closerange(0, 3)  # None
    elif kind != "time":
        original, calls = getattr(os, kind), itertools.count(1)
        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
        setattr(os, kind, lambda *args: kill() if next(calls) == at else original(*args))
    end = lambda history: kind == "streams" and len(history.epochs) == at and os.kill(os.getpid(), signal.SIGTERM)
    os._exit(train.main(argv, on_epoch=end))

for kind, at, argv in map(json.loads, sys.stdin):
    child = os.fork() or run(kind, at, argv)
    killer = threading.Timer(at if kind == "time" else 600, os.kill, (child, signal.SIGKILL))
    killer.start()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    killer.cancel()
"""


@pytest.fixture(scope="module")
def end_by():
    """end_by(kind, at, *argv): the exit code of train.py in a child of KILLER."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", KILLER], cwd=ROOT, **pipes) as killer:

        def end_by(kind, at, *argv):
            print(json.dumps([kind, at, [*map(str, argv)]]), file=killer.stdin, flush=True)
            return int(killer.stdout.readline())

        yield end_by


def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(end_by, whole_run, tmp_path, repeat, capsys):
    expected, seconds = without_times(whole_run), read_metrics(whole_run)["train_seconds"] + 1
    draw, count, killed, inside = random.Random(0), repeat(2, 30), 0, 0
    while killed < count:
        folder, kind = tmp_path / str(killed), ("replace", "time", "fsync")[killed % 3]
        code = end_by(kind, draw.uniform(0, seconds) if kind == "time" else draw.randint(1, 20), *RUN, "--out", folder)
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


def test_a_run_without_standard_streams_is_ended_by_a_signal_too(end_by, whole_run, tmp_path):
    """As `>&-` starts it."""
    assert end_by("streams", 1, *RUN, "--no-plots", "--out", tmp_path / "run") == 128 + signal.SIGTERM
    assert len(read_metrics(tmp_path / "run")["epochs"]) == 1 and run("--resume", tmp_path / "run") == 0
    assert same(without_times(tmp_path / "run"), without_times(whole_run))


def test_a_kill_before_any_write_takes_its_place(end_by, mnist_dir, tmp_path):
    """Every replacement of a file in a run, one after the other."""
    argv, codes = ["--data-dir", mnist_dir, *SMALL, "--batch-size", 35, "--epochs", 2, "--lr", 0.1, "--out"], []
    assert run(*argv, tmp_path / "whole") == 0
    while 0 not in codes:
        folder = tmp_path / str(len(codes))
        codes.append(end_by("replace", len(codes) + 1, *argv, folder))
        if len(codes) == 1:  # the first write is that of the checkpoint to start from
            assert run("--resume", folder) == 2
            continue
        logged, saved = (folder / "log.txt").read_text(), Checkpoint.load(folder / "last.pt").history.epochs
        assert logged.count("Epoch ") <= len(saved) and run("--resume", folder) == 0
        assert same(without_times(folder), without_times(tmp_path / "whole"))
    assert len(codes) > 12 and set(codes[:-1]) == {-signal.SIGKILL}


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
    assert len(Checkpoint.load(folder / "last.pt").history.epochs) == 2 and not list(folder.glob("*.tmp"))
    assert run("--resume", folder) == 0 and same(without_times(folder), without_times(whole_run))


@contextlib.contextmanager
def at_most(seconds, more_bytes):
    """Ends what takes longer; refuses the process more memory than it has, but for `more_bytes`."""

    def too_long(*_):
        raise SystemExit(f"took longer than {seconds} s")  # an error that the code under test may not catch

    pages, handler = int(Path("/proc/self/statm").read_text().split()[0]), signal.signal(signal.SIGALRM, too_long)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def flip(content, draw, end=None):
    """`content` with one bit flipped, in one of the first `end` bytes."""
    at, bit = draw.randrange(end or len(content)), draw.randrange(8)
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def damage_idx(path, draw):
    """Damage the IDX file at `path` in a way that `draw` chooses; returns whether it must still load."""
    content, packed = path.read_bytes(), flip(gzip.compress(path.read_bytes()), draw)
    contents = {
        "cut": content[: draw.randrange(len(content))],
        "header": flip(content, draw, 16 if "images" in path.name else 8),
        "claim": content[:4] + draw.choice([b"\x07\xa1\x20\0", b"\xff\xff\xff\xff"]) + content[8:],  # 100 GB of images
        "empty": b"",
        "longer": content + draw.randbytes(draw.randint(1, 99)),
        "secret": content,
        "gzip": draw.choice([packed, packed[: draw.randrange(len(packed))], content]),
    }
    kind = draw.choice([*contents, "header", "directory", "loop"])
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "gzip":
        Path(f"{path}.gz").write_bytes(contents[kind])
        return None  # the time stamp in its header, for one, may be anything
    else:
        path.write_bytes(contents[kind])
        path.chmod(0 if kind == "secret" else 0o600)
    return kind == "secret" and os.access(path, os.R_OK)  # root may read it


def damage_checkpoint(path, draw, trap):
    """Damage the checkpoint at `path` in a way that `draw` chooses; `trap` is a folder that nobody may make."""
    content, checkpoint = path.read_bytes(), torch.load(path, weights_only=True)
    at, settings, history = draw.randrange(len(content)), checkpoint["settings"], checkpoint["history"]
    damaged = {
        "cut": content[:at],
        "bit": flip(content, draw),
        "bits": flip(flip(flip(content, draw), draw), draw),
        "zeros": (content[:at] + bytes(4096) + content[at + 4096 :])[: len(content)],  # never reached the disk
        "junk": draw.randbytes(draw.randrange(5000)),
    }
    widths = [(4, 4, 4, 4, 5), (4,) * 4, (10**9,) * 5, (-1,) * 5, (4096,) * 5, [4] * 5, "wide", None]
    net = {**settings, "recipe": {**settings["recipe"], "widths": draw.choice(widths)}}
    parts = {
        "format": [0, FORMAT - 1, str(FORMAT), None],
        "settings": [{}, net, net, {**settings, "recipe": None}, {**settings, "threads": "two"}],
        "history": [{}, "none", {**history, "epochs": [1]}],
        "optimizer": [{}, {"state": {}, "param_groups": []}],
        "random": [{"cpu": torch.zeros(3)}, {"tpu": torch.zeros(3)}],
        **{"log_bytes": ["none"], "scheduler": [7], "hardness": [None, torch.zeros(3)]},
    }
    kind = draw.choice([*damaged, *parts, "model", "key", "code", "other"])
    if kind in damaged:
        path.write_bytes(damaged[kind])
        return
    if kind in parts:
        checkpoint[kind] = draw.choice(parts[kind])
    elif kind == "model":
        name = draw.choice(sorted(checkpoint["model"]))
        weights = checkpoint["model"][name]
        checkpoint["model"][name] = draw.choice([weights[..., None], weights.double(), "weights"])
    elif kind == "key":
        part = draw.choice([checkpoint, checkpoint["model"], history, history["epochs"][3]])
        del part[draw.choice(sorted(part))]
    elif kind == "code":
        checkpoint[draw.choice(sorted(checkpoint))] = RunsCode(trap)
    torch.save(checkpoint if kind != "other" else draw.choice([[1], 7, checkpoint["model"], {}]), path)


@pytest.mark.parametrize("what", ["IDX files", "checkpoints"])
def test_damaged_files_load_right_or_end_in_one_line(what, whole_run, mnist_dir, tmp_path, repeat, capsys):
    draw, loaded, trap, is_data = random.Random(0), 0, tmp_path / "trap", what == "IDX files"
    expected, sha256 = without_times(whole_run), load_mnist(mnist_dir).sha256
    count = repeat(25, 1000 if is_data else 500)
    for trial in range(count):
        folder = shutil.copytree(mnist_dir if is_data else whole_run, tmp_path / "damaged")
        out = tmp_path / str(trial) if is_data else folder
        if is_data:
            argv = ["--data-dir", folder, *SMALL, "--batch-size", 70, "--epochs", 1, "--out", out]
            must_load = damage_idx(folder / draw.choice(FILES), draw)
        else:
            argv = ["--resume", folder]
            os.truncate(folder / "log.txt", (folder / "log.txt").stat().st_size - 70)  # of a run that is not finished
            must_load = damage_checkpoint(folder / "last.pt", draw, trap)
        with at_most(seconds=repeat(60, 5), more_bytes=1_000_000_000):
            code = run(*argv)
        captured = capsys.readouterr()
        if code == 0:
            assert must_load is not False
            assert read_metrics(out)["sha256"] == sha256 if is_data else same(without_times(out), expected)
            loaded += 1
        else:
            assert code == 2 and must_load is not True and out.exists() != is_data
            assert_one_line(captured, str(folder if is_data else "last.pt"))
            assert is_data or run("--evaluate", folder / "last.pt") in (0, 2)  # which needs no optimizer
            assert capsys.readouterr().err.count("\n") <= 1
        assert not trap.exists()
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{count} damaged {what}: {loaded} load right, {count - loaded} end in one line, no code was run")


NUMBERS = ["0", "1", "2", "-1", "0.5", "0.999", "1e-30", "1e300", "nan", "inf", "", "x", "0x10", "none", "100", "٣"]
VALUES = {"--nonsense": NUMBERS, "--recipe": ["default", "fast", "wrong"]}
for f in (*setting_fields(Recipe), *setting_fields(Settings)):
    choices = {bool: [], str: ["nowhere", "", __file__]}.get(f.metadata["allowed"], NUMBERS)
    VALUES[flag(f.name)] = [*f.metadata["allowed"], "wrong"] if isinstance(f.metadata["allowed"], tuple) else choices
VALUES |= {"--epochs": ["1", "2", "0", "-1", "1.5", "x"], "--batch-size": ["7", "70", "71", "0", "x"]}  # few, and small
VALUES |= {"--widths": ["4", "1", "0", "-3", "x"], "--threads": ["1", "2", "0", "x"]}
VALUES |= {"--resume": ["nowhere", "."], "--evaluate": ["nowhere", ".", __file__]}


def test_random_command_lines_never_give_a_traceback(mnist_dir, tmp_path, repeat, capsys):
    draw, codes = random.Random(0), []
    for trial in range(repeat(15, 1000)):
        argv = ["--data-dir", mnist_dir, "--batch-size", "35", "--epochs", "1"]
        for name in draw.sample(sorted(VALUES), draw.randrange(7)):
            usual = 5 if name == "--widths" else bool(VALUES[name])
            counts = [usual] * 4 + [usual + 1, usual - 1] if VALUES[name] else [0]
            argv += [name, *draw.choices(VALUES[name], k=draw.choice(counts))]
        if "--resume" not in argv and "--evaluate" not in argv:
            argv += ["--out", tmp_path / str(trial)]
        codes.append(run(*argv))
        captured = capsys.readouterr()
        assert codes[-1] in (0, 2), argv
        if codes[-1] == 2:
            assert_one_line(captured)
    assert 0 in codes and 2 in codes
    with capsys.disabled():
        print(f"\n{len(codes)} random command lines: {codes.count(0)} trained, {codes.count(2)} ended in one line")


def test_memory_and_open_files_stay_flat_over_many_epochs(mnist_dir, tmp_path, repeat, capsys):
    epochs, files, pages = repeat(40, 500), [], []

    def measure(history):
        files.append(len(os.listdir("/proc/self/fd")))
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]))

    argv = ["--data-dir", mnist_dir, *SMALL, "--batch-size", 70, "--lr", 0.1, "--epochs", epochs]
    assert run(*argv, "--out", tmp_path / "run", on_epoch=measure) == 0
    half = epochs // 2
    growth = (max(pages[half:]) - max(pages[:half])) * resource.getpagesize() / 1e6
    assert len(set(files[half // 2 :])) == 1 and growth < 20
    logged = re.findall(r"^Epoch (\d+)/.*\nTest set: ", (tmp_path / "run" / "log.txt").read_text(), re.M)
    numbers = [epoch["epoch"] for epoch in read_metrics(tmp_path / "run")["epochs"]]
    assert numbers == [int(number) for number in logged] == list(range(1, epochs + 1))
    with capsys.disabled():
        print(f"\n{epochs} epochs: {files[-1]} open files, second half took {growth:.1f} MB more than the first")
