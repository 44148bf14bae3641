"""Imports point one way: nothing imports what is built on it."""

import ast

from conftest import ROOT

LEVELS = ["model"], ["data"], ["experiment", "photo", "ink"], ["train", "predict", "hubconf"], ["study"], ["benchmark"]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}


def test_imports_point_one_way():
    """Those within functions too."""
    assert {file.stem for file in ROOT.glob("*.py")} | {"experiment", "study"} == {*LEVEL, "test_model"}
    for name, level in LEVEL.items():
        for file in (*ROOT.glob(f"{name}.py"), *ROOT.glob(f"{name}/**/*.py")):
            nodes = [*ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
            imported = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
            imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            assert not [found for found in imported if LEVEL.get(found.split(".")[0], -1) > level], file
