"""The public names of the packages, and the page that lists them."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys

import pytest

from tests.support.docs.api_page import MODULES, PAGE, render

HEAVY = ("torch", "numpy", "celery", "diffusers", "boto3")


@pytest.mark.parametrize("name", ["detection", "training"])
def test_every_public_name_is_what_its_module_defines(name: str) -> None:
    """Type checkers, `dir` and `from … import *` see the same names, each from where it is made."""
    package = importlib.import_module(name)
    statements = ast.walk(ast.parse(inspect.getsource(package)))
    typed = {
        alias.name: statement.module
        for statement in statements
        if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith(f"{name}.")
        for alias in statement.names
    }
    assert typed == package._MODULES
    assert sorted(typed) == sorted(package.__all__)
    assert set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        assert getattr(package, public).__module__ == typed[public], public
    with pytest.raises(AttributeError, match=f"'{name}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018 - reading it is what raises


@pytest.mark.parametrize("name", MODULES)
def test_importing_a_package_loads_nothing_heavy(name: str) -> None:
    """In a fresh interpreter the public names are there and no large library is loaded."""
    script = (
        f"import sys, {name}\nassert {name}.__all__\n"
        f"print(*(one for one in {HEAVY!r} if one in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


def test_the_page_lists_the_public_names() -> None:
    """Its tables are what the code says; `python -m tests.support.docs.api_page` writes them."""
    page = PAGE.read_text(encoding="utf-8")
    assert render(page) == page


def test_the_first_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """A picture without content is scored, and is not judged."""
    example, *others = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    exec(compile(example, str(PAGE), "exec"), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out.startswith("unsure ")
    for other in others:
        compile(other, str(PAGE), "exec")
