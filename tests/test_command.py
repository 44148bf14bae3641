"""What every command line shares: signals, printing, and one line and an exit code for each error."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, RUN, assert_one_line, read_metrics, run, same, without_times

from experiment import errors
from experiment.command import Parser, command, echo, path

signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send these signals to one process")


def start(*argv, **options):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *map(str, argv)], text=True, cwd=ROOT, **pipes, **options)


# Signals


@signals
@pytest.mark.parametrize(("number", "code", "reader"), [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)])
def test_a_signal_ends_a_run_in_order_and_it_resumes_to_the_same_bits(whole_run, tmp_path, number, code, reader):
    """The second time the reader of its output has gone away before."""
    folder = tmp_path / "a run"
    with start("train.py", *RUN, "--out", folder) as process:
        while not process.stdout.readline().startswith("Test set"):
            assert process.poll() is None
        if not reader:
            process.stdout.close()
        process.send_signal(number)
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
from experiment.command import command, exit_at_once, handle_signals
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
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_torch_is_imported(tmp_path, number, code):
    (tmp_path / "torch.py").write_text("print('importing', flush=True)\ninput()\n")
    with start("train.py", env={**os.environ, "PYTHONPATH": str(tmp_path)}) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert process.wait(timeout=60) == code and process.stderr.read() == "train.py: interrupted\n"


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
        *((kind("wrong"), 1 if kind is errors.DownloadError else 2, "error: wrong") for kind in ERRORS),
        (MemoryError(), 2, "error: out of memory; try a smaller --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "error: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "error: out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "interrupted"),
    ],
    ids=repr,
)
def test_each_error_is_one_line_and_an_exit_code(error, code, line, capsys):
    assert main_that_raises(error)([]) == code
    assert capsys.readouterr().err.startswith(f"{Path(__file__).name}: {line}" if line else "")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EIO, "a bug"), ValueError("a bug")], ids=repr)
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
