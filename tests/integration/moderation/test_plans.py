"""What moderators do all day runs on named indexes, however many verdicts there are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.sql_scale import generate
from worker.console.pages.appeals import _APPEALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

#: Statement, the beginnings of the names of indexes that it has to use, and the most 8-KiB
#: buffers that it may touch.
PLANS = {
    "first page of the queue": (
        "SELECT * FROM moderation.review_queue LIMIT 50",
        {"ix_reviews_open", "pk_images", "pk_verdicts"},
        1500,
    ),
    "a queue's first page": (
        "SELECT * FROM moderation.review_queue WHERE queue = 'unsure' LIMIT 50",
        {"ix_reviews_open"},
        1500,
    ),
    "a page of one queue and source": (
        (
            "SELECT * FROM moderation.review_queue WHERE queue = 'unsure' AND source = 'source-3' "
            "LIMIT 51"
        ),
        {"ix_reviews_open", "pk_images", "pk_verdicts"},
        1500,
    ),
    "a page of what nobody has claimed": (
        (
            "SELECT * FROM moderation.review_queue "
            "WHERE (claimed_until IS NULL OR claimed_until < now()) LIMIT 51"
        ),
        {"ix_reviews_open", "pk_images", "pk_verdicts"},
        1500,
    ),
    "first page of verdicts": (
        "SELECT * FROM moderation.verdicts LIMIT 50",
        {"ix_verdicts_scored_at", "ix_verdicts_champion", "pk_images"},
        1500,
    ),
    "a filtered page, ordered by hand": (
        (
            "SELECT image_id, score FROM moderation.verdicts "
            "WHERE label = 'generated' AND scored_at > now() - interval '2 hours' "
            "ORDER BY scored_at DESC LIMIT 50"
        ),
        {"ix_verdicts_notable", "ix_verdicts_champion"},
        3000,
    ),
    "a page filtered by label and source": (
        (
            "SELECT image_id, score FROM moderation.verdicts "
            "WHERE label = 'generated' AND source = 'source-3' LIMIT 50"
        ),
        {"ix_verdicts_notable", "pk_images"},
        6000,
    ),
    "a page filtered by tier and source": (
        (
            "SELECT image_id, score FROM moderation.verdicts "
            "WHERE tier IN ('flag', 'flag_high') AND source = 'source-3' LIMIT 50"
        ),
        {"ix_verdicts_notable", "pk_images"},
        9000,
    ),
    "history of one image": (
        (
            "SELECT * FROM moderation.image_history "
            "WHERE image_id = '00000000-0000-4000-8000-000000000101'"
        ),
        {"pk_images", "ix_decisions_image_id", "ix_claims_image_id", "ix_audit_log_image_id"},
        200,
    ),
    "a moderator's last decisions": (
        (
            "SELECT * FROM moderation.decisions WHERE moderator = 'kim' "
            "ORDER BY decision_id DESC LIMIT 5"
        ),
        {"ix_decisions_moderator", "pk_images"},
        200,
    ),
    "counts of the queue": (
        "SELECT * FROM moderation.queue_summary",
        {"ix_reviews_open"},
        2500,
    ),
    "what an uploader sent": (
        "SELECT image_id, label FROM moderation.verdicts WHERE uploader = 'u101' LIMIT 100",
        {"ix_images_uploader", "ix_verdicts_champion"},
        # Of each of the 50 images: itself, its verdict, twice four levels of the verdicts' index,
        # and three of the decisions'.
        650,
    ),
    "verdicts of the same bytes": (
        "SELECT image_id FROM moderation.verdicts WHERE sha256 = lpad(to_hex(101), 64, '0')",
        {"ix_images_sha256", "ix_verdicts_champion"},
        100,
    ),
    "decisions that contradict": (
        (
            "SELECT image_id FROM moderation.decisions "
            "WHERE contradicts AND created_at > now() - interval '30 days' LIMIT 100"
        ),
        {"ix_decisions_contradicting"},
        100,
    ),
    # Of a hundred closed ones and of those that are open, image, decision and opening.
    "open appeals, and the last closed": (_APPEALS, set(), 5000),
    "the quality of models": ("SELECT * FROM moderation.model_quality", set(), 500),
    # Of the day that is not over, every decision and its image: 1,512 at the end of the day.
    "what happened each day": (
        "SELECT * FROM moderation.daily_summary",
        {"ix_decisions_created_at"},
        7000,
    ),
    "how each source does": ("SELECT * FROM moderation.source_summary", set(), 4000),
    "verdict of one image": (
        "SELECT * FROM moderation.verdicts WHERE image_id = '00000000-0000-4000-8000-000000000101'",
        {"pk_images", "ix_verdicts_champion"},
        100,
    ),
}

#: What `claim_next` runs inside, for EXPLAIN cannot look into a function.
CLAIM = (
    "SELECT r.image_id FROM app.reviews r WHERE r.closed_at IS NULL "
    "AND (r.claimed_until IS NULL OR r.claimed_until < clock_timestamp()) "
    "AND (NULL::text IS NULL OR r.queue = NULL) AND (true OR r.source = ANY ('{}'::text[])) "
    "AND 'm' IS DISTINCT FROM (SELECT s.moderator FROM app.skips s "
    "WHERE s.image_id = r.image_id AND s.moderator = 'm') "
    "AND 'm' IS DISTINCT FROM (SELECT d.moderator FROM app.decisions d "
    "WHERE d.image_id = r.image_id ORDER BY d.id DESC LIMIT 1) "
    "ORDER BY r.rank_at LIMIT 10 FOR UPDATE SKIP LOCKED"
)

#: Functions, and the most buffers that one call may touch.
IMAGE = "'00000000-0000-4000-8000-000000000101'"
CALLS = {
    "recall()": 500,
    "claim_next(10)": 5000,
    "claim_next(10, 'unsure', '{source-3}')": 5000,
    f"open_image({IMAGE})": 500,
    f"look_blind({IMAGE})": 500,
    f"same_uploader({IMAGE})": 500,
}
#: Functions over a table that is read by its index alone, however many keys are looked up.
SIMILAR = (f"similar_images({IMAGE})", f"similar_images({IMAGE}, 31, 12, true)")


@pytest.fixture(params=[100_000, pytest.param(5_000_000, marks=pytest.mark.full)])
def full_database(request: pytest.FixtureRequest, superuser: psycopg.Connection) -> int:
    """A database with that many verdicts."""
    generate(superuser, request.param)
    return int(request.param)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Walk a plan."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def explain(connection: psycopg.Connection, statement: str) -> tuple[list[dict[str, Any]], int]:
    """Run a statement and return its plan's nodes and the buffers that it touched."""
    row = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}").fetchone()
    assert row is not None
    (explained,) = row[0] if not isinstance(row[0], str) else json.loads(row[0])
    top = explained["Plan"]
    return list(nodes(top)), top["Shared Hit Blocks"] + top["Shared Read Blocks"]


