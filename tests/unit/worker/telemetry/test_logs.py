"""Logging: one format for all, and no secrets in it."""

from __future__ import annotations

import io
import json
import logging
import re
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from worker.settings import Observability
from worker.telemetry import logs
from worker.text import mask

if TYPE_CHECKING:
    from collections.abc import Iterator

REDIS_URL = "redis://:hunter2@127.0.0.1:6379/0"
POSTGRES_URL = "postgresql+psycopg://app:hunter2@db.example/unlatent"


@pytest.fixture(autouse=True)
def _structlog_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def stream() -> io.StringIO:
    """What was logged."""
    return io.StringIO()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return the logged JSON lines."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_events_and_records_share_one_format(stream: io.StringIO) -> None:
    """A structlog event and a standard record come out with the same keys."""
    logs.configure(Observability(), stream=stream)
    structlog.get_logger("ours").info("scored", image_id="7")
    logging.getLogger("theirs").warning("lost %s of %d", "one", 2, extra={"queue": "score"})
    ours, theirs = lines(stream)
    assert ours.pop("timestamp")
    assert theirs.pop("timestamp")
    assert ours == {"event": "scored", "image_id": "7", "level": "info", "logger": "ours"}
    assert theirs == {
        "event": "lost one of 2",
        "queue": "score",
        "level": "warning",
        "logger": "theirs",
    }


def test_a_message_is_not_repeated_for_terminals(stream: io.StringIO) -> None:
    """What uvicorn adds to a record for a terminal with colours stays out of the line."""
    logs.configure(Observability(), stream=stream)
    coloured = {"color_message": "Finished \x1b[36m%d\x1b[0m"}
    logging.getLogger("uvicorn.error").warning("Finished %d", 7, extra=coloured)
    (line,) = lines(stream)
    assert line.keys() == {"event", "level", "logger", "timestamp"}
    assert line["event"] == "Finished 7"


def test_bound_context_reaches_every_line(stream: io.StringIO) -> None:
    """What a task binds stands in its own lines and in those of libraries."""
    logs.configure(Observability(), stream=stream)
    with structlog.contextvars.bound_contextvars(image_id="7"):
        structlog.get_logger("ours").info("scored")
        logging.getLogger("theirs").error("lost")
    assert [line["image_id"] for line in lines(stream)] == ["7", "7"]


def test_the_level_holds_for_both(stream: io.StringIO) -> None:
    """Lines below the configured level are dropped wherever they come from."""
    logs.configure(Observability(log_level="warning"), stream=stream)
    structlog.get_logger("ours").info("quiet")
    logging.getLogger("theirs").info("quiet")
    structlog.get_logger("ours").warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_secret_is_written(stream: io.StringIO, log_format: str) -> None:
    """Passwords in messages, fields, library records and tracebacks are masked."""
    logs.configure(Observability.model_validate({"log_format": log_format}), stream=stream)
    password = "hunter2"  # a local variable, as tracebacks with locals would show
    structlog.get_logger("ours").info("connected", url=REDIS_URL, secret_access_key=password)
    logging.getLogger("theirs").info("connected to %s", POSTGRES_URL, extra={"token": password})
    try:
        raise ConnectionError(REDIS_URL)
    except ConnectionError:
        structlog.get_logger("ours").exception("lost")
        logging.getLogger("theirs").exception("lost")
    text = stream.getvalue()
    assert text.count("ConnectionError") >= 2
    assert "db.example" in text
    assert "hunter2" not in text.replace('password = "hunter2"', "")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_others_wrote_obeys_no_terminal_and_forges_no_line(
    stream: io.StringIO, log_format: str
) -> None:
    """Control characters in events, fields, records and tracebacks are written as escapes."""
    logs.configure(Observability.model_validate({"log_format": log_format}), stream=stream)
    hostile = "\x1b[2J\x9b31m\N{RIGHT-TO-LEFT OVERRIDE}\r\nforged"
    structlog.get_logger("ours").info("scored", key=hostile)
    logging.getLogger("theirs").warning("lost %s", hostile)
    try:
        raise ValueError(hostile)
    except ValueError:
        structlog.get_logger("ours").exception("failed")
    text = stream.getvalue()
    assert not any(line.startswith("forged") for line in text.splitlines())
    # What is left are the colours of our own lines for people.
    ours = re.sub("\x1b\\[[0-9;]*m", "", text)
    assert ours.replace("\n", "").isprintable()
    assert "[2J" in ours


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (REDIS_URL, "redis://:***@127.0.0.1:6379/0"),
        (f"two: {REDIS_URL}, {POSTGRES_URL}", None),
        ("https://s3.example/b/k?X-Amz-Signature=hunter2&x=1", None),
        ("https://example.org/a:b@c is a path", "https://example.org/a:b@c is a path"),
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
    ],
)
def test_masking_hides_passwords_and_leaves_the_rest(text: str, masked: str | None) -> None:
    """Passwords of URLs and signatures go; hosts, ports and paths stay."""
    assert "hunter2" not in mask(text)
    if masked is not None:
        assert mask(text) == masked


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("letter", ["x", "é", "\N{GRINNING FACE}", "\x1b", "\n", '"'])
def test_no_line_is_longer_than_a_log_store_takes(
    stream: io.StringIO, log_format: str, letter: str
) -> None:
    """Long texts, objects, lists and tracebacks are cut in the middle, which says how much went."""
    logs.configure(Observability.model_validate({"log_format": log_format}), stream=stream)
    long = f"began{letter * 50_000}ended"
    structlog.get_logger("ours").info("read", error=long, keys=[long] * 3, size=50_010)
    logging.getLogger("theirs").warning("%s", long, extra={"body": {"a": long}})
    try:
        raise ValueError(long)
    except ValueError:
        structlog.get_logger("ours").exception("failed", error=ValueError(long))
        logging.getLogger("theirs").exception(long)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= logs.MAX_LINE
    assert len(text) <= 4 * logs.MAX_LINE
    assert text.count("characters cut]") >= 8
    assert text.count("began") >= 8
    assert text.count("ended") >= 8
    if log_format == "json":
        first, *_ = lines(stream)
        assert first["size"] == 50_010
        cut = re.fullmatch(r"(.*)…\[(\d+) characters cut\]…(.*)", first["error"], re.DOTALL)
        assert cut is not None
        assert len(cut[1]) + int(cut[2]) + len(cut[3]) == len(long)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_cut_through_a_secret_hides_it(stream: io.StringIO, log_format: str) -> None:
    """Wherever the cut falls, no part of a password is written."""
    logs.configure(Observability.model_validate({"log_format": log_format}), stream=stream)
    for before in range(960, 1010):
        text = f"{'x' * before}redis://:hunter2@cache.example/0{'y' * 5000}"
        structlog.get_logger("ours").info("lost", error=text)
        logging.getLogger("theirs").info(text)
    assert "hunter" not in stream.getvalue()
    assert ":h" not in stream.getvalue().replace(":h\\", "")


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        """Say that it is one."""
        return True


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_colours_are_for_terminals_whose_user_wants_them(
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,  # noqa: FBT001 - a parameter of the test
    no_color: str,
    coloured: bool,  # noqa: FBT001 - likewise
) -> None:
    """Lines for people have colours on a terminal, and none with `NO_COLOR` or in a file."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    stream = Terminal() if terminal else io.StringIO()
    logs.configure(Observability(log_format="console"), stream=stream)
    structlog.get_logger("ours").info("image_scored")
    assert "image_scored" in stream.getvalue()
    assert ("\x1b[" in stream.getvalue()) is coloured
