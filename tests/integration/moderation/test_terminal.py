"""What uploaders choose cannot take over a moderator's terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import URL
from typer.testing import CliRunner

from tests.integration.ingest.test_injection import TERMINAL
from worker.cli import build_app
from worker.cli.context import Context

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    import pytest


def test_commands_print_hostile_names_harmlessly(
    desk: Callable[..., Any], scored: Callable[..., UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lists and histories that moderators see hold no character that a terminal obeys."""
    image = scored(0.97, source=TERMINAL, uploader=TERMINAL, key=f"{TERMINAL}.jpg")
    info = desk(lead=True).connection.info
    url = URL.create(
        "postgresql+psycopg", info.user, info.password, info.host, info.port, info.dbname
    )
    monkeypatch.setenv("UNLATENT_POSTGRES__URL", url.render_as_string(hide_password=False))
    shown = ""
    for command in (["verdicts"], ["verdicts", "--image", str(image)], ["review", "list"]):
        result = CliRunner().invoke(build_app(), command, obj=Context())
        assert result.exception is None
        shown += result.stdout
    assert shown.count(str(image)) >= 2
    assert "\\x1b[2J" in shown
    assert shown.replace("\n", "").isprintable()
