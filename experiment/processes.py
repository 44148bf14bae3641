"""This process among those of a torchrun job, by torchrun's environment variables; usable before torch is imported."""

import os

from experiment.errors import SettingError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def world_size():
    """Number of processes of the job, 1 without torchrun."""
    return number("WORLD_SIZE", 1)


def rank():
    """Number of this process, from 0."""
    return number("RANK", 0) if world_size() > 1 else 0


def local_rank():
    """Number of this process on its machine, from 0."""
    return number("LOCAL_RANK", 0) if world_size() > 1 else 0


def number(name, default):
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def check_variables():
    """Raise a SettingError if a scheduler has set only some of torchrun's variables, or others than numbers."""
    if "WORLD_SIZE" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return
    found = {name: os.environ.get(name) for name in VARIABLES}
    missing = [name for name, value in found.items() if value is None]
    wrong = [f"{n}={v}" for n, v in found.items() if v is not None and n != "MASTER_ADDR" and not v.isdecimal()]
    if missing or wrong or not rank() < world_size():
        what = f"without {', '.join(missing)}" if missing else "with " + (", ".join(wrong) or f"RANK={found['RANK']}")
        raise SettingError(
            f"WORLD_SIZE={found['WORLD_SIZE']} is set {what}; start several processes with torchrun, or one with "
            "WORLD_SIZE unset"
        )
