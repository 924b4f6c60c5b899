"""Drift and shadow agreement as the database has them, and what follows from a reading."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from scipy import stats
from sqlalchemy import text

from training.data.selection import CollectPolicy
from worker.models.registry import ModelsRegistry, ModelVersion
from worker.models.score_drift import DriftMeasurement, measure_drift, record_drift
from worker.models.shadow import agreement
from worker.monitoring.database_gauges import DatabaseCollector
from worker.retraining.triggers import due_slots
from worker.settings import Drift, Training

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import NDArray
    from sqlalchemy import Engine

NOW, LONG_AGO = "0 s", "3 days"

_INSERT = text("""
    WITH given AS (
        SELECT score, gen_random_uuid() AS id FROM unnest(CAST(:scores AS float8[])) AS score
    ), images AS (
        INSERT INTO app.images (id, bucket, key, etag, source, state)
        SELECT id, 'b', id::text, 'e', :source, 'scored' FROM given RETURNING id
    ), leases AS (
        INSERT INTO app.leases (image_id, worker, purpose, until, closed_at, outcome)
        SELECT id, 'w', 'score', now(), now(), 'scored' FROM images RETURNING id, image_id
    )
    INSERT INTO app.verdicts (image_id, lease_id, model_version, role, score, label, branches,
        decided_by, operating_point, prior, device, dtype, scored_at)
    SELECT g.id, l.id, :version, 'champion', g.score,
        CASE WHEN g.score < 0.4 THEN 'real' WHEN g.score > 0.6 THEN 'generated' ELSE 'unsure' END,
        '{}', 'b', 'fpr=0.01', 0.5, 'cpu', 'float32', now() - CAST(:age AS interval)
    FROM given g JOIN leases l ON l.image_id = g.id
