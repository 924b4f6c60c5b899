"""What people and training have open, as the bridge's page of metrics says it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from worker.ledger.tables_training import TrainingRun
from worker.moderation import policies
from worker.moderation.flagging_breaker import check_breakers
from worker.moderation.policies import PolicyDraft
from worker.moderation.sql_settings import write_sql_settings
from worker.monitoring.database_gauges import GAUGES, RUN_STATES, DatabaseCollector
from worker.retraining.runs import Ending, Runs
from worker.settings import Retention, Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    import psycopg
    from sqlalchemy import Engine


def page(engine: Engine) -> Callable[..., float | None]:
    """Read once; return how a scrape sees one gauge."""
    registry, gauges = CollectorRegistry(), DatabaseCollector(engine)
    gauges.read()
    registry.register(gauges)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"unlatent_{name}", labels)

    return value


def test_an_empty_database_has_zeros_and_no_ages(engine: Engine) -> None:
    """Counts are there from the start, so that a rule can compare; ages of nothing are not."""
    value = page(engine)
    assert value("review_images", queue="appeal") == 0
    assert value("outbox_messages") == 0
    assert value("training_runs", state="failed") == 0
    for reading in GAUGES:
        if reading.name.endswith("_seconds"):
            assert not any(value(reading.name, queue=queue) for queue in ("flagged", "appeal"))
            assert value(reading.name) is None


def test_reviews_and_decisions_are_counted(
    desk: Callable[..., Any], scored: Callable[..., UUID], engine: Engine
) -> None:
    """Three flagged images: one decided against the verdict, one claimed, all three were queued."""
    for probability in (0.97, 0.96, 0.95):
        scored(probability)
    someone = desk()
    (first, _), _ = someone.rows("SELECT image_id, label FROM moderation.claim_next(2, 'flagged')")
    someone.value("SELECT moderation.decide(%s, 'real', 'real_original')", first)
    value = page(engine)
    assert value("review_images", queue="flagged") == 2
    assert value("review_claims") == 1
    assert value("decisions_last_day", verdict="generated", decision="real") == 1
    age_s = value("review_oldest_seconds", queue="flagged")
    assert age_s is not None
    assert 0 < age_s < 3600


def test_a_stopped_source_is_named(scored: Callable[..., UUID], engine: Engine) -> None:
    """The breaker of a source that flags everything shows as 1 under the source's name."""
    policies.activate(
        engine,
        PolicyDraft(
            source="web",
            review=0.5,
            flag=0.9,
            flag_high=0.98,
            max_flag_share=0.3,
            breaker_images=4,
        ),
        reason="band",
    )
    for _ in range(5):
        scored(0.95)
    assert [trip.source for trip in check_breakers(engine)] == ["web"]
    assert page(engine)("breakers_open", source="web") == 1


def test_a_request_to_erase_ages(
    desk: Callable[..., Any], scored: Callable[..., UUID], engine: Engine
) -> None:
    """From the request until the rows are gone."""
    image = scored(0.2)
    desk(lead=True).value("SELECT moderation.request_erasure(%s, 'asked by its owner')", image)
    assert (page(engine)("erasures_oldest_seconds") or 0) > 0


def test_a_run_shows_its_age_its_lease_and_its_stages(engine: Engine) -> None:
    """While it runs; its end leaves a count by state and the time of the last success."""
    assert set(RUN_STATES) == {"running", *Ending}
    checks = [str(getattr(c, "sqltext", "")) for c in TrainingRun.__table__.constraints]
    assert any(all(f"'{state}'" in check for state in RUN_STATES) for check in checks)
    runs = Runs(engine, holder="a", lease=timedelta(seconds=-60))
    run = runs.begin("calendar:1", trigger="calendar")
    assert run is not None
    runs.finish_stage(run.id, "collect", {"images": 3}, None)
    value = page(engine)
    assert value("training_runs", state="running") == 1
    assert value("training_stages") == 1
    assert (value("training_run_seconds") or 0) > 0
    assert (value("training_lease_seconds") or 0) < -50
    runs.end(run.id, Ending.FINISHED)
    value = page(engine)
    assert value("training_runs", state="finished") == 1
    assert value("training_lease_seconds") is None
    assert value("training_finished_timestamp_seconds") is not None


def test_what_is_kept_beyond_its_time_is_counted(
    scored: Callable[..., UUID],
    desk: Callable[..., Any],
    engine: Engine,
    settings: Settings,
    superuser: psycopg.Connection,
) -> None:
    """By kind, with the age of the oldest; nothing is late without a limit or under a hold."""
    images = [scored(evidence_uri="s3://b/k") for _ in range(4)]
    for days, image in zip((1, 93, 95, 99), images, strict=True):
        for table, column, key in (
            ("images", "created_at", "id"),
            ("verdicts", "scored_at", "image_id"),
        ):
            superuser.execute(
                f"UPDATE app.{table} SET {column} = now() - make_interval(days => %s)"  # noqa: S608
                f" WHERE {key} = %s",
                [days, image],
            )
    desk(lead=True).value("SELECT moderation.place_hold(%s, 'court order 7')", images[3])
    value = page(engine)
    assert value("retention_overdue_objects", kind="originals") == 0
    assert value("retention_overdue_seconds", kind="originals") is None
    limited = settings.model_copy(
        update={"retention": Retention(originals_days=90, evidence_days=94)}
    )
    assert settings.postgres.owner_url is not None
    write_sql_settings(settings.postgres.owner_url.get_secret_value(), limited)
    value = page(engine)
    assert value("retention_overdue_objects", kind="originals") == 2
    assert value("retention_overdue_objects", kind="evidence") == 1
    assert value("retention_overdue_seconds", kind="originals") == pytest.approx(5 * 86400, abs=60)
    assert value("retention_overdue_seconds", kind="evidence") == pytest.approx(86400, abs=60)
