"""Settings are refused where they are wrong, whoever fills them in."""

import math

import pytest

from experiment.errors import SettingError
from experiment.settings import Number, Recipe, Settings, setting_fields

FIELDS = [(cls, f) for cls in (Recipe, Settings) for f in setting_fields(cls)]


@pytest.mark.parametrize(("cls", "f"), FIELDS, ids=[f.name for _, f in FIELDS])
def test_every_setting_is_checked_at_its_bounds(cls, f):
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
        return cls(**{f.name: (*f.default[1:], value) if f.name == "widths" else value})

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
