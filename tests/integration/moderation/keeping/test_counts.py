"""Counts by day say what the tables say, at every moment and whoever changes what."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import text

from tests.support.waiting import eventually
from worker.ledger.interface import Upload
from worker.ledger.postgres import PostgresLedger
from worker.moderation.daily_counts import keep_counts

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import Engine

    from worker.localstack import LocalStack

#: What the rows of each table come to, and the columns that a change of the layout must not touch.
SUMS = {
    "verdict_counts": (
        "SELECT day, source, model_version, policy_id, tier, label, held, decision, overturns, "
        "audited, sum(n) FROM app.verdict_counts GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 "
        "HAVING sum(n) <> 0 ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
    ),
    "source_counts": (
        "SELECT day, source, sum(uploads), sum(failed), sum(decisions), sum(overturns), "
        "sum(appeals) FROM app.source_counts GROUP BY 1, 2 "
        "HAVING (sum(uploads), sum(failed), sum(decisions), sum(overturns), sum(appeals)) "
        "<> (0, 0, 0, 0, 0) ORDER BY 1, 2"
    ),
    "flag_counts": (
        "SELECT source, sum(images), sum(flagged) FROM app.flag_counts GROUP BY 1 "
        "HAVING (sum(images), sum(flagged)) <> (0, 0) ORDER BY 1"
    ),
}

#: The same from the tables themselves, as the views were written before there were counts.
BY_HAND = (
    "SELECT (v.scored_at AT TIME ZONE 'UTC')::date, i.source, v.label, v.tier, d.decision, "
    "count(*) FROM app.verdicts v JOIN app.images i ON i.id = v.image_id LEFT JOIN LATERAL "
    "(SELECT x.decision FROM app.decisions x WHERE x.image_id = v.image_id "
    "ORDER BY x.id DESC LIMIT 1) d ON true WHERE v.role = 'champion' "
    "GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5"
)
COUNTED = (
    "SELECT day, source, label, tier, decision, sum(n)::bigint FROM app.verdict_counts "
    "GROUP BY 1, 2, 3, 4, 5 HAVING sum(n) <> 0 ORDER BY 1, 2, 3, 4, 5"
)


def sums(superuser: psycopg.Connection) -> dict[str, list[Any]]:
    """Return what every table of counts says now."""
    return {name: superuser.execute(query).fetchall() for name, query in SUMS.items()}


@pytest.fixture
def eventful(
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    engine: Engine,
    superuser: psycopg.Connection,
) -> list[UUID]:
    """Images with everything that a count may have to follow."""
    lead, other = desk(lead=True), desk()
    images = [scored(0.97, source=source) for source in ("web", "web", "forum")]
    images += [scored(0.1), scored(0.1, source="forum"), scored(0.6)]
    real = "SELECT moderation.{}(%s, 'real', 'real_original')"
    generated = "SELECT moderation.{}(%s, 'generated', 'generated_artefacts')"
    other.value(generated.format("decide"), images[0])
    lead.value(real.format("overturn"), images[0])
    other.value(real.format("decide"), images[1])
    other.value(real.format("decide"), images[3])
    appeal = other.value("SELECT moderation.open_appeal(%s, 'mine')", images[1])
    lead.value("SELECT moderation.close_appeal(%s, 'overturned', 'generated_artefacts')", appeal)
    # The audit draws an image that was decided already.
    superuser.execute(
        "INSERT INTO app.reviews (image_id, source, queue, uncertainty, reach, audit_share, "
        "rank_at) VALUES (%s, 'web', 'audit', 0, 1, 0.5, now()) "
        "ON CONFLICT (image_id) DO UPDATE SET audit_share = 0.5",
        [images[3]],
    )
    # A challenger's verdict becomes the champion's.
    superuser.execute(
        "INSERT INTO app.verdicts (image_id, lease_id, model_version, role, score, label, branches,"
        " decided_by, operating_point, prior, device, dtype) SELECT image_id, lease_id, 'model-2',"
        " 'shadow', 0.95, 'generated', branches, decided_by, operating_point, prior, device, dtype"
        " FROM app.verdicts WHERE image_id = ANY (%s)",
        [images[:2]],
    )
    superuser.execute("UPDATE app.verdicts SET role = 'champion' WHERE model_version = 'model-2'")
    # Hooks name other sources afterwards; an image fails, another one comes back.
    superuser.execute("UPDATE app.images SET source = 'shop' WHERE id = ANY (%s)", [images[1:4]])
    ledger = PostgresLedger(engine)
    uploads = [Upload(bucket="uploads", key=f"k{n}", etag="e", source="web") for n in range(2)]
    lost, found = (registered.image_id for registered in ledger.register(uploads))
    failed = "UPDATE app.images SET state = 'failed', reason = 'r' WHERE id = ANY (%s)"
    superuser.execute(failed, [[lost, found]])
    superuser.execute(
        "UPDATE app.images SET state = 'pending', reason = NULL, source = 'shop' WHERE id = %s",
        [found],
    )
    return images


@pytest.mark.usefixtures("eventful")
def test_counts_are_those_of_the_tables(engine: Engine, superuser: psycopg.Connection) -> None:
    """Triggers, merged rows, a recount and a query by hand come to the same."""
    assert superuser.execute(COUNTED).fetchall() == superuser.execute(BY_HAND).fetchall() != []
    followed = sums(superuser)
    assert all(followed.values())
    assert keep_counts(engine) > 0
    assert sums(superuser) == followed
    assert superuser.execute("SELECT count(*) FROM app.verdict_counts WHERE loose").fetchone() == (
        0,
    )
    superuser.execute("SELECT app.recount()")
    assert sums(superuser) == followed
    assert keep_counts(engine) == 0


def test_late_news_changes_a_closed_day(
    eventful: list[UUID],
    desk: Callable[..., Any],
    engine: Engine,
    superuser: psycopg.Connection,
) -> None:
    """A decision on a verdict of last month counts in that month's row."""
    superuser.execute("UPDATE app.verdicts SET scored_at = now() - interval '40 days'")
    keep_counts(engine)
    someone = desk()
    said = "SELECT week, confirmed FROM moderation.model_quality WHERE model_version = 'model-1'"
    ((week, before),) = someone.rows(f"{said} AND source = 'shop' AND confirmed > 0")
    someone.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", eventful[2])
    assert someone.rows(f"{said} AND source = 'shop' AND confirmed > 0") == [(week, before + 1)]


