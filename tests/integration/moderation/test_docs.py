"""Every query of docs/moderators.md runs as a moderator and answers what it promises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from detection.intake.provenance import Exif, ProvenanceRecord
from worker.ledger import provenance

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

DOCS = Path(__file__).parents[3] / "docs" / "moderators.md"
QUERIES = re.findall(
    r"^### (\d+)\. [^\n]+\n\n```sql\n(.+?)```", DOCS.read_text(), re.DOTALL | re.MULTILINE
)


@pytest.fixture
def busy_week(
    desk: Callable[..., Any], scored: Callable[..., Any], engine: Engine
) -> dict[str, Any]:
    """Images of two sources, decisions, an overturn, an open appeal and one claimed image."""
    lead, clerk = desk(lead=True), desk()
    wrong, right, waiting = scored(0.97, pdq=bytes(range(32))), scored(0.99), scored(0.95)
    scored(0.96, source="forum")
    scored(0.1, pdq=bytes([1, *range(1, 32)]))
    with engine.begin() as connection:
        found = ProvenanceRecord(exif=Exif(make="Canon", model="EOS R6"))
        provenance.store_provenance(connection, {wrong: found})
    clerk.rows("SELECT * FROM moderation.claim_next(100)")
    clerk.value("SELECT moderation.release(%s)", waiting)
    clerk.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", wrong)
    clerk.value("SELECT moderation.decide(%s, 'generated', 'generated_declared')", right)
    lead.value("SELECT moderation.overturn(%s, 'real', 'real_original')", wrong)
    lead.value("SELECT moderation.open_appeal(%s, 'mine')", right)
    return {"lead": lead, "clerk": clerk, "image": wrong, "waiting": waiting}


def test_there_are_fifteen() -> None:
    """The numbering has no gap."""
    assert [int(number) for number, _ in QUERIES] == list(range(1, 16))


@pytest.mark.parametrize(("number", "query"), QUERIES, ids=[number for number, _ in QUERIES])
def test_the_query_answers(busy_week: dict[str, Any], number: str, query: str) -> None:
    """Run as a moderator, the query brings at least one row."""
    asking = busy_week["clerk" if number == "2" else "lead"]
    bound = (
        query.replace("%", "%%").replace(":image", "%(image)s").replace(":uploader", "%(uploader)s")
    )
    rows = asking.connection.execute(
        bound, {"image": busy_week["image"], "uploader": "anna@example.com"}
    ).fetchall()
    assert rows, number


def test_answers_are_right(busy_week: dict[str, Any]) -> None:
    """Spot checks against what the fixture did: history, disagreement, neighbours, work done."""
    queries = dict(QUERIES)
    lead, image = busy_week["lead"], busy_week["image"]

    def ask(number: str) -> list[Any]:
        return lead.connection.execute(
            queries[number].replace(":image", "%(image)s").replace("%'", "%%'"), {"image": image}
        ).fetchall()

    assert {row[1] for row in ask("5")} >= {"upload", "verdict", "decision", "overturn"}
    assert [row[1] for row in ask("6")] == [1]
    assert [row[0] for row in ask("9")] == [image]
    assert [row[2] for row in ask("10")] == ["Canon"]
    assert [row[:2] for row in ask("13")] == [(busy_week["clerk"].name, 2)]
    (today, *_) = [row for row in ask("14") if row[1] == "web"]
    assert today[6:9] == (3, 1, 1)
