"""Score drift: each source's recent verdicts against the first of the same model version.

What is recent is compared with the first verdicts of the same model version in the same source
(those that it gave in shadow included): a reference that does not move sees slow changes too. The
random share of uploads that a challenger sees in shadow is as good a sample as any. Every upload
counts, and not those alone that somebody reviewed, so that no verdict stands for others and none
has to be weighed; only the decisions are of what was reviewed, and drift does not rest on them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import structlog
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert

from detection.score import Label
from worker.database.engine import transaction
from worker.ledger.tables_training import DriftReading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from sqlalchemy import Connection, Engine

    from worker.settings import Drift as DriftSettings

    Floats = NDArray[np.float64]

_log = structlog.get_logger(__name__)

BINS = 10
#: Two samples of one distribution are called different this rarely.
KS_SIGNIFICANCE = 0.001
#: The newest verdicts of a window that are looked at, over all sources.
MAX_RECENT = 100_000

_SERVING = text(
    "SELECT model_version FROM app.verdicts WHERE role = 'champion'"
    " ORDER BY scored_at DESC, id DESC LIMIT 1"
)
_RECENT = text("""
    SELECT i.source, v.score, v.label FROM app.verdicts v JOIN app.images i ON i.id = v.image_id
    WHERE v.model_version = :version AND v.role = 'champion'
        AND v.scored_at >= clock_timestamp() - CAST(:window AS interval)
    ORDER BY v.scored_at DESC LIMIT :limit
""")
_REFERENCE = text("""
    SELECT v.score, v.label FROM app.verdicts v JOIN app.images i ON i.id = v.image_id
    WHERE v.model_version = :version AND v.role IN ('champion', 'shadow') AND i.source = :source
        AND v.scored_at < clock_timestamp() - CAST(:window AS interval)
    ORDER BY v.scored_at LIMIT :limit
""")
_DECIDED = text("""
    SELECT i.source, count(*) AS decisions,
        count(*) FILTER (WHERE d.decision <> v.label) AS overturned
    FROM app.decisions d JOIN app.verdicts v ON v.id = d.verdict_id
        JOIN app.images i ON i.id = d.image_id
    WHERE v.model_version = :version AND d.decision <> 'unsure' AND v.label <> 'unsure'
        AND d.created_at >= clock_timestamp() - CAST(:window AS interval)
    GROUP BY i.source
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftMeasurement:
    """One source under one model version; shares are of 1.

    `psi` and `ks` are None while either side has too few verdicts. `overturned` of the window's
    `decisions` contradict a label that was sure; what is reviewed is mostly what was flagged.
    """

    model_version: str
    source: str
    images: int
    reference_images: int
    psi: float | None
    ks: float | None
    unsure: float
    reference_unsure: float | None
    decisions: int
    overturned: int
    drifted: bool


@dataclass(frozen=True, slots=True)
class _Scores:
    values: Floats
    unsure: float


def population_stability_index(reference: Floats, recent: Floats, *, bins: int = BINS) -> float:
    """Return the PSI of two samples, float64 (N,) and (M,): sum of (p - q) ln(p / q) over bins.

    That is the symmetric divergence of Kullback and Leibler (1951). Bins lie between the
    reference's quantiles. Half a count is added to every bin, so that an empty one stays finite.
    """
    inner = np.unique(np.quantile(reference, np.arange(1, bins) / bins))
    shares = []
    for sample in (reference, recent):
        counts = np.bincount(np.searchsorted(inner, sample, side="left"), minlength=len(inner) + 1)
        shares.append((counts + 0.5) / (len(sample) + 0.5 * len(counts)))
    q, p = shares
    return float(np.sum((p - q) * np.log(p / q)))


def kolmogorov_smirnov(reference: Floats, recent: Floats) -> float:
    """Return the largest distance of the empirical distribution functions of two samples."""
    points = np.concatenate([reference, recent])
    below = [
        np.searchsorted(np.sort(sample), points, side="right") / len(sample)
        for sample in (reference, recent)
    ]
    return float(np.max(np.abs(below[0] - below[1])))


def kolmogorov_smirnov_limit(reference: int, recent: int) -> float:
    """Return the distance that samples of one distribution pass with `KS_SIGNIFICANCE`.

    Smirnov's (1948) first term: sqrt(-ln(a / 2) / 2) sqrt((n + m) / (n m)).
    """
    coefficient = math.sqrt(-math.log(KS_SIGNIFICANCE / 2) / 2)
    return coefficient * math.sqrt((reference + recent) / (reference * recent))


def measure_drift(engine: Engine, settings: DriftSettings) -> list[DriftMeasurement]:
    """Read every source that had verdicts in the window; empty before the first verdict."""
    window = timedelta(seconds=settings.window_s)
    with transaction(engine) as connection:
        version = connection.scalar(_SERVING)
        if version is None:
            return []
        known = {"version": version, "window": window}
        recent: dict[str, list[tuple[float, str]]] = {}
        for row in connection.execute(_RECENT, {**known, "limit": MAX_RECENT}):
            recent.setdefault(row.source, []).append((row.score, row.label))
        decided = {row.source: row for row in connection.execute(_DECIDED, known)}
        readings = []
        for source in sorted(recent):
            early = _reference(connection, {**known, "source": source}, settings)
            judged = decided.get(source)
            readings.append(
                _compare(
                    version,
                    source,
                    _scores(recent[source]),
                    early,
                    (0, 0) if judged is None else (judged.decisions, judged.overturned),
                    settings,
                )
            )
    return readings


def record_drift(engine: Engine, readings: Sequence[DriftMeasurement]) -> None:
    """Keep readings in the table, for metrics and for the trigger of retraining."""
    if readings:
        with transaction(engine) as connection:
            connection.execute(insert(DriftReading).values([asdict(one) for one in readings]))
    for reading in readings:
        if reading.drifted:
            _log.warning("drift_detected", **asdict(reading))


def _reference(
    connection: Connection, known: dict[str, object], settings: DriftSettings
) -> _Scores | None:
    rows = connection.execute(_REFERENCE, {**known, "limit": settings.reference_images}).all()
    return _scores((row.score, row.label) for row in rows) if rows else None


def _scores(rows: Iterable[tuple[float, str]]) -> _Scores:
    scores, labels = zip(*rows, strict=True)
    return _Scores(np.array(scores), labels.count(Label.UNSURE) / len(labels))


def _compare(
    version: str,
    source: str,
    recent: _Scores,
    early: _Scores | None,
    decided: tuple[int, int],
    settings: DriftSettings,
) -> DriftMeasurement:
    sizes = (0 if early is None else len(early.values), len(recent.values))
    psi = ks = None
    if early is not None and min(sizes) >= settings.min_images:
        psi = population_stability_index(early.values, recent.values)
        ks = kolmogorov_smirnov(early.values, recent.values)
    decisions, overturned = decided
    return DriftMeasurement(
        model_version=version,
        source=source,
        images=sizes[1],
        reference_images=sizes[0],
        psi=psi,
        ks=ks,
        unsure=recent.unsure,
        reference_unsure=None if early is None else early.unsure,
        decisions=decisions,
        overturned=overturned,
        drifted=psi is not None
        and ks is not None
        and psi >= settings.psi_limit
        and ks > kolmogorov_smirnov_limit(*sizes),
    )
