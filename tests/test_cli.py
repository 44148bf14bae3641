"""The command line: what is typed is what is set; wrong settings, signals, streams and errors end in order."""

import contextlib
import io
import math
import os
import shlex
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import hypothesis
import pytest
import torch
from conftest import DIGITS, PYTHON, RUN, assert_one_line, assert_refused, read_metrics, run, same, without_times
from hypothesis import strategies as st

from experiment import errors
from experiment.cli import command, earlier_settings, new_settings, parse_args
from experiment.errors import SettingError
from experiment.settings import RECIPES, Number, Recipe, Settings, flag, setting_fields, typed
from photo import ImageError

unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these signals nor these streams")
FIELDS = [*setting_fields(Recipe), *setting_fields(Settings)]


def given_by(argv):
    return parse_args("", shlex.split(argv))[1]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--epoch 3", "--epoch"),
        ("--epochs 0", "--epochs: found 0, expected a whole number from 1 to 100000 (see --help)"),
        ("--out new --resume old", "--out cannot be combined with --resume or --evaluate"),
        ("--resume old --evaluate last.pt", "not allowed with argument --resume"),
        ("--resume none", "none/last.pt cannot be read (No such file or directory); expected an intact checkpoint"),
        ("--evaluate none", "none cannot be read (No such file or directory); expected best, default, tiny, a run's"),
        ("--holdout 1428 --out new", "--holdout 1428: expected 10 to 1427"),
        ("--batch-size 1238 --holdout 200 --out new", "--batch-size 1238: expected at most 1237, the number"),
    ],
)
def test_bad_flags_are_refused_and_leave_no_file_behind(tmp_path, monkeypatch, capsys, argv, expected):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, [*DIGITS, *shlex.split(argv)], expected)
    assert list(tmp_path.iterdir()) == []


def test_settings_are_those_of_the_recipe_and_of_what_is_typed_and_help_names_each_with_its_default(capsys):
    assert new_settings(given_by("")) == Settings()
    argv = "--recipe best --epochs 3 --no-separable --widths 4 5 6 7 8 --target None --seed 5 --data-dir ~ --no-plots"
    options, given = parse_args("", [*argv.split(), "--out", "~/a folder"])
    recipe = replace(RECIPES["best"], epochs=3, separable=False, widths=(4, 5, 6, 7, 8))
    assert new_settings(given) == Settings(recipe, target=None, seed=5, data_dir=str(Path.home()))
    assert vars(options) == {"out": f"{Path.home()}/a folder", "plots": False, "resume": None, "evaluate": None}
    assert run("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(flag(f.name) in text and f.metadata["help"] in text for f in FIELDS)
    assert all(f"(default: {default})" in text for default in ("16 16 32 24 24", "0.15", "False", "99.4", "mnist"))


def values_of(f):
    """What the setting `f` may be."""
    allowed = f.metadata["allowed"]
    if not isinstance(allowed, Number):
        return st.booleans() if allowed is bool else st.sampled_from(("a", "a b") if allowed is str else allowed)
    limits = {} if allowed.kind is int else {"exclude_min": allowed.above}
    numbers = (st.integers if allowed.kind is int else st.floats)(allowed.low, allowed.high, **limits)
    return st.tuples(*[numbers] * len(f.default)) if isinstance(f.default, tuple) else numbers


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.builds(Recipe, st.sampled_from([*RECIPES]), **{f.name: values_of(f) for f in setting_fields(Recipe)})
)
def test_the_description_of_any_recipe_typed_again_gives_that_recipe(recipe):
    settings = Settings(recipe)
    assert new_settings(given_by(f"--recipe {settings.description}")) == settings


EARLIER = Settings(replace(RECIPES["tiny"], epochs=8, lr=0.5), None, 3, "mnist", "small", None, 2, "cpu", "fp32")
EVALUATE = {"dataset", "data_dir", "device", "precision"}


@pytest.mark.parametrize("f", FIELDS, ids=lambda f: f.name)
@hypothesis.settings(deadline=None, max_examples=5)
@hypothesis.given(st.data())
def test_every_other_value_than_that_of_the_earlier_run_is_refused(f, data):
    own = {**vars(EARLIER), **vars(EARLIER.recipe)}[f.name]
    value = data.draw(values_of(f).filter(lambda value: value not in (own, "auto")))
    with pytest.raises(SettingError) as error:
        earlier_settings(EARLIER, {f.name: value}, may_change=EVALUATE - {f.name})
    assert str(error.value) == f"{typed(f.name, value)}: contradicts the run's {typed(f.name, own)}; drop it"


