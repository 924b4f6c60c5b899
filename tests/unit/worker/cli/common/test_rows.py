"""Rows in every format, read back by a reader that is not ours."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from worker.cli.common.rows import Format, print_fields, print_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

ID = UUID("00000000-0000-0000-0000-000000000001")
AT = datetime(2026, 1, 31, 12, 30, tzinfo=timezone(timedelta(hours=2)))
TEXT = 'a "b", c\n\x1b[2J'
ROWS: list[dict[str, Any]] = [
    {"id": ID, "at": AT, "score": Decimal("0.9731"), "sources": ["web", "forum"], "note": None},
    {
        "id": ID,
        "at": AT,
        "score": 0.123456,
        "sources": None,
        "note": 'a "b", c\n\x1b[2J',
        "more": 1,
    },
]
COLUMNS = ("id", "at", "score", "sources", "note")


def test_json_is_one_array_and_jsonl_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Both hold all of a row; times are UTC, numbers are numbers."""
    expected = [
        {
            "id": str(ID), "at": "2026-01-31T10:30:00+00:00", "score": 0.9731,
            "sources": ["web", "forum"], "note": None,
        },
        {
            "id": str(ID), "at": "2026-01-31T10:30:00+00:00", "score": 0.123456,
            "sources": None, "note": TEXT, "more": 1,
        },
    ]  # fmt: skip
    print_rows(ROWS, COLUMNS, Format.JSON)
    assert json.loads(capsys.readouterr().out) == expected
    print_rows(ROWS, COLUMNS, Format.JSONL)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected


def test_csv_has_a_header_and_a_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """A reader gets the columns back; no cell breaks a line or moves the cursor."""
    print_rows(ROWS, COLUMNS, Format.CSV)
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    assert len(printed.splitlines()) == 3
    first, second = csv.DictReader(io.StringIO(printed))
    assert tuple(first) == COLUMNS
    assert first == {
        "id": str(ID), "at": "2026-01-31T10:30:00+00:00", "score": "0.9731",
        "sources": '["web", "forum"]', "note": "",
    }  # fmt: skip
    assert (second["score"], second["sources"]) == ("0.123456", "")
    assert second["note"] == 'a "b", c\\n\\x1b[2J'


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x"])
def test_csv_holds_no_formula_of_somebody_else(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """A text that a spreadsheet would calculate is marked as text; a negative number is none."""
    row = {"a": text, "b": -1.5, "c": Decimal("-1.53")}
    print_rows([row], ("a", "b", "c"), Format.CSV)
    assert capsys.readouterr().out == f"a,b,c\n'{text},-1.5,-1.53\n"


def test_a_table_is_aligned_and_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns stand two spaces apart; what a terminal would obey is escaped."""
    print_rows(ROWS, COLUMNS)
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == [*COLUMNS]
    assert first == f"{ID}  2026-01-31 10:30:00  0.9731  web, forum"
    assert second.startswith(f"{ID}  2026-01-31 10:30:00  0.1235  {'':10}  a")
    assert second.isprintable()


@pytest.mark.parametrize(
    ("format_", "printed"),
    [(Format.TABLE, "a  b\n"), (Format.JSON, "[]\n"), (Format.JSONL, ""), (Format.CSV, "a,b\n")],
)
def test_no_rows_are_no_rows(
    capsys: pytest.CaptureFixture[str], format_: Format, printed: str
) -> None:
    """A header alone, an empty array, or nothing."""
    print_rows([], ("a", "b"), format_)
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("format_", [Format.JSON, Format.JSONL, Format.CSV])
def test_rows_are_printed_while_they_come(
    capsys: pytest.CaptureFixture[str], format_: Format
) -> None:
    """A row stands before the next is asked for, and an interrupted array is still an array."""
    seen = ""

    def rows() -> Iterator[dict[str, int]]:
        nonlocal seen
        yield {"a": 41}
        seen += capsys.readouterr().out
        raise SystemExit(130)

    with pytest.raises(SystemExit):
        print_rows(rows(), ("a",), format_)
    assert "41" in seen
    if format_ is Format.JSON:
        assert json.loads(seen + capsys.readouterr().out) == [{"a": 41}]


def test_names_and_values_are_lines_or_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Settings and the like have a line of their own for people, and rows for programs."""
    fields = {"A": "1", "B": ""}
    print_fields(fields, Format.TABLE, line="{name}={value}")
    assert capsys.readouterr().out == "A=1\nB=\n"
    print_fields(fields, Format.JSON, line="{name}={value}")
    assert json.loads(capsys.readouterr().out) == [
        {"name": "A", "value": "1"},
        {"name": "B", "value": ""},
    ]