def test_medians_of_closed_days_are_kept(
    scored: Callable[..., UUID],
    desk: Callable[..., Any],
    superuser: psycopg.Connection,
    engine: Engine,
) -> None:
    """Closed days keep the median that the view computed of them; today's is computed."""
    images = [scored(0.97) for _ in range(3)]
    superuser.cursor().executemany(
        "INSERT INTO app.decisions (image_id, moderator, decision, reason_code, why_reviewed,"
        " claimed_at, created_at) VALUES (%s, 'm', 'real', 'real_original', 'flagged',"
        " now() - %s * interval '1 day' - %s * interval '1 second', now() - %s * interval '1 day')",
        [(images[0], 2, 10, 2), (images[1], 2, 30, 2), (images[2], 0, 50, 0)],
    )
    asked = (
        "SELECT median_seconds_to_decision FROM moderation.daily_summary"
        " WHERE decisions > 0 ORDER BY day"
    )
    someone = desk()
    assert [row[0] for row in someone.rows(asked)] == [pytest.approx(20), pytest.approx(50)]
    keep_counts(engine)
    assert superuser.execute("SELECT seconds FROM app.decision_medians").fetchall() == [
        (pytest.approx(20),)
    ]
    assert [row[0] for row in someone.rows(asked)] == [pytest.approx(20), pytest.approx(50)]
    # A hook names the source of a day that is closed.
    superuser.execute("UPDATE app.images SET source = 'shop' WHERE id = %s", [images[0]])
    medians = "SELECT source, median_seconds_to_decision FROM moderation.daily_summary"
    assert dict(someone.rows(f"{medians} WHERE decisions > 0 AND day < current_date")) == {
        "shop": pytest.approx(10),
        "web": pytest.approx(30),
    }


def test_counting_anew_beside_merging_counts_once(
    scored: Callable[..., UUID],
    superuser: psycopg.Connection,
    stack: LocalStack,
    database: str,
) -> None:
    """What beat is merging while somebody counts anew is not there twice afterwards."""
    scored(0.97)
    before = sums(superuser)
    merging = psycopg.connect(stack.postgres.dsn(database))
    with ThreadPoolExecutor(1) as pool, merging:
        merging.execute("SELECT app.keep_counts()")
        counting = pool.submit(superuser.execute, "SELECT app.recount()")
        waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
        eventually(
            lambda: merging.execute(waits, [superuser.info.backend_pid]).fetchone() == (True,),
            what="the waiting of the count",
        )
        merging.commit()
        counting.result(timeout=60)
    assert sums(superuser) == before


def test_decisions_say_whether_they_contradict(
    scored: Callable[..., UUID], desk: Callable[..., Any]
) -> None:
    """Documented query 9 finds a decision against the label, and not one that agrees."""
    right, wrong = scored(0.97), scored(0.97)
    someone = desk()
    someone.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", right)
    someone.value("SELECT moderation.decide(%s, 'real', 'real_original')", wrong)
    found = someone.rows("SELECT image_id FROM moderation.decisions WHERE contradicts")
    assert found == [(wrong,)]


def test_the_service_may_keep_counts_and_not_change_them(engine: Engine) -> None:
    """The worker's login has no right to the tables themselves."""
    keep_counts(engine)
    with engine.connect() as connection:
        for table in SUMS:
            allowed = connection.scalar(
                text("SELECT has_table_privilege(:table, 'INSERT, UPDATE, DELETE')"),
                {"table": f"app.{table}"},
            )
            assert not allowed