def test_flags_that_repeat_an_earlier_run_are_welcome_and_what_may_change_changes_and_nothing_else():
    argv = "--recipe tiny --epochs 8 --lr 0.5 --separable --target none --seed 3 --widths 8 16 16 16 16"
    for repeated in ("", f"{argv} --data-dir small --threads 2 --device cpu", "--device auto"):
        assert earlier_settings(EARLIER, given_by(repeated), may_change=()) == EARLIER
    with pytest.raises(SettingError, match="^--recipe fast: contradicts the run's --recipe tiny"):
        earlier_settings(EARLIER, given_by("--recipe fast"), EVALUATE)
    own_data = {"dataset": "digits", "data_dir": None}  # the run's folder holds its own
    for changes in ({"data_dir": "moved"}, {"precision": "bf16", "device": "auto"}, own_data):
        given = {name: value for name, value in changes.items() if value is not None}
        assert earlier_settings(EARLIER, given, EVALUATE) == replace(EARLIER, **changes)
        back = {name: getattr(EARLIER, name) for name in changes}
        assert earlier_settings(replace(EARLIER, **changes), back, EVALUATE) == EARLIER


NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")
NUMBERS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


@unix
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_a_signal_ends_a_run_in_order_and_it_resumes_to_the_same_bits(whole_run, tmp_path, capsys, on_forward, number):
    folder, batches = tmp_path / "a run", []

    def raise_signal(net, images, logits):
        batches.append(net.training)
        if sum(batches) == 25:  # in the middle of the second epoch
            assert callable(signal.getsignal(number))  # it would end the tests too
            signal.raise_signal(number)

    on_forward(raise_signal)
    assert run(*RUN, "--out", folder) == 128 + number
    captured, hint = capsys.readouterr(), f"Interrupted; to resume: {PYTHON} train.py --resume '{folder}'\n"
    assert captured.err == "train.py: interrupted\n" and captured.out.endswith(hint)
    assert (folder / "log.txt").read_text().endswith(hint) and len(read_metrics(folder)["epochs"]) == 1
    assert run("--resume", folder) == 0
    assert same(without_times(folder), without_times(whole_run))


def handlers():
    return [signal.getsignal(number) for number in NUMBERS]


@command
def end_by(error):
    end_by.handlers = handlers()
    if error:
        raise error


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL, lambda number, frame: None])
def test_handlers_are_installed_where_there_are_none_and_removed_at_the_end(handler):
    """nohup ignores SIGHUP; a program that calls main may have its own handlers, and wants them back."""
    before, found = [signal.signal(number, handler) for number in NUMBERS], []
    try:
        for error in (None, SettingError("wrong"), KeyboardInterrupt(), ValueError("a bug")):
            with contextlib.suppress(ValueError):
                end_by(error)
            found += [end_by.handlers, handlers()]
        with ThreadPoolExecutor(1) as pool:  # a thread that may not install handlers does without
            assert pool.submit(end_by, None).result() == 0 and end_by.handlers == handlers()
    finally:
        for number, own in zip(NUMBERS, before):
            signal.signal(number, own)
    assert found[1::2] == [[handler] * len(NUMBERS)] * 4
    for own in found[::2]:  # SIGINT is Python's own
        assert all(map(callable, own[1:])) if handler == signal.SIG_DFL else set(own) == {handler}


def reader_gone(buffering=1):
    read_end, write_end = os.pipe()
    os.close(read_end)
    return open(write_end, "w", buffering)


def full_disk():
    return open("/dev/full", "w", buffering=1) if os.path.exists("/dev/full") else None


with open(os.devnull, "w") as closed:
    pass
STREAMS = {
    "none": lambda: None,
    "closed": lambda: closed,
    "with nothing but what print needs": lambda: Mock(spec=["write", "flush"]),  # as a notebook's
    "cp1252": lambda: io.TextIOWrapper(io.BytesIO(), encoding="cp1252", line_buffering=True),  # as on Windows
    "reader gone": reader_gone,
    "full disk": full_disk,
}


