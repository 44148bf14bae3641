"""The command line: what is typed is what is set, what is wrong is refused and leaves nothing behind."""

import shlex
from dataclasses import fields, replace

import hypothesis
import pytest
from conftest import DIGITS, assert_refused, run
from hypothesis import strategies as st

from experiment.cli import earlier_settings, new_settings, parse_args
from experiment.errors import SettingError
from experiment.settings import RECIPES, Recipe, Settings, flag

EVALUATE = ("dataset", "data_dir", "device", "precision")


def settings_of(*argv):
    return new_settings(parse_args("", argv)[1])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--epoch", "3"], "--epoch"),
        (["--nonsense"], "--nonsense"),
        (["--epochs", "0"], "--epochs: found 0, expected a whole number from 1 to 100000"),
        (["--epochs", "1.5"], "--epochs: found 1.5, expected a whole number"),
        (["--epochs", "none"], "--epochs: found none, expected a whole number"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--batch-size", "-1"], "--batch-size: found -1"),
        (["--lr", "nan"], "--lr: found nan"),
        (["--lr", "0"], "--lr: found 0, expected a number above 0, at most 1000"),
        (["--lr", "inf"], "--lr: found inf"),
        (["--lr", "fast"], "--lr: found fast"),
        (["--target", "100.1"], "--target: found 100.1"),
        (["--target", "nan"], "--target: found nan"),
        (["--target", "0"], "--target: found 0"),
        (["--dropout", "1"], "--dropout: found 1"),
        (["--widths", "4", "4"], "--widths: expected 5 arguments"),
        (["--widths", "4", "4", "4", "4", "0"], "--widths: found 0"),
        (["--antialias", "first"], "--antialias: invalid choice: 'first' (choose from"),
        (["--seed", "-1"], "--seed: found -1"),
        (["--seed", str(2**63)], f"--seed: found {2**63}"),
        (["--data-dir", "data"], "--data-dir: found with --dataset digits"),
        (["--data-dir", ""], "--data-dir: found an empty path"),
        (["--out", ""], "--out: found an empty path"),
        (["--holdout", "0"], "--holdout: found 0"),
        (["--threads", "0"], "--threads: found 0"),
        (["--recipe", "slow"], "invalid choice: 'slow' (choose from"),
        (["--out", "new", "--resume", "old"], "--out cannot be combined with --resume or --evaluate"),
        (["--out", "new", "--evaluate", "last.pt"], "--out cannot be combined with --resume or --evaluate"),
        (["--show", "--evaluate", "last.pt"], "--show cannot be combined with --evaluate"),
        (["--resume", "old", "--evaluate", "last.pt"], "not allowed with argument --resume"),
    ],
)
def test_bad_flags_are_refused_and_leave_no_file_behind(tmp_path, monkeypatch, capsys, argv, expected):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, [*DIGITS, *argv], expected)
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_setting_with_its_default(capsys):
    assert run("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for f in (f for cls in (Recipe, Settings) for f in fields(cls) if "limits" in f.metadata):
        assert flag(f.name) in text and f.metadata["limits"].help in text
    for default in ("16 16 32 24 24", "1.0", "0.15", "False", "99.4", "mnist", "auto"):
        assert f"(default: {default})" in text


def test_only_what_is_typed_is_given():
    options, given = parse_args("", [])
    assert given == {}
    assert vars(options) == {"out": None, "show": False, "plots": True, "resume": None, "evaluate": None}
    argv = [
        "--recipe",
        "fast",
        "--no-separable",
        "--widths",
        *"45678",
        "--target",
        "None",
        "--no-plots",
        "--out",
        "a folder",
    ]
    options, given = parse_args("", argv)
    assert given == {"recipe": "fast", "separable": False, "widths": (4, 5, 6, 7, 8), "target": None}
    assert options.out == "a folder" and not options.plots


def test_new_settings_are_those_of_the_recipe_and_the_flags():
    assert settings_of() == Settings()
    assert settings_of("--recipe", "tiny") == Settings(RECIPES["tiny"])
    argv = ["--epochs", "3", "--recipe", "best", "--no-separable", "--target", "none", "--seed", "5", "--threads", "2"]
    recipe = replace(RECIPES["best"], epochs=3, separable=False)
    assert settings_of(*argv) == Settings(recipe, target=None, seed=5, threads=2)
    assert settings_of("--holdout", "none", "--data-dir", "data") == Settings(data_dir="data")


def values():
    """What each setting of a Recipe may be, by name."""
    return {f.name: values_of(f) for f in fields(Recipe) if "limits" in f.metadata}


def values_of(f):
    limits = f.metadata["limits"]
    if limits.kind is bool:
        return st.booleans()
    if limits.choices:
        return st.sampled_from(limits.choices)
    if limits.kind is int:
        numbers = st.integers(limits.low, limits.high)
    else:
        numbers = st.floats(limits.low, limits.high, exclude_min=limits.above)
    return st.tuples(*[numbers] * len(f.default)) if isinstance(f.default, tuple) else numbers


@hypothesis.settings(deadline=None)
@hypothesis.given(st.sampled_from(sorted(RECIPES)), st.builds(Recipe, **values()))
def test_the_description_of_any_recipe_typed_again_gives_that_recipe(name, recipe):
    settings = Settings(replace(recipe, name=name))
    assert settings_of("--recipe", *shlex.split(settings.description)) == settings


TINY = replace(RECIPES["tiny"], widths=(8, 20, 24, 22, 22), epochs=8, lr=0.5)
RUN = Settings(TINY, None, 3, "mnist", "small", None, 2, "cpu", "fp32")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--epochs", "9"], "--epochs 9: contradicts the run's --epochs 8; drop it"),
        (["--recipe", "fast"], "--recipe fast: contradicts the run's --recipe tiny"),
        (["--widths", *"44445"], "--widths 4 4 4 4 5: contradicts the run's --widths 8 20 24 22 22"),
        (["--no-separable"], "--no-separable: contradicts the run's --separable"),
        (["--target", "99"], "--target 99.0: contradicts the run's --target none"),
        (["--holdout", "9"], "--holdout 9: contradicts the run's --holdout none"),
        (["--threads", "1"], "--threads 1: contradicts the run's --threads 2"),
        (["--device", "cuda"], "--device cuda: contradicts the run's --device cpu"),
        (["--precision", "bf16"], "--precision bf16: contradicts the run's --precision fp32"),
        (["--data-dir", "other"], "--data-dir other: contradicts the run's --data-dir small"),
    ],
)
def test_a_flag_that_contradicts_an_earlier_run_is_refused(argv, expected):
    with pytest.raises(SettingError) as error:
        earlier_settings(RUN, parse_args("", argv)[1], may_change=())
    assert expected in str(error.value)


