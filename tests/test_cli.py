"""What every command line shares: signals, printing, and one line and an exit code for each error."""

import dataclasses
import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, RUN, assert_one_line, read_metrics, run, same, without_times

import benchmark
import predict
from experiment import errors
from experiment.cli import Parser, command, echo, path
from study import export, report, train_published
from study.published import PUBLISHED

signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send these signals to one process")


def start(*argv, **options):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *map(str, argv)], text=True, cwd=ROOT, **pipes, **options)


# Signals


@signals
@pytest.mark.parametrize(
    ("number", "code", "reader"), [("SIGINT", 130, True), ("SIGTERM", 143, False), ("SIGHUP", 129, True)]
)
def test_a_signal_ends_a_run_in_order_and_it_resumes_to_the_same_bits(whole_run, tmp_path, number, code, reader):
    """The second time the reader of its output has gone away before."""
    folder = tmp_path / "a run"
    with start("train.py", *RUN, "--out", folder) as process:
        while not process.stdout.readline().startswith("Test set"):
            assert process.poll() is None
        if not reader:
            process.stdout.close()
        process.send_signal(getattr(signal, number))
        output = process.stdout.read() if reader else ""
        assert process.stderr.read() == "train.py: interrupted\n"
        assert process.wait(timeout=60) == code
    log, hint = (
        (folder / "log.txt").read_text(),
        f"Interrupted; to resume: {sys.executable} train.py --resume '{folder}'\n",
    )
    assert log.endswith(hint) and (output.endswith(hint) or not reader)
    assert 1 <= len(read_metrics(folder)["epochs"]) <= 8
    assert run("--resume", folder) == 0
    assert same(without_times(folder), without_times(whole_run))


@signals
@pytest.mark.parametrize(("first", "second", "code"), [("SIGINT", "SIGTERM", 143), ("SIGTERM", "SIGINT", 130)])
def test_a_second_signal_ends_at_once_in_the_middle_of_what_the_first_one_does(first, second, code):
    script = f"""
import signal
from experiment.cli import command, exit_at_once, handle_signals
handle_signals(exit_at_once)

@command
def main(argv=None):
    try:
        signal.raise_signal(signal.{first})
    except KeyboardInterrupt:
        print("shutting down", flush=True)
        signal.raise_signal(signal.{second})
        print("done", flush=True)

main()
"""
    with start("-c", script) as process:
        assert process.communicate(timeout=60) == ("shutting down\n", "-c: interrupted\n")
    assert process.returncode == code


@signals
@pytest.mark.parametrize(
    ("ending", "line", "code"),
    [("raise FileError('wrong')", "<string>: error: wrong\n", -signal.SIGTERM), ("pass", "-c: interrupted\n", 143)],
)
def test_a_signal_while_python_shuts_down_adds_no_second_line(ending, line, code):
    script = f"""
import signal
from experiment.cli import command, exit_at_once, handle_signals
from experiment.errors import FileError
handle_signals(exit_at_once)

@command
def main(argv=None):
    {ending}

main()
signal.raise_signal(signal.SIGTERM)
"""
    with start("-c", script) as process:
        assert process.communicate(timeout=60) == ("", line)
    assert process.returncode == code


COMMANDS = {
    "train.py": ["train.py"],
    "benchmark.py": ["benchmark.py"],
    "predict.py": ["predict.py"],
    "report.py": ["-m", "study.report"],
    "train_published.py": ["-m", "study.train_published"],
    "export.py": ["export.py"],
}


@signals
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_while_torch_is_imported(tmp_path, name, number, code):
    """By then the environment says how long OpenMP's threads spin."""
    (tmp_path / "torch.py").write_text(
        "import os\nprint(os.environ['GOMP_SPINCOUNT'], flush=True)\nwhile True:\n    pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "GOMP_SPINCOUNT": "7"}
    if name == "train.py":
        del environment["GOMP_SPINCOUNT"]
    with start(*COMMANDS[name], env=environment) as process:
        assert process.stdout.readline() == ("30000\n" if name == "train.py" else "7\n")
        process.send_signal(getattr(signal, number))
        assert process.wait(timeout=60) == code and process.stderr.read() == f"{name}: interrupted\n"


@signals
def test_a_signal_that_is_ignored_stays_so():
    """As nohup ignores SIGHUP."""
    script = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from experiment.cli import exit_at_once, handle_signals
handle_signals(exit_at_once)
signal.raise_signal(signal.SIGHUP)
print("goes on")
"""
    with start("-c", script) as process:
        assert process.communicate(timeout=60) == ("goes on\n", "")


@signals
def test_a_script_that_ends_in_an_interactive_python_leaves_its_handlers_as_they_were():
    """As `python -i` and a notebook's %run do."""
    after = "import signal; print([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])"
    script = f"""
import runpy, sys
sys.ps1, sys.argv = "", ["train.py", "--help"]
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit:
    {after}
"""
    with start("-c", script) as process, start("-c", after) as untouched:
        assert process.communicate(timeout=60)[0].endswith(untouched.communicate(timeout=60)[0])


def test_a_program_that_imports_train_keeps_its_own_handlers():
    def own(number, frame):
        pass

    before = signal.signal(signal.SIGINT, own)
    try:
        assert run("--epochs", 0) == 2
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


# Printing


@signals
@pytest.mark.parametrize("reader", ["pipe", "/dev/full"])
def test_without_a_reader_nothing_is_printed_and_nothing_fails(reader):
    """A pipe that is closed, or a file on a full disk."""
    if reader == "pipe":
        read_end, target = os.pipe()
        os.close(read_end)
    elif os.path.exists(reader):
        target = reader
    else:
        pytest.skip("there is no /dev/full here")
    with open(target, "w") as stream:
        for line in ("first", "second"):
            echo(line, stream)


def test_a_run_goes_on_when_its_reader_has_gone_away(whole_run, tmp_path, monkeypatch):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run(*RUN, "--out", tmp_path / "run") == 0
    assert same(without_times(tmp_path / "run"), without_times(whole_run))


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", "gr\\xfc\\xdfe \\u2713 \\udcff"), ("latin-1", "grüße \\u2713 \\udcff"), ("utf-8", "grüße ✓ \\udcff")],
)
def test_what_a_stream_cannot_show_is_escaped(encoding, expected):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    echo("grüße ✓ \udcff", stream)
    assert stream.buffer.getvalue().decode(encoding).strip() == expected


