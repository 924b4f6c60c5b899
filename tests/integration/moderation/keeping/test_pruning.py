"""Rows go after their time, unless a hold, an appeal or a model's provenance may ask for them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import errors
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from worker.moderation import pruning
from worker.moderation.pruning import prune
from worker.moderation.sql_settings import write_sql_settings
from worker.monitoring.database_gauges import GAUGES
from worker.settings import Retention, Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    import psycopg
    from sqlalchemy import Engine

DAYS = ("outbox_days", "leases_days", "removals_days", "audit_days")
DAY = Retention(**dict.fromkeys(DAYS, 1))
#: Nothing of this belongs to an image.
LOOSE = """
    INSERT INTO app.outbox (topic, payload, delivered_at, dead_at) VALUES
        ('t', '{}', now() - interval '2 days', NULL), ('t', '{}', NULL, now() - interval '2 days'),
        ('t', '{}', now(), NULL), ('t', '{}', NULL, NULL);
    INSERT INTO app.object_removals (bucket, key, removed_at) VALUES
        ('b', 'old', now() - interval '2 days'), ('b', 'new', now());
"""


def age(superuser: psycopg.Connection, days: int) -> None:
    """Make everything that happened so many days older; the audit as nobody else can."""
    by = timedelta(days=days)
    superuser.execute(
        "UPDATE app.leases SET since = since - %s, until = until - %s, closed_at = closed_at - %s",
        [by, by, by],
    )
    superuser.execute("ALTER TABLE app.audit_log DISABLE TRIGGER append_only")
    superuser.execute("UPDATE app.audit_log SET at = at - %s", [by])
    superuser.execute("ALTER TABLE app.audit_log ENABLE TRIGGER append_only")


def left(superuser: psycopg.Connection, table: str) -> dict[Any, int]:
    """Count the rows of a table by image."""
    query = f"SELECT image_id, count(*) FROM app.{table} GROUP BY 1"  # noqa: S608 - constants
    return dict(superuser.execute(query).fetchall())


def tell(settings: Settings, retention: Retention) -> None:
    """Have the owner write into the database for how long rows are kept."""
    assert settings.postgres.owner_url is not None
    told = settings.model_copy(update={"retention": retention})
    write_sql_settings(settings.postgres.owner_url.get_secret_value(), told)


@pytest.fixture(autouse=True)
def kept_for_a_day(settings: Settings, engine: Engine) -> None:  # noqa: ARG001 - the database
    """The database is told to keep rows of every kind for a day."""
    tell(settings, DAY)


def value(engine: Engine, name: str, kind: str) -> float | None:
    """Return one gauge as a scrape sees it."""
    (gauge,) = [gauge for gauge in GAUGES if gauge.name == name]
    with engine.begin() as connection:
        samples = gauge.read(connection).samples
    return next((one.value for one in samples if one.labels == {"kind": kind}), None)


def test_rows_of_no_image_go_after_their_time(
    engine: Engine, superuser: psycopg.Connection
) -> None:
    """What was delivered, given up or removed long ago goes; what waits and what is young stays."""
    superuser.execute(LOOSE)
    removed = prune(engine, DAY)
    assert (removed["outbox"], removed["removals"]) == (2, 1)
    assert superuser.execute("SELECT key FROM app.object_removals").fetchall() == [("new",)]
    assert superuser.execute(
        "SELECT delivered_at IS NOT NULL FROM app.outbox ORDER BY id"
    ).fetchall() == [(True,), (False,)]
    assert prune(engine, DAY) == dict.fromkeys(("outbox", "leases", "removals", "audit"), 0)


def test_the_history_of_an_image_stays_while_somebody_may_ask(
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    engine: Engine,
    superuser: psycopg.Connection,
) -> None:
    """Leases and states of a held, decided, appealed or taught image stay; a plain one's go."""
    plain, held, decided, taught, young = (scored(0.99) for _ in range(5))
    lead = desk(lead=True)
    lead.value("SELECT moderation.place_hold(%s, 'a court')", held)
    lead.value("SELECT moderation.decide(%s, 'real', 'real_original')", decided)
    superuser.execute(
        "WITH s AS (INSERT INTO app.dataset_snapshots (uri, decisions_up_to) VALUES ('s3://b/d', 0)"
        " RETURNING id) INSERT INTO app.snapshot_items (snapshot_id, image_id, label, why,"
        " group_key, side, weight) SELECT id, %s, 'real', 'decision', 'g', 'training', 1 FROM s",
        [taught],
    )
    age(superuser, 2)
    superuser.execute(
        "UPDATE app.leases SET since = now(), closed_at = now() WHERE image_id = %s", [young]
    )
    superuser.execute(
        "INSERT INTO app.audit_log (action, image_id, from_state, to_state)"
        " VALUES ('state', %s, 'pending', 'scored')",
        [young],
    )
    removed = prune(engine, DAY)
    assert removed["leases"] == 1
    assert set(left(superuser, "leases")) == {held, decided, taught, young}
    states = left(superuser, "audit_log")
    assert plain not in states
    assert {held, decided, taught, young} <= states.keys()
    # People's own deeds stay whatever the age; so does the verdict, and its history can be read.
    actions = superuser.execute("SELECT DISTINCT action FROM app.audit_log").fetchall()
    assert {("place_hold",), ("decide",)} <= set(actions)
    assert lead.rows("SELECT event FROM moderation.image_history WHERE image_id = %s", plain)
    # A hold is lifted: with the next pass the rest goes, too.
    lead.value("SELECT moderation.lift_hold(%s, 'it is over')", held)
    assert prune(engine, DAY)["leases"] == 0
    superuser.execute("UPDATE app.prune_cursors SET began_at = now() - interval '2 days'")
    assert prune(engine, DAY)["leases"] == 1
    assert held not in left(superuser, "leases")