""")


@pytest.fixture
def judge(engine: Engine) -> Callable[..., None]:
    """Have images of a source judged by the champion so long ago."""

    def insert(source: str, scores: NDArray[np.float64], *, age: str, version: str = "m1") -> None:
        with engine.begin() as connection:
            connection.execute(
                _INSERT,
                {"scores": scores.tolist(), "source": source, "age": age, "version": version},
            )

    return insert


@pytest.fixture
def page(engine: Engine) -> Callable[..., float | None]:
    """Read a gauge as a scrape of the bridge would, after a new reading."""
    registry, gauges = CollectorRegistry(), DatabaseCollector(engine)
    registry.register(gauges)

    def value(name: str, **labels: str) -> float | None:
        gauges.read()
        return registry.get_sample_value(f"unlatent_{name}", labels)

    return value


def by_source(readings: list[DriftMeasurement]) -> dict[str, DriftMeasurement]:
    """Name readings by their source."""
    return {reading.source: reading for reading in readings}


def test_one_source_drifts_and_starts_a_run(
    engine: Engine, judge: Callable[..., None], page: Callable[..., float | None]
) -> None:
    """The shifted source is told from the steady and the young one, in table, metric, trigger."""
    rng = np.random.default_rng(4)
    assert measure_drift(engine, Drift()) == []
    early, late = rng.beta(2, 6, 500), rng.beta(5, 3, 400)
    judge("shifted", early, age=LONG_AGO)
    judge("shifted", late, age=NOW)
    judge("steady", rng.beta(2, 6, 500), age=LONG_AGO)
    judge("steady", rng.beta(2, 6, 400), age=NOW)
    judge("young", late, age=NOW)
    found = by_source(measure_drift(engine, Drift()))
    assert {name: reading.drifted for name, reading in found.items()} == {
        "shifted": True,
        "steady": False,
        "young": False,
    }
    shifted, young = found["shifted"], found["young"]
    assert (shifted.images, shifted.reference_images) == (400, 500)
    assert shifted.ks == pytest.approx(stats.ks_2samp(early, late).statistic)
    assert shifted.unsure == np.mean((late >= 0.4) & (late <= 0.6))
    assert (young.psi, young.ks, young.reference_unsure) == (None, None, None)

    watching, idle = Training(on_drift=True), Training()
    policy = CollectPolicy(sources=frozenset(), trusted_sources=frozenset())
    assert list(due_slots(engine, watching, policy)) == []
    assert page("drift_detected", source="shifted") is None
    record_drift(engine, list(found.values()))
    (slot,) = due_slots(engine, watching, policy)
    assert slot.trigger == "drift"
    assert slot.slot.startswith("drift:m1:")
    assert list(due_slots(engine, watching, policy)) == [slot]
    assert list(due_slots(engine, idle, policy)) == []
    assert page("drift_detected", source="shifted") == 1
    assert page("drift_detected", source="steady") == 0
    assert page("drift_ks", source="shifted") == pytest.approx(shifted.ks)
    assert page("drift_psi", source="young") is None
    assert page("drift_unsure_ratio", source="young") == pytest.approx(young.unsure)

    judge("shifted", late, age=NOW, version="m2")
    record_drift(engine, measure_drift(engine, Drift()))
    assert list(due_slots(engine, watching, policy)) == []


def test_decisions_against_sure_labels_are_counted(
    engine: Engine, judge: Callable[..., None], page: Callable[..., float | None]
) -> None:
    """Of three decided images one was called wrong; one that was unsure counts nowhere."""
    judge("web", np.array([0.9, 0.1, 0.2, 0.5]), age=NOW)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO app.decisions (image_id, moderator, decision, reason_code, "
                "why_reviewed, verdict_id) SELECT image_id, 'm', 'real', 'real_original', 'audit', "
                "id FROM app.verdicts"
            )
        )
    (reading,) = measure_drift(engine, Drift())
    assert (reading.decisions, reading.overturned) == (3, 1)
    record_drift(engine, [reading])
    assert page("drift_overturned_ratio", source="web") == pytest.approx(1 / 3)


def test_a_challenger_is_compared_with_the_champion(
    engine: Engine, judge: Callable[..., None], page: Callable[..., float | None]
) -> None:
    """Labels and scores of both, image by image, as the command and the metrics tell them."""
    registry = ModelsRegistry(engine)
    for digest in ("m1", "m2"):
        registry.register(
            ModelVersion(digest=digest, name=digest, uri="s3://training/models/small")
        )
    registry.promote("m1", actor="t", reason="first", forced=True)
    assert page("shadow_seconds", model_version="m2") is None
    registry.put_in_shadow("m2", actor="t", reason="passed")
    champion = np.array([0.1, 0.2, 0.7, 0.9])
    challenger = {0.1: 0.15, 0.2: 0.8, 0.7: 0.5, 0.9: 0.95}  # accuses one, acquits another
    judge("web", champion, age=NOW)
    with engine.begin() as connection:
        for before, after in challenger.items():
            connection.execute(
                text(
                    "INSERT INTO app.verdicts (image_id, lease_id, model_version, role, score, "
                    "label, branches, decided_by, operating_point, prior, device, dtype) "
                    "SELECT image_id, lease_id, 'm2', 'shadow', :after, CASE WHEN :after < 0.4 "
                    "THEN 'real' WHEN :after > 0.6 THEN 'generated' ELSE 'unsure' END, branches, "
                    "decided_by, operating_point, prior, device, dtype FROM app.verdicts "
                    "WHERE model_version = 'm1' AND score = :before"
                ),
                {"before": before, "after": after},
            )
    active = registry.active()
    assert active.shadow_since is not None
    found: Any = agreement(engine, "m2", since=active.shadow_since)
    expected = np.corrcoef(list(challenger), list(challenger.values()))[0, 1]
    assert (found.images, found.disagreements, found.accused, found.acquitted) == (4, 2, 1, 1)
    assert found.correlation == pytest.approx(expected)
    assert page("shadow_pairs", agree="True") == 2
    assert page("shadow_pairs", agree="False") == 2
    assert page("shadow_score_correlation") == pytest.approx(expected)
    assert page("shadow_seconds", model_version="m2") is not None
