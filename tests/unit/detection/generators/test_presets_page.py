"""The tables of docs/presets.md say what the code does."""

from __future__ import annotations

from tests.support.docs.presets_page import PAGE, render, tables


def test_the_page_lists_the_classes() -> None:
    """Its tables are the code's; `python -m tests.support.docs.presets_page` writes them."""
    page = PAGE.read_text(encoding="utf-8")
    assert render(page) == page


def test_the_tables_say_how_each_class_was_verified() -> None:
    """Every row of every table has all its columns, and none is empty."""
    for table in tables().values():
        rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
        assert len(rows) > 3
        assert {len(row) for row in rows} == {len(rows[0])}
        assert all(cell.strip() for row in rows for cell in row)
