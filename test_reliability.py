"""Faults injected into runs: kills, full disks, damaged files, random flags, many epochs.

pytest test_reliability.py                      quick forms
pytest test_reliability.py --full [-k NAME]     in full, with the figures that the README shows
"""

import contextlib
import gzip
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data
import train
from record import FORMAT, load_checkpoint, lock, write_json
from test_train import ROOT, assert_one_line, read_metrics, run

if sys.platform != "linux":
    pytest.skip("the faults are injected, and memory is measured, by means of Linux", allow_module_level=True)
import resource  # noqa: E402  not there on Windows

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["--widths", "4", "4", "4", "4", "4", "--device", "cpu", "--precision", "fp32", "--target", "none"]
RUN = ["--dataset", "digits", *SMALL, "--batch-size", "128", "--epochs", "8", "--margin", "2"]

# Runs train.py in a process that kills itself: after argv[1] seconds, or at call argv[3] of the function argv[2].
KILLER = """
import os, signal, sys, threading
import torch, train

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

seconds, name, call = float(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if name == "time":
    run = train.run
    train.run = lambda *args: (threading.Timer(seconds, kill).start(), run(*args))
else:
    original, calls = getattr(os, name), iter(range(1, 10**9))
    setattr(os, name, lambda *args: kill() if next(calls) == call else original(*args))
code = train.main(sys.argv[4:])
os._exit(code)  # the timer may still be waiting
"""


def start(*argv, **options):
    return subprocess.run([sys.executable, *map(str, argv)], cwd=ROOT, capture_output=True, text=True, **options)


def without_times(folder):
    """All that a run leaves behind, but for what the clock says: (checkpoints, metrics, log lines)."""

    def strip(metrics):
        clock = ("seconds", "train_seconds", "total_seconds", "peak_memory_mb")
        metrics = {name: value for name, value in metrics.items() if name not in clock}
        return {**metrics, "epochs": [{**epoch, "seconds": 0} for epoch in metrics["epochs"]]}

    checkpoints = {name: load_checkpoint(folder / name) for name in ("last.pt", "best.pt")}
    for checkpoint in checkpoints.values():
        checkpoint["metrics"] = strip(checkpoint["metrics"])
        del checkpoint["log_bytes"]
    clock = r"Resumed.*\n|Run: .*\n|Device: .*\n|Training time.*\n|, \d+\.\d s$"
    log = re.sub(clock, "", (folder / "log.txt").read_text(), flags=re.M)
    return checkpoints, strip(read_metrics(folder)), log


def same(a, b):
    """Whether two values of dicts, lists, tensors and plain values are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert start("train.py", *RUN, "--out", folder, env=environment).returncode == 0
    return folder


@pytest.fixture
def repeat(request):
    """repeat(quick, full): how often to inject a fault."""
    return lambda quick, full: full if request.config.getoption("--full") else quick


# Interruption and going on


def test_kill_at_any_moment_and_resume(whole_run, tmp_path, repeat, capsys):
    expected, seconds = without_times(whole_run), read_metrics(whole_run)["total_seconds"]
    draw, count, killed, inside = random.Random(0), repeat(3, 30), 0, 0
    while killed < count:
        folder = tmp_path / str(killed)
        kind = ("time", "replace", "fsync")[killed % 3]
        killer = ["-c", KILLER, draw.uniform(0, seconds), kind, draw.randint(1, 20)]
        code = start(*killer, *RUN, "--out", folder).returncode
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
        calls = iter(range(1, 1000))

        def replace_or_crash(*args):
            if next(calls) == call:
                raise Crash
            replace(*args)

        monkeypatch.setattr(os, "replace", replace_or_crash)

    replace = os.replace
    argv = ["--data-dir", mnist_dir, *SMALL, "--batch-size", 35, "--epochs", 3, "--lr", 0.1, "--out"]
    assert run(*argv, tmp_path / "whole") == 0
    expected = without_times(tmp_path / "whole")
    for call in range(1, 1000):
        crash_at(call)
        try:
            assert run(*argv, tmp_path / str(call)) == 0
            break
        except Crash:
            crash_at(None)
            resumable = call > 1  # the first write is that of the checkpoint to start from
            assert run("--resume", tmp_path / str(call)) == (0 if resumable else 2)
            assert not resumable or same(without_times(tmp_path / str(call)), expected)
    assert call > 8


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_order(whole_run, tmp_path, number, code):
    folder = tmp_path / "a run"
    command = [sys.executable, ROOT / "train.py", *RUN, "--out", folder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("Test set"):
            process.send_signal(number)
            break
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code and errors == "train.py: interrupted\n"
    assert output.endswith(f"Interrupted; to go on: python train.py --resume '{folder}'\n")
    assert len(read_metrics(folder)["epochs"]) >= 1
    torch.set_num_threads(2)
    assert run("--resume", folder) == 0
    assert torch.get_num_threads() == 1  # as before: their number decides how sums are rounded
    assert same(without_times(folder), without_times(whole_run))


def test_a_second_signal_ends_at_once(tmp_path):
    """In the middle of what the first one does."""
    slow = """
