"""Settings are refused where they are wrong, whoever fills them in; the recipes are what they should be."""

import math
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from experiment.errors import SettingError
from experiment.settings import DEFAULT, RECIPES, Limits, Recipe, Settings

FIELDS = [(cls, f) for cls in (Recipe, Settings) for f in fields(cls) if "limits" in f.metadata]
NAMES = [f.name for _, f in FIELDS]


@pytest.mark.parametrize(
    ("limits", "allowed", "refused", "text"),
    [
        (Limits("", 0, 2), (0, 0.5, 2, 2.0), (-0.1, 2.1), "a number from 0 to 2"),
        (Limits("", 0, 2, above=True), (1e-9, 2), (0, 0.0, -1), "a number above 0, at most 2"),
        (Limits("", 1, 3, kind=int), (1, 3), (0, 4, 1.0, 2.5), "a whole number from 1 to 3"),
        (Limits("", choices=("a", "b"), kind=str), ("a", "b"), ("", "c", "A", ("a",)), "one of a, b"),
        (Limits("", kind=bool), (True, False), (0, 1, "true"), "a bool"),
        (Limits("", kind=str), ("a", "/b"), ("", b"a"), "a str"),
    ],
)
def test_limits_allow_what_they_say(limits, allowed, refused, text):
    never = (None, math.nan, math.inf, -math.inf, [], {}) + (() if limits.kind is bool else (True,))
    assert all(map(limits.allow, allowed)) and not any(map(limits.allow, (*refused, *never)))
    assert str(limits) == text
    optional = replace(limits, optional=True)
    assert optional.allow(None) and all(map(optional.allow, allowed)) and not any(map(optional.allow, refused))


@pytest.mark.parametrize(("cls", "f"), FIELDS, ids=NAMES)
def test_every_setting_is_checked_at_its_bounds_by_whatever_way_it_is_set(cls, f):
    limits, several = f.metadata["limits"], isinstance(f.default, tuple)
    step = 1 if limits.kind is int else 1e-6
    good, bad = [], [math.nan, math.inf, [1], b"", *([] if limits.optional else [None])]
    if limits.low is not None:
        good += [limits.high, limits.low + step]
        bad += [limits.high + step, limits.low - step, True, str(limits.high)]
        (bad if limits.above else good).append(limits.low)
    elif limits.choices:
        good += limits.choices
        bad += ["", "other", 1]
    for values, right in ((good, True), (bad, False)):
        for value in values:
            changes = {f.name: (*f.default[1:], value) if several else value}
            for fill in (cls, lambda **changes: replace(cls(), **changes)):
                if right:
                    assert getattr(fill(**changes), f.name) == changes[f.name]
                else:
                    with pytest.raises(SettingError, match=f"^--{f.name.replace('_', '-')}: found .*, expected "):
                        fill(**changes)


@pytest.mark.parametrize("widths", ["wide", 4, None, (4,) * 4, (4,) * 6, (), (4, 4, 4, 4, 0), (4, 4, 4, 4, "4")])
def test_widths_are_five_whole_numbers(widths):
    for fill in (Recipe, lambda widths: replace(DEFAULT, widths=widths)):
        with pytest.raises(SettingError, match="^--widths: found .*, expected "):
            fill(widths=widths)


@pytest.mark.parametrize("recipe", [None, "fast", Recipe(name="slow"), {}])
def test_settings_take_a_recipe_of_a_known_name(recipe):
    with pytest.raises(SettingError, match="^recipe: found .*, expected a Recipe"):
        Settings(recipe)


@pytest.mark.parametrize("value", [(0.1, 0.2), (0.1,), [0.1]])
def test_a_single_value_is_no_tuple(value):
    with pytest.raises(SettingError, match="^--lr: found .*, expected a number"):
        Recipe(lr=value)


def test_settings_cannot_be_changed_behind_the_checks():
    for settings in (DEFAULT, Settings()):
        for f in fields(settings):
            with pytest.raises(FrozenInstanceError):
                setattr(settings, f.name, None)


def test_digits_need_no_folder():
    with pytest.raises(SettingError, match="^--data-dir: found with --dataset digits"):
        Settings(dataset="digits", data_dir="data")


def test_recipes_are_the_default_but_for_what_they_are_named_for():
    long = {"separable": True, "antialias": "both", "margin": 0, "batch_size": 128, "weight_decay": 1e-4}
    long["augment_until"] = 0.9
    changes = {
        "default": {},
        "fast": {"batch_size": 64, "epochs": 4, "first_share": 0.4, "later_share": 0.1},
        "one-epoch": {"batch_size": 64, "epochs": 1},
        "best": {**long, "epochs": 25, "later_share": 1 / 3, "widths": (16, 48, 64, 80, 64)},
        "tiny": {**long, "epochs": 20, "later_share": 1.0, "widths": (7, 18, 22, 20, 20)},
    }
    assert {name: replace(Recipe(name=name), **changed) for name, changed in changes.items()} == RECIPES
    assert Settings() == Settings(RECIPES["default"]) and Settings().target == 99.4


def test_a_recipe_gives_the_net_its_arguments():
    assert RECIPES["fast"].network == {
        "widths": (16, 16, 32, 24, 24),
        "dropout": 0.01,
        "separable": False,
        "antialias": "second",
        "margin": 2,
    }


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("default", {}, "default"),
        ("tiny", {}, "tiny"),
        ("fast", {"epochs": 2, "widths": (4, 4, 4, 4, 5)}, "fast --widths 4 4 4 4 5 --epochs 2"),
        ("best", {"separable": False, "antialias": "none"}, "best --no-separable --antialias none"),
        ("default", {"separable": True, "lr": 0.5}, "default --separable --lr 0.5"),
    ],
)
def test_the_description_is_the_recipe_and_what_changed_it(name, changes, expected):
    assert Settings(replace(RECIPES[name], **changes), seed=7, dataset="digits").description == expected
