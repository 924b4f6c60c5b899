"""Pages from templates: escaped, with the same words for times and scores everywhere."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from worker.console.preferences import COOKIE, Preferences
from worker.text import escape_controls

if TYPE_CHECKING:
    from fastapi import Request

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ago": ago, "moment": moment, "signed": signed, "plain": plain}
    return environment


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a template for a request; `me` is among the values where somebody is signed in."""
    values = {
        "path": request.url.path,
        "look": Preferences.read(request.cookies.get(COOKIE)),
        "me": None,
        "has_form": request.app.state.identity.has_form,
        **values,
    }
    return HTMLResponse(_ENVIRONMENT.get_template(template).render(values), status)


def moment(at: datetime | None) -> str:
    """Write a time in UTC, to the minute."""
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def ago(at: datetime | None) -> str:
    """Say how long ago something was: "3 min", "5 h", "2 d"."""
    if at is None:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - at).total_seconds())
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def signed(number: float | None) -> str:
    """Write a number with its sign, as distances and logits are."""
    return "" if number is None else f"{number:+.1f}"


def plain(text: object) -> str:
    """Write text of strangers: characters that change its direction or hide are shown as codes."""
    return "" if text is None else escape_controls(str(text))


_ENVIRONMENT = _environment()