import runpy, sys, time
import record

log = record.Record.log
record.Record.log = lambda self, line: (log(self, line), line.startswith("Interrupted") and time.sleep(60))
sys.argv = sys.argv[1:]
runpy.run_path("train.py", run_name="__main__")
"""
    command = [sys.executable, "-c", slow, "train.py", *RUN, "--out", tmp_path / "run"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("Test set"):
                process.send_signal(signal.SIGINT)
            if line.startswith("Interrupted"):
                process.send_signal(signal.SIGTERM)
                break
        assert process.wait(timeout=30) == 143
        assert process.stderr.read() == "train.py: interrupted\n"
    assert len(load_checkpoint(tmp_path / "run" / "last.pt")["metrics"]["epochs"]) >= 1


def test_ctrl_c_while_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, ROOT / "train.py"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, **pipes) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130 and process.stderr.read() == "train.py: interrupted\n"


def test_a_reader_that_goes_away_does_not_end_the_run(whole_run, tmp_path):
    command = [sys.executable, ROOT / "train.py", *RUN, "--out", tmp_path / "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 0 and process.stderr.read() == ""
    assert same(without_times(tmp_path / "run"), without_times(whole_run))


def test_early_stop_and_holdout_go_on_too(tmp_path, monkeypatch):
    """Interrupted after every epoch; the target is met in the fourth of eight, the best on held-out images is that."""
    argv = [*RUN, "--holdout", 200, "--target", 80, "--out"]
    accuracies = {1: 50.0, 2: 60.0, 3: 55.0, 4: 90.0}
    record_epoch, log_epoch, fresh = train.record_epoch, train.Record.log_epoch, []

    def with_accuracies(metrics, epoch, split):
        fresh.append(epoch)
        return record_epoch(metrics, {**epoch, "holdout_accuracy": accuracies[epoch["epoch"]]}, split)

    def log_and_interrupt(record, *args):
        log_epoch(record, *args)
        if fresh:
            fresh.clear()
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "record_epoch", with_accuracies)
    assert run(*argv, tmp_path / "whole") == 0
    fresh.clear()
    monkeypatch.setattr(train.Record, "log_epoch", log_and_interrupt)
    assert run(*argv, tmp_path / "run") == 130
    assert [run("--resume", tmp_path / "run") for _ in range(4)] == [130, 130, 130, 0]
    assert same(without_times(tmp_path / "run"), without_times(tmp_path / "whole"))
    assert "test_accuracy" in read_metrics(tmp_path / "run")


def test_a_run_in_use_is_refused_until_its_process_is_dead(whole_run, tmp_path, capsys):
    folder = shutil.copytree(whole_run, tmp_path / "run")
    hold = "import sys, record; lock = record.lock(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, folder]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert run("--resume", folder) == 2
        assert_one_line(capsys.readouterr(), f"{folder} is in use by another process")
        process.kill()
        process.wait()
        assert run("--resume", folder) == 0
    with lock(folder):
        assert run("--resume", folder) == 2
    assert run("--resume", folder) == 0  # released, also within one process


def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *args: steps.append("replace") or replace(*args))
    write_json(tmp_path / "metrics.json", {})
    assert steps == [str(tmp_path / "metrics.json.tmp"), "replace", str(tmp_path)]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_an_output_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys, error):
    def refuse(*args, **options):
        raise error

    monkeypatch.setattr(train, "fit", None)  # no training before the folder is there
    monkeypatch.setattr(Path, "touch", refuse)
    assert run(*RUN, "--out", tmp_path) == 2
    assert_one_line(capsys.readouterr(), f"--out {tmp_path} cannot be written: {error.strerror}")
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert run(*RUN, "--out", tmp_path / "missing" / "parent") == 2
    assert_one_line(capsys.readouterr(), f"cannot be written: {error.strerror}")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--epochs", "9"], "--epochs 9: contradicts the run's own --epochs 8; drop it"),
        (["--recipe", "fast"], "--recipe fast: contradicts the run's own --recipe default"),
        (["--widths", "4", "4", "4", "4", "5"], "--widths 4 4 4 4 5: contradicts the run's own --widths 4 4 4 4 4"),
        (["--device", "auto"], "--device auto: contradicts the run's own --device cpu"),
        (["--separable"], "--separable: contradicts the run's own --no-separable"),
        (["--target", "99"], "--target 99.0: contradicts the run's own --target none"),
        (["--out", "elsewhere"], "--out: found with --resume or --evaluate"),
        (["--evaluate", "last.pt"], "not allowed with argument --resume"),
    ],
)
def test_flags_that_contradict_the_run(whole_run, capsys, argv, expected):
    assert run("--resume", whole_run, *argv) == 2
    assert_one_line(capsys.readouterr(), expected)


def test_flags_that_repeat_the_run_are_welcome(whole_run, tmp_path):
    assert run(*RUN, "--resume", shutil.copytree(whole_run, tmp_path / "run")) == 0


def test_resume_of_what_is_no_run_or_has_other_data(mnist_dir, tmp_path, capsys):
    (tmp_path / "file").touch()
    for name in ("none", "file", "a" * 300):
        assert run("--resume", tmp_path / name) == 2
        assert_one_line(capsys.readouterr(), f"--resume {tmp_path / name}: found no last.pt in it, expected the folder")
        assert run("--evaluate", tmp_path / name) == 2
        assert_one_line(capsys.readouterr(), str(tmp_path / name))
    argv = ["--data-dir", mnist_dir, *SMALL, "--batch-size", 70, "--epochs", 1, "--out", tmp_path / "run"]
    assert run(*argv) == 0
    moved = mnist_dir.rename(tmp_path / "moved")
    assert run("--resume", tmp_path / "run", "--data-dir", moved) == 0
    labels = moved / data.FILES[3]
    labels.write_bytes(labels.read_bytes()[:-1] + b"\0")
    capsys.readouterr()
    assert run("--resume", tmp_path / "run", "--data-dir", moved) == 2
    assert_one_line(capsys.readouterr(), "found other data (moved (MNIST format), SHA-256 ", "expected small (MNIST")


def test_evaluate_gives_the_logged_figures_and_writes_nothing(whole_run, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole_run.iterdir()}
    assert run("--evaluate", whole_run / "last.pt") == 0
    output = capsys.readouterr().out
    assert (whole_run / "log.txt").read_text().count(re.search("^Test set.*$", output, re.M)[0]) >= 1
    classes = re.findall(r"^Class (\d): (\d+)/(\d+) ", output, re.M)
    assert [label for label, *_ in classes] == list("0123456789")
    metrics = read_metrics(whole_run)
    assert sum(int(total) for *_, total in classes) == 360
    assert 100 * sum(int(hits) for _, hits, _ in classes) / 360 == metrics["final_test_accuracy"]
    assert {path: path.stat().st_mtime_ns for path in whole_run.iterdir()} == before


def test_evaluate_on_another_data_set(mnist_dir, tmp_path, capsys):
    """The run's own folder of data does not stand in the way."""
    assert run("--data-dir", mnist_dir, *SMALL, "--batch-size", 35, "--epochs", 1, "--out", tmp_path / "run") == 0
    capsys.readouterr()
    assert run("--evaluate", tmp_path / "run" / "last.pt", "--dataset", "digits") == 0
    assert "Data: digits, 360 test images" in capsys.readouterr().out