class Notebook:
    """A stream with nothing but what Python's print needs."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {
    "missing": lambda: None,
    "closed": closed,
    "notebook": Notebook,
    "cp1252": lambda: io.TextIOWrapper(io.BytesIO(), encoding="cp1252"),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", STREAMS)
def test_whatever_the_streams_are_the_results_are_written(mnist_dir, whole_run, tmp_path, monkeypatch, name, kind):
    out, data = tmp_path / "out ≥", ["--data-dir", str(mnist_dir)]
    epoch = {"test_accuracy": 99.0, "seconds": 1.0, "images": 1}
    fake = {"seed": 0, "epochs": [epoch], "final_test_accuracy": 99.0, "train_seconds": 1.0}
    fake |= {"params": 10, "peak_memory_mb": None, "train_images": 1}

    def train_once(result, *_):
        return fake | {key: result[key] for key in ("sha256", "threads", "precision")}, 1.0

    monkeypatch.setitem(PUBLISHED, "net-9720", dataclasses.replace(PUBLISHED["net-9720"], epochs=1))
    monkeypatch.setattr(sys, "stdout", STREAMS[kind]())
    monkeypatch.setattr(sys, "stderr", STREAMS[kind]())
    if name == "train.py":
        assert run(*RUN, "--epochs", 1, "--out", out) == 0 and read_metrics(out)
        assert run(*RUN, "--out", out) == 2
        assert run("--help") == 0
    elif name == "benchmark.py":
        argv = ["default", "--runs", "1", "--out", str(out), *data]
        assert benchmark.main(argv, train=train_once) == 0 and json.loads(out.read_text())
    elif name == "predict.py":
        argv = [str(ROOT / "results" / "page.png"), "none.png", "--show", str(out)]
        assert predict.main([*argv, "--weights", str(whole_run / "best.pt")]) == 1 and out.exists()
    elif name == "report.py":
        out.write_text(json.dumps([]))
        assert report.main([str(out)]) == 0
    elif name == "export.py":
        monkeypatch.setattr(export, "to_onnx", lambda net: b"ONNX")
        assert export.main([str(whole_run / "best.pt"), "--out", str(out)]) == 0 and out.read_bytes() == b"ONNX"
    else:
        assert train_published.main(["net-9720", "--out", str(out), *data]) == 0 and read_metrics(out)


@signals
def test_a_run_without_standard_streams(whole_run, tmp_path):
    """As `>&-` starts it."""
    script = 'exec "$@" <&- >&- 2>&-'
    command = ["sh", "-c", script, "sh", sys.executable, "train.py", *RUN, "--out", tmp_path / "run"]
    assert subprocess.run([str(arg) for arg in command], cwd=ROOT, timeout=120).returncode == 0
    assert same(without_times(tmp_path / "run"), without_times(whole_run))


def test_help_is_shown_on_a_stream_of_another_encoding(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run("--help") == 0
    stream.flush()
    assert b"--resume RUN" in stream.buffer.getvalue()


# Errors and exit codes

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


def main_that_raises(error):
    @command
    def main(argv=None):
        if error:
            raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        *(
            (kind("wrong"), 1 if kind in (errors.DownloadError, errors.ImageError) else 2, "error: wrong")
            for kind in ERRORS
        ),
        (MemoryError(), 2, "error: out of memory; try a smaller --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "error: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "error: out of memory"),
        (torch.AcceleratorError("CUDA error: out of memory"), 2, "error: out of memory"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), 2, "error: out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "interrupted"),
    ],
    ids=repr,
)
def test_each_error_is_one_line_and_an_exit_code(error, code, line, capsys):
    assert main_that_raises(error)([]) == code
    assert capsys.readouterr().err.startswith(f"{Path(__file__).name}: {line}" if line else "")


BUGS = [RuntimeError("a bug"), OSError(errno.EIO, "a bug"), ValueError("a bug")]
BUGS += [RuntimeError("CUDA error: an illegal memory access was encountered"), torch.AcceleratorError("memory")]


@pytest.mark.parametrize("error", BUGS, ids=repr)
def test_a_bug_is_not_hidden(error):
    with pytest.raises(type(error)):
        main_that_raises(error)([])


def test_a_parser_ends_by_one_line(capsys):
    parser = Parser(prog="train.py")
    parser.add_argument("--out", type=path)
    for argv in (["--ou", "folder"], ["--out"], ["--out", ""]):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(argv)
        assert ended.value.code == 2
        assert_one_line(capsys.readouterr(), "(see --help)")