@pytest.mark.parametrize("kind", STREAMS)
def test_whatever_the_streams_are_the_run_goes_on_and_the_code_is_right(tmp_path, monkeypatch, kind):
    out, streams = tmp_path / "out ≥", [STREAMS[kind]() for _ in range(4)]
    for code in (0, 2):  # the second time there is a run already
        monkeypatch.setattr(sys, "stdout", streams[code])
        monkeypatch.setattr(sys, "stderr", streams[code + 1])
        with contextlib.suppress(AttributeError, ValueError):
            sys.stderr.reconfigure(errors="backslashreplace")  # as Python's own always is
        assert run(*RUN, "--epochs", 1, "--out", out) == code
    assert f"Run: {out}, seed 0\nRecipe: default" in (out / "log.txt").read_text("utf-8") and read_metrics(out)
    if kind == "cp1252":
        printed, _, _, refused = (stream.buffer.getvalue().decode("unicode_escape") for stream in streams)
        assert "out ≥" in printed and "out ≥ already holds a run" in refused


@unix
@pytest.mark.parametrize("count", [1, 100_000])
def test_a_command_without_a_reader_ends_in_silence(monkeypatch, capsys, count):
    monkeypatch.setattr(sys, "stdout", reader_gone(buffering=-1))
    assert command(lambda argv: print("answer\n" * count))() == 141
    assert sys.stdout is None and capsys.readouterr().err == ""  # Python flushes sys.stdout at exit


KNOWN = [kind for kind in vars(errors).values() if isinstance(kind, type)]
MEMORY = [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("CUDA")]
MEMORY += [torch.AcceleratorError("CUDA error: out of memory"), RuntimeError("MPS backend out of memory")]
BUGS = [RuntimeError("a bug"), OSError(5, "a bug"), ValueError("a bug")]
BUGS += [RuntimeError("CUDA error: an illegal memory access was encountered"), torch.AcceleratorError("memory")]


@pytest.mark.parametrize("error", [*(kind("wrong") for kind in (*KNOWN, ImageError)), *MEMORY, *BUGS], ids=repr)
def test_each_known_error_is_one_line_and_an_exit_code_and_a_bug_is_not_hidden(error, capsys):
    if error in BUGS:
        with pytest.raises(type(error)):
            end_by(error)
        return
    assert end_by(error) == (1 if isinstance(error, (errors.DownloadError, ImageError)) else 2)
    text = "out of memory; try a smaller --batch-size" if error in MEMORY else "wrong\n"
    assert_one_line(capsys.readouterr(), f"error: {text}", name=Path(__file__).name)


@pytest.mark.parametrize("f", FIELDS, ids=lambda f: f.name)
def test_every_setting_is_checked_at_its_bounds(f):
    allowed, bad = f.metadata["allowed"], [math.nan, math.inf, [1], (1,), {}, b"a", ""]
    if isinstance(allowed, Number):
        step = 1 if allowed.kind is int else 1e-9
        good = [allowed.low + step * allowed.above, allowed.high]
        bad += [good[0] - step, allowed.high + step, True, str(allowed.high)] + [1.0, 2.5] * (allowed.kind is int)
    else:
        good = {bool: [False, True], str: ["a", "/b c"]}.get(allowed, allowed)
        bad += [0, 1, *["other"] * (allowed is not str)]
    good, bad = ([*good, None], bad) if f.metadata["optional"] else (good, [*bad, None])

    def fill(value):
        kind = Recipe if f in setting_fields(Recipe) else Settings
        return kind(**{f.name: (*f.default[1:], value) if f.name == "widths" else value})

    for value in good:
        assert getattr(fill(value), f.name) in (value, (16, 32, 24, 24, value))
    for value in bad:
        with pytest.raises(SettingError, match=f"^--{f.name.replace('_', '-')}: found "):
            fill(value)


def test_what_does_not_fit_together_is_refused():
    for widths in ("wide!", 4, None, (4,) * 4, (4,) * 6, (), [4] * 5):
        with pytest.raises(SettingError, match="^--widths: found .*, expected a tuple of 5 values"):
            Recipe(widths=widths)
    for recipe in (None, "fast", Recipe(name="slow"), {}):
        with pytest.raises(SettingError, match="^recipe: found .*, expected a Recipe"):
            Settings(recipe)
    with pytest.raises(SettingError, match="^--data-dir: found with --dataset digits"):
        Settings(dataset="digits", data_dir="data")