# Full disks, damaged files


def test_a_disk_that_is_full_during_a_checkpoint(whole_run, tmp_path, monkeypatch, capsys):
    """By a limit on the size of files, from the third epoch on."""
    record_epoch, limits = train.record_epoch, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(metrics, epoch, split):
        if epoch["epoch"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        return record_epoch(metrics, epoch, split)

    monkeypatch.setattr(train, "record_epoch", fill_disk)
    try:
        assert run(*RUN, "--out", tmp_path / "run") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_one_line(capsys.readouterr(), "cannot be written: File too large", f"--resume {tmp_path / 'run'}")
    assert len(load_checkpoint(tmp_path / "run" / "last.pt")["metrics"]["epochs"]) == 2
    assert not list((tmp_path / "run").glob("*.tmp"))
    monkeypatch.undo()
    assert run("--resume", tmp_path / "run") == 0
    assert same(without_times(tmp_path / "run"), without_times(whole_run))


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
    expected = data.load_dataset(data_dir=mnist_dir).sha256
    for trial in range(count):
        folder = shutil.copytree(mnist_dir, tmp_path / "damaged")
        must_load = damage_idx(folder / draw.choice(data.FILES), draw)
        argv = ["--data-dir", folder, *SMALL, "--batch-size", 70, "--epochs", 1, "--out", tmp_path / str(trial)]
        with at_most(seconds=5, more_bytes=1_000_000_000):
            code = run(*argv)
        captured = capsys.readouterr()
        if code == 0:
            assert must_load is not False
            assert read_metrics(tmp_path / str(trial))["sha256"] == expected
            loaded += 1
        else:
            assert code == 2 and must_load is not True
            assert_one_line(captured, str(folder))
            assert not (tmp_path / str(trial)).exists()
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{count} damaged IDX files: {loaded} load right, {count - loaded} end in one line and code 2")


class RunsCode:
    """Pickled into a checkpoint, this would make the folder that it names."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def damage_checkpoint(path, draw, trap):
    """Damage the checkpoint at `path` in a way that `draw` chooses; `trap` is a folder that nobody may make."""
    content = bytearray(path.read_bytes())
    checkpoint = load_checkpoint(path)
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
        name = draw.choice(sorted(checkpoint["model"]))
        if kind == "model":
            change = draw.choice([lambda t: t[..., None], lambda t: t.double(), lambda t: "weights"])
            checkpoint["model"][name] = change(checkpoint["model"][name])
        elif kind == "net":
            checkpoint["net"]["widths"] = draw.choice([[4, 4, 4, 4, 5], [4] * 4, [10**9] * 5, "wide", None, [-1] * 5])
        elif kind == "version":
            checkpoint["format"] = draw.choice([0, FORMAT - 1, str(FORMAT), None])
        elif kind == "key":
            part = draw.choice([checkpoint, checkpoint["model"]])
            del part[draw.choice(sorted(part))]
        elif kind == "part":
            part, value = draw.choice(
                [
                    ("settings", {}),
                    ("settings", {**checkpoint["settings"], "widths": [5] * 5}),
                    ("metrics", {}),
                    ("metrics", "none"),
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
    expected = load_checkpoint(whole_run / "last.pt")
    for _ in range(count):
        folder = shutil.copytree(whole_run, tmp_path / "damaged")
        damage_checkpoint(folder / "last.pt", draw, trap=tmp_path / "trap")
        with at_most(seconds=5, more_bytes=1_000_000_000):
            code = run("--resume", folder)
        captured = capsys.readouterr()
        if code == 0:
            assert same({**load_checkpoint(folder / "last.pt"), "metrics": 0}, {**expected, "metrics": 0})
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


def test_the_trap_works(tmp_path):
    """Loaded without weights_only, the damaged checkpoint does run its code."""
    torch.save(RunsCode(tmp_path / "trap"), tmp_path / "code.pt")
    torch.load(tmp_path / "code.pt", weights_only=False)
    assert (tmp_path / "trap").exists()


# Random flags, many epochs


NUMBERS = ["0", "1", "2", "-1", "0.5", "0.999", "1e-30", "1e300", "nan", "inf", "", "x", "0x10", "none", "100", "٣"]
VALUES = {
    "--epochs": ["1", "2", "0", "-1", "1.5", "x"],  # many epochs are for the soak test
    "--batch-size": ["7", "70", "71", "0", "x"],
    "--widths": ["4", "1", "0", "-3", "x"],
    "--device": ["auto", "cpu", "cuda", "mps", "tpu"],
    "--precision": ["auto", "fp32", "bf16", "fp8"],
    "--recipe": ["default", "fast", "slow"],
    "--dataset": ["mnist", "cifar"],
    "--resume": ["nowhere", "."],
    "--evaluate": ["nowhere", ".", __file__],
    "--target": [*NUMBERS, "99.4"],
    "--separable": [],
    "--antialias": ["none", "second", "both", "first"],
    **{f"--{name}": NUMBERS for name in ("margin", "dropout", "lr", "warmup", "momentum", "weight-decay", "seed")},
    **{f"--{name}": NUMBERS for name in ("rotation", "translate", "scale", "shear", "augment-until", "holdout")},
    **{f"--{name}": NUMBERS for name in ("label-smoothing", "nonsense")},
}


@st.composite
def command_lines(draw):
    argv = []
    for flag in draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=6)):
        values, usual = VALUES[flag], 5 if flag == "--widths" else 1
        count = draw(st.sampled_from([usual] * 4 + [usual + 1, max(usual - 1, 0)])) if values else 0
        argv += [flag, *(draw(st.sampled_from(values)) for _ in range(count))]
    return argv


def test_random_flags_never_give_a_traceback(mnist_dir, repeat, capsys):
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


def test_memory_and_open_files_stay_flat_over_many_epochs(tmp_path, monkeypatch, repeat, capsys):
    epochs, record_epoch, files, pages = repeat(30, 500), train.record_epoch, [], []

    def measure(*args):
        files.append(len(os.listdir("/proc/self/fd")))
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
        return record_epoch(*args)

    monkeypatch.setattr(train, "record_epoch", measure)
    argv = ["--dataset", "digits", *SMALL, "--batch-size", 1437, "--epochs", epochs, "--out", tmp_path / "run"]
    assert run(*argv) == 0
    half, growth = epochs // 2, (max(pages[epochs // 2 :]) - max(pages[: epochs // 2])) * resource.getpagesize() / 1e6
    assert len(set(files[half // 2 :])) == 1
    assert growth < 20
    metrics = read_metrics(tmp_path / "run")
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == list(range(1, epochs + 1))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert [int(n) for n in re.findall(r"^Epoch (\d+)/", log, re.M)] == list(range(1, epochs + 1))
    assert log.count("Test set: ") == epochs
    with capsys.disabled():
        print(f"\n{epochs} epochs: {files[-1]} open files, second half took {growth:.1f} MB more than the first")


def test_the_readme_shows_the_committed_figures():
    figures = re.findall(r"^(?:kill -9|\d+ [\w ]+): (.+)$", (ROOT / "results" / "reliability.txt").read_text(), re.M)
    assert len(figures) == 5
    for figure in figures:
        assert figure in (ROOT / "README.md").read_text(encoding="utf-8"), figure
