"""The tables of docs/api-python.md, made from the public names of the code.

`python -m tests.support.docs.api_page` writes them into the page.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[3] / "docs" / "api-python.md"
MODULES = ("detection", "training", "worker.client")
_HEADER = ("| name | what it is | with |", "| --- | --- | --- |")


def table(module: str) -> str:
    """Return the table of one module's public names, in their order, as lines of Markdown."""
    public = importlib.import_module(module)
    rows = [_row(name, getattr(public, name)) for name in public.__all__]
    return "\n".join([*_HEADER, *rows])


def render(page: str) -> str:
    """Return the page with every table as the code has it; a heading of a module is before each."""
    for module in MODULES:
        head, heading, rest = page.partition(f"## `{module}`\n")
        before, _, after = rest.partition(_HEADER[0])
        _, _, after = after.partition("\n\n")
        page = head + heading + before + table(module) + "\n\n" + after
    return page.rstrip("\n") + "\n"


def _row(name: str, value: object) -> str:
    summary = (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")
    return f"| `{name}` | {summary} | {', '.join(_members(value))} |"


def _members(value: object) -> Iterator[str]:
    """Name the parameters of a function; the fields, methods and properties of a class."""
    if not inspect.isclass(value):
        assert callable(value)
        yield from (f"`{name}`" for name in inspect.signature(value).parameters)
        return
    if issubclass(value, BaseException):
        return
    record = dataclasses.is_dataclass(value)
    fields = [field.name for field in dataclasses.fields(value)] if record else []
    yield from (f"`{name}`" for name in fields if not name.startswith("_"))
    for name, member in vars(value).items():
        if name.startswith("_") or name in fields:
            continue
        if isinstance(member, property):
            yield f"`{name}`"
        elif inspect.isfunction(member) or isinstance(member, classmethod):
            yield f"`{name}()`"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
