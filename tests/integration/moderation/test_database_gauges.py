"""What people and training have open, as the bridge's page of metrics says it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from worker.ledger.tables_training import TrainingRun
from worker.moderation import policies
from worker.moderation.flagging_breaker import check_breakers
from worker.moderation.policies import PolicyDraft
from worker.monitoring.database_gauges import GAUGES, RUN_STATES, DatabaseCollector
from worker.retraining.runs import Ending, Runs

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

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
