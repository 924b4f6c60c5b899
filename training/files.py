"""Writes a file aside and renames it into place: a kill leaves the old file or the new one."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def written_aside(file: Path) -> Iterator[Path]:
    """Yield the path beside `file` to write to; it becomes `file` unless the block raises.

    One process at a time writes a file.
    """
    aside = file.with_name(f"{file.name}.part")
    yield aside
    aside.replace(file)
