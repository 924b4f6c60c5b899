"""Logging: one format for structlog's events and the standard library's records.

Modules log with `structlog.get_logger(__name__)`: an event name and fields. Whatever is written,
tracebacks included, passes `worker.text` on its way out.
"""

from __future__ import annotations

import io
import logging
import sys
from typing import TYPE_CHECKING

import structlog

from worker.text import MASK, MAX_TEXT, escape_controls, mask, shorten

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

    from worker.settings import Observability

#: Characters of a line, more than an event with one long text and a traceback needs.
MAX_LINE = 8192
#: Characters that are left of a text however many there are.
_LEAST = 64
_SECRET_FIELDS = ("password", "secret", "token", "credential", "authorization")


def configure(observability: Observability, *, stream: TextIO | None = None) -> None:
    """Send every log line of this process to `stream` (standard error) in the configured format.

    Tracebacks carry no local variables: they would carry addresses with passwords.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _hide_secret_fields,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            *shared,
            structlog.stdlib.ExtraAdder(),
            _drop_coloured_message,
            _hide_secret_fields,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *_renderers(observability, stream or sys.stderr),
            _mask_line,  # type: ignore[list-item]  # after the renderer a line is text
        ],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for previous in root.handlers[:]:
        root.removeHandler(previous)
    root.addHandler(handler)
    root.setLevel(observability.log_level.upper())
    # At "info" these two tell of every request; an operator who wants that asks for "debug".
    for chatty in ("botocore", "urllib3"):
        logging.getLogger(chatty).setLevel(max(root.level, logging.WARNING))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _renderers(observability: Observability, stream: TextIO) -> list[Processor]:
    if observability.log_format == "json":
        return [
            structlog.processors.format_exc_info,
            _Bounded(structlog.processors.JSONRenderer(default=str)),
        ]
    lines = structlog.dev.ConsoleRenderer(
        colors=_shows_colours(stream), exception_formatter=_traceback
    )
    return [_escape_control_fields, _Bounded(lines)]


def _shows_colours(stream: TextIO) -> bool:
    """Say whether it is a terminal whose user did not ask for none (https://no-color.org)."""
    from rich.console import Console

    console = Console(file=stream)
    return console.is_terminal and not console.no_color


def leave_logging_alone(**_: object) -> None:
    """Receive `celery.signals.setup_logging`: a connected receiver stops Celery's own set-up."""


def _drop_coloured_message(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # uvicorn gives its messages once more, with marks for a terminal.
    event.pop("color_message", None)
    return event


def _hide_secret_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for name in event:
        if any(word in name.lower() for word in _SECRET_FIELDS):
            event[name] = MASK
    return event


def _escape_control_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # JSON escapes what a terminal would obey; a line for people must have it escaped before.
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = escape_controls(value)
    return event


class _Bounded:
    """Renders an event as at most `MAX_LINE` characters: its texts are cut, the longer ones more.

    Log stores refuse or split longer lines, and half a line of JSON is none. Numbers and names are
    kept; nothing but a text, or what is written as one, can be long.
    """

    def __init__(self, renderer: Callable[[WrappedLogger, str, EventDict], str | bytes]) -> None:
        self._renderer = renderer

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str | bytes:
        limit = MAX_TEXT
        while True:
            cut = {name: _cut(name, value, limit) for name, value in event.items()}
            line = self._renderer(logger, method, cut)
            # JSON writes a character as up to twelve.
            if len(line) <= MAX_LINE or limit <= _LEAST:
                return line
            limit //= 2


def _cut(name: str, value: object, limit: int) -> object:
    if name == "exc_info" or value is None or isinstance(value, bool | int | float):
        return value
    text = mask(value if isinstance(value, str) else str(value))
    # A traceback is worth more than a field, and is one.
    room = limit * 2 if name == "exception" else limit
    return value if len(text) <= room else shorten(text, room)


def _traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    written = io.StringIO()
    structlog.dev.plain_traceback(written, exc_info)
    # Indented, so that a message of several lines does not look like lines of ours.
    lines = (f"  {escape_controls(line)}" for line in mask(written.getvalue()).splitlines())
    stream.write(shorten("\n".join(lines), 2 * MAX_TEXT))


def _mask_line(_logger: WrappedLogger, _method: str, line: str) -> str:
    return mask(line)