def test_a_hold_on_another_row_of_the_object_and_a_second_opinion_keep_the_history(
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    engine: Engine,
    superuser: psycopg.Connection,
) -> None:
    """What is held is the stored object, and what one person thought of an image is history too."""
    held = scored(0.99, key="twice.jpg", version_id="v1")
    twin, doubted, _plain = scored(0.99), scored(0.99), scored(0.99)
    superuser.execute("UPDATE app.images SET key = 'twice.jpg' WHERE id = %s", [twin])
    desk(lead=True).value("SELECT moderation.place_hold(%s, 'a court')", held)
    desk().value("SELECT moderation.opinion(%s, 'real', 'real_original')", doubted)
    age(superuser, 2)
    assert prune(engine, DAY)["leases"] == 1
    assert left(superuser, "leases").keys() == {held, twin, doubted}
    assert {held, twin, doubted} <= left(superuser, "audit_log").keys()


def test_batches_go_on_until_nothing_is_left(
    scored: Callable[..., UUID],
    engine: Engine,
    superuser: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than a batch goes in one run, and the gauges say what is due before and after."""
    for _ in range(5):
        scored(0.1)
    age(superuser, 3)
    superuser.execute(LOOSE)
    assert value(engine, "prune_overdue_rows", "leases") == 5
    assert value(engine, "prune_overdue_rows", "outbox") == 2
    overdue_s = value(engine, "prune_overdue_seconds", "leases")
    assert overdue_s is not None
    assert 2 * 86_400 - 60 < overdue_s < 2 * 86_400 + 600
    monkeypatch.setattr(pruning, "BATCH", 2)
    assert prune(engine, DAY)["leases"] == 5
    for kind in ("outbox", "leases", "removals", "audit"):
        assert value(engine, "prune_overdue_rows", kind) == 0
        assert value(engine, "prune_overdue_seconds", kind) is None


def test_nothing_goes_unless_a_time_is_set(
    scored: Callable[..., UUID],
    engine: Engine,
    superuser: psycopg.Connection,
    settings: Settings,
) -> None:
    """Without days there is no pruning of that kind, however old its rows are."""
    scored(0.1)
    age(superuser, 3000)
    kept = Retention(outbox_days=None, leases_days=None, removals_days=None, audit_days=None)
    tell(settings, kept)
    assert not any(prune(engine, DAY).values())
    assert Retention().audit_days is None


def test_the_login_of_a_worker_cannot_have_younger_rows_removed(
    scored: Callable[..., UUID], engine: Engine, superuser: psycopg.Connection
) -> None:
    """What a worker's settings say of the time changes nothing, nor can it change what counts."""
    scored(0.1)
    assert not any(prune(engine, Retention(**dict.fromkeys(DAYS, 1e-9))).values())
    assert left(superuser, "audit_log")
    with engine.connect() as connection, pytest.raises(ProgrammingError, match="permission denied"):
        connection.execute(text("UPDATE app.config SET value = '0' WHERE name = 'audit_days'"))


def test_nobody_but_pruning_deletes_from_the_audit(
    scored: Callable[..., UUID], engine: Engine, superuser: psycopg.Connection
) -> None:
    """The service's login may not, whatever it sets, and the owner's rows are append-only."""
    scored(0.1)
    with pytest.raises(errors.InsufficientPrivilege):
        superuser.execute("DELETE FROM app.audit_log")
    with engine.connect() as connection:
        connection.execute(text("SELECT set_config('unlatent.pruning', 'on', true)"))
        allowed = connection.scalar(text("SELECT has_table_privilege('app.audit_log', 'DELETE')"))
    assert not allowed
