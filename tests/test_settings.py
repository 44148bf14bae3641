"""Settings are refused where they are wrong, whoever fills them in; the recipes fit what they are for."""

import math

import pytest

from experiment.errors import SettingError
from experiment.settings import Recipe, Settings, setting_fields

# Both bounds of numbers, or all values.
ALLOWED = {"widths": (1, 4096), "dropout": (0, 0.99), "margin": (0, 4), "antialias": ("none", "second", "both")}
ALLOWED |= {"epochs": (1, 100_000), "first_share": (1e-9, 1), "later_share": (1e-9, 1), "batch_size": (1, 1_000_000)}
ALLOWED |= {"lr": (1e-9, 1000), "warmup": (0.01, 0.99), "momentum": (0.01, 0.999), "separable": (False, True)}
ALLOWED |= {"memory": (0, 0.99), "weight_decay": (0, 1), "label_smoothing": (0, 0.9), "augment_until": (0, 1)}
ALLOWED |= {"rotation": (0, 180), "translate": (0, 1), "scale": (0, 0.9), "shear": (0, 60)}
ALLOWED |= {"target": (1e-9, 100), "seed": (0, 2**63 - 1), "holdout": (1, 1_000_000), "threads": (1, 1024)}
ALLOWED |= {"dataset": ("mnist", "digits"), "data_dir": ("a", "/b c"), "device": ("auto", "cpu", "cuda", "mps")}
ALLOWED |= {"precision": ("fp32", "bf16")}
OPTIONAL = ("target", "data_dir", "holdout", "threads")
WHOLE = ("widths", "margin", "epochs", "batch_size", "seed", "holdout", "threads")
FIELDS = [(cls, f) for cls in (Recipe, Settings) for f in setting_fields(cls)]


@pytest.mark.parametrize(("cls", "f"), FIELDS, ids=[f.name for _, f in FIELDS])
def test_every_setting_is_checked_at_its_bounds(cls, f):
    good, bad = [*ALLOWED[f.name]], [math.nan, math.inf, [1], (1,), {}, b"a", ""]
    (good if f.name in OPTIONAL else bad).append(None)
    if type(good[0]) in (int, float):
        low, high = good[:2]
        step = 1 if f.name in WHOLE else 1e-9
        bad += [low - step, high + step, True, str(high)] + [1.0, 2.5] * (f.name in WHOLE)
    else:
        bad += [0, 1, *["other"] * (f.name != "data_dir")]

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
