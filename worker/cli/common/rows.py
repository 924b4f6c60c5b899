"""Prints the rows of a command: a table for people; JSON, JSON Lines or CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

import typer

from worker.text import escape_controls, escape_formula


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


FormatOption = Annotated[
    Format,
    typer.Option("--format", help="A table, one JSON array, one JSON object a line, or CSV."),
]


def print_rows(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], format_: Format = Format.TABLE
) -> None:
    """Print rows in a format. JSON, JSON Lines and CSV are printed while rows come.

    `columns` are those of the table and of CSV, in their order; a row may lack some. A JSON object
    holds what its row holds. Times are UTC, in ISO 8601 (RFC 3339) except in a table.
    """
    match format_:
        case Format.TABLE:
            _print_table([columns, *([_cell(row.get(name)) for name in columns] for row in rows)])
        case Format.JSON:
            _print_array(rows)
        case Format.JSONL:
            for row in rows:
                typer.echo(_json(row))
        case Format.CSV:
            typer.echo(_csv_line(columns))
            for row in rows:
                typer.echo(_csv_line([_csv_cell(row.get(name)) for name in columns]))


def print_fields(fields: Mapping[str, Any], format_: Format, *, line: str) -> None:
    """Print names and values: as a table by `line`, else as rows of `name` and `value`."""
    if format_ is Format.TABLE:
        for name, value in fields.items():
            typer.echo(line.format(name=name, value=_cell(value)).rstrip())
        return
    rows = ({"name": name, "value": value} for name, value in fields.items())
    print_rows(rows, ("name", "value"), format_)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _print_array(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print one array, which ends as one even when the rows end early."""
    before = "["
    try:
        for row in rows:
            typer.echo(f"{before}\n{_json(row)}", nl=False)
            before = ","
    finally:
        typer.echo("[]" if before == "[" else "\n]")


def _json(row: Mapping[str, Any]) -> str:
    return json.dumps(row, default=_plain)


def _plain(value: object) -> object:
    """Translate what JSON has no form for; other objects (ids, paths) become their text."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return str(value)


def _csv_line(cells: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _csv_cell(value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return escape_formula(escape_controls(value))
        case bool() | Mapping() | list() | tuple():
            return json.dumps(value, default=_plain)
        case int() | float() | Decimal():
            return str(value)
        case _:
            return escape_formula(escape_controls(str(_plain(value))))


def _cell(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value))
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else escape_controls(str(value))
