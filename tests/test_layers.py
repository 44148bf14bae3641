"""Imports point one way: nothing imports what is built on it."""

import ast

from conftest import ROOT

LEVELS = ["model"], ["data"], ["experiment", "photo", "ink"], ["train", "predict", "hubconf"], ["study"], ["benchmark"]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}


def imported(file):
    """What `file` imports, within functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from [node.module or ""] if isinstance(node, ast.ImportFrom) else names


def test_imports_point_one_way():
    assert {file.stem for file in ROOT.glob("*.py")} | {"experiment", "study"} == {*LEVEL, "test_model"}
    files = {file: LEVEL[name] for name in LEVEL for file in (*ROOT.glob(f"{name}.py"), *ROOT.glob(f"{name}/**/*.py"))}
    found = [(file, name, level) for file, level in files.items() for name in imported(file)]
    assert not [(file, name) for file, name, level in found if LEVEL.get(name.split(".")[0], -1) > level]