def test_flags_that_repeat_an_earlier_run_are_welcome():
    argv = ["--recipe", "tiny", "--epochs", "8", "--lr", "0.5", "--separable", "--target", "none", "--seed", "3"]
    argv += ["--widths", "8", "20", "24", "22", "22", "--data-dir", "small", "--threads", "2", "--device", "cpu"]
    for repeated in ({}, parse_args("", argv)[1], {"device": "auto"}):
        assert earlier_settings(RUN, repeated, may_change=()) == RUN


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({"data_dir": "moved"}, {"data_dir": "moved"}),
        ({"device": "auto", "precision": "bf16"}, {"device": "auto", "precision": "bf16"}),
        ({"dataset": "digits"}, {"dataset": "digits", "data_dir": None}),  # the run's folder holds its own data
        ({"dataset": "mnist"}, {}),
    ],
)
def test_what_may_change_changes_and_nothing_else(given, changes):
    assert earlier_settings(RUN, given, may_change=EVALUATE) == replace(RUN, **changes)
    with pytest.raises(SettingError, match="^--epochs 9: contradicts"):
        earlier_settings(RUN, {**given, "epochs": 9}, may_change=EVALUATE)


def test_a_run_on_digits_may_be_tested_on_files():
    digits = replace(RUN, dataset="digits", data_dir=None)
    changed = earlier_settings(digits, {"dataset": "mnist", "data_dir": "small"}, may_change=EVALUATE)
    assert changed == RUN
    with pytest.raises(SettingError, match="^--data-dir: found with --dataset digits"):
        earlier_settings(digits, {"data_dir": "small"}, may_change=EVALUATE)
