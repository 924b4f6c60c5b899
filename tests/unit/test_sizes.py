"""A class has one job and a function one step: their lengths are bounded."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
LONGEST_CLASS = 199
LONGEST_FUNCTION = 59


def too_long(tree: ast.AST, scope: str = "") -> Iterator[tuple[str, int]]:
    """Yield the qualified names of classes and functions over their limits, and their lines."""
    for node in ast.iter_child_nodes(tree):
        name = scope
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            name = f"{scope}.{node.name}" if scope else node.name
            limit = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > limit:
                yield name, lines
        yield from too_long(node, name)


def test_lengths_are_measured_from_the_definition_to_its_last_line() -> None:
    """A function of 60 lines and a class of 200 are over their limits, one line less is not."""

    def code(lines: int, head: str) -> ast.AST:
        return ast.parse("\n".join([head, *["    x = 1"] * (lines - 1)]))

    assert list(too_long(code(60, "def f():"))) == [("f", 60)]
    assert list(too_long(code(59, "def f():"))) == []
    assert list(too_long(code(200, "class C:"))) == [("C", 200)]
    assert list(too_long(code(199, "class C:"))) == []


def test_classes_and_functions_are_short() -> None:
    """Classes stay under 200 lines and functions under 60."""
    found = {
        f"{path.relative_to(REPOSITORY).as_posix()} {name}": lines
        for package in ("client", "detection", "training", "worker")
        for path in (REPOSITORY / package).rglob("*.py")
        for name, lines in too_long(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == {}