def assert_plan(
    found: list[dict[str, Any]], buffers: int, indexes: set[str], most: int, name: str
) -> None:
    """Check one plan: no sequential scan of a table that grows, these indexes, so many buffers."""
    scanned = {
        node["Relation Name"]
        for node in found
        if node["Node Type"] == "Seq Scan" and node["Actual Loops"]
    }
    growing = {"images", "verdicts", "reviews", "decisions", "claims", "audit_log", "leases"}
    empty = {
        node["Relation Name"]
        for node in found
        if node["Node Type"] == "Seq Scan"
        and node["Actual Rows"] == 0
        and node.get("Rows Removed by Filter", 0) == 0
    }
    assert not (scanned & growing) - empty, name
    used = {node.get("Index Name", "") for node in found}
    for wanted in indexes:
        assert any(index.startswith(wanted) for index in used), (name, wanted, used)
    assert buffers <= most, (name, buffers)


@pytest.mark.timeout(900)
def test_plans_stay_bounded(
    full_database: int, desk: Callable[..., Any], superuser: psycopg.Connection
) -> None:
    """Pages, claims and histories touch a bounded number of buffers and never scan a table."""
    assert full_database
    someone = desk("source-1", "source-3")
    everybody = desk()
    for name, (statement, indexes, most) in PLANS.items():
        for asking in (everybody, someone):
            found, buffers = explain(asking.connection, statement)
            assert_plan(found, buffers, indexes, 8 * most if asking is someone else most, name)
    # The first of the queue were skipped by whoever asks, and by forty others.
    superuser.execute(
        "INSERT INTO app.skips (image_id, moderator) SELECT image_id, who FROM ("
        "SELECT image_id FROM app.reviews WHERE closed_at IS NULL ORDER BY rank_at LIMIT 200) r, "
        "(SELECT 'm' UNION ALL SELECT 'm' || n FROM generate_series(1, 40) n) people (who)"
    )
    superuser.execute("ANALYZE app.skips")
    found, buffers = explain(superuser, CLAIM)
    assert_plan(
        found, buffers, {"ix_reviews_open", "pk_skips", "ix_decisions_image_id"}, 1500, "claim_next"
    )
    for call, most in CALLS.items():
        query = f"SELECT * FROM moderation.{call}"  # noqa: S608 - constants
        found, buffers = explain(everybody.connection, query)
        assert buffers <= most, (call, buffers)
    for call in SIMILAR:
        with everybody.connection.transaction():
            found = everybody.rows(f"SELECT distance FROM moderation.{call}")  # noqa: S608 - constants
            assert found == [(0,), (0,), (0,)]  # four uploads look alike
            scans = (
                "SELECT seq_scan FROM pg_stat_xact_user_tables"
                " WHERE relname = 'near_duplicate_keys'"
            )
            assert everybody.value(scans) == 0, call
