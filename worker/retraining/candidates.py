"""What the ledger knows of the images that may train, in the terms of `training.data.selection`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from detection.fusion import convert_prior
from detection.score import Label
from training.data.selection import (
    MIN_PDQ_QUALITY,
    Candidate,
    CollectPolicy,
    KnownGroup,
    ModeratorDecision,
    Split,
    revoked,
)
from worker.database.engine import transaction

if TYPE_CHECKING:
    from sqlalchemy import Engine, Row

    from worker.settings import Training

#: What is known of every image; what retention let expire is no longer there to be fetched.
_IMAGES = """
    SELECT i.id, i.sha256, i.source, i.uploader, i.pdq, i.pdq_quality, v.score, v.prior,
        r.audit_share, d.rulings, i.object_removed_at IS NOT NULL AS expired,
        i.state <> 'scored'
            OR EXISTS (SELECT FROM app.erasures e WHERE e.image_id = i.id) AS withdrawn,
        EXISTS (
            SELECT FROM app.appeals a WHERE a.image_id = i.id AND a.event = 'opened'
            AND NOT EXISTS (
                SELECT FROM app.appeals c WHERE c.appeal_id = a.appeal_id AND c.event <> 'opened'
            )
        ) AS under_appeal,
        coalesce(i.sha256 IN (
            SELECT p.sha256 FROM app.regression_items g JOIN app.images p ON p.id = g.image_id
            WHERE g.pinned AND p.sha256 IS NOT NULL
        ), false) AS pinned
    FROM app.images i
    LEFT JOIN LATERAL (
        SELECT score, prior FROM app.verdicts
        WHERE image_id = i.id AND role = 'champion' ORDER BY scored_at DESC LIMIT 1
    ) v ON true
    LEFT JOIN app.reviews r ON r.image_id = i.id
    LEFT JOIN LATERAL (
        SELECT jsonb_agg(jsonb_build_array(moderator, decision, created_at) ORDER BY id) AS rulings
        FROM app.decisions WHERE image_id = i.id
    ) d ON true
"""

#: Images of opted-in sources that somebody or their source vouches for. What is in a sealed data
#: set is not asked again; what was in a run that failed is.
_CANDIDATES = text(f"""
    {_IMAGES}
    WHERE i.source = ANY(:sources) AND i.state IN ('scored', 'withdrawn')
        AND i.sha256 IS NOT NULL
        AND (d.rulings IS NOT NULL OR i.source = ANY(:trusted))
        AND NOT EXISTS (
            SELECT FROM app.snapshot_items s JOIN app.dataset_snapshots n ON n.id = s.snapshot_id
            WHERE s.image_id = i.id AND n.digest IS NOT NULL
        )
""")

_TAKEN = text(f"""
    SELECT k.*, s.label
    FROM ({_IMAGES}) k JOIN app.snapshot_items s ON s.image_id = k.id
        JOIN app.dataset_snapshots n ON n.id = s.snapshot_id
    WHERE n.digest IS NOT NULL
""")  # noqa: S608 - of this module's constants

_KNOWN_GROUPS = text("""
    SELECT i.pdq, s.group_key, s.side, false AS pinned
    FROM app.snapshot_items s JOIN app.images i ON i.id = s.image_id
    WHERE i.pdq_quality >= :quality
    UNION ALL
    SELECT i.pdq, g.group_key, NULL, true
    FROM app.regression_items g JOIN app.images i ON i.id = g.image_id
    WHERE g.pinned AND i.pdq_quality >= :quality
""")

_KNOWN_BYTES = text("""
    SELECT i.sha256
    FROM app.snapshot_items s JOIN app.dataset_snapshots n ON n.id = s.snapshot_id
        JOIN app.images i ON i.id = s.image_id
    WHERE n.digest IS NOT NULL AND i.sha256 IS NOT NULL
""")

_FRESH = text("""
    SELECT count(DISTINCT d.image_id) AS images, coalesce(max(d.id), 0) AS newest
    FROM app.decisions d JOIN app.images i ON i.id = d.image_id
    WHERE i.source = ANY(:sources) AND d.decision <> 'unsure' AND d.id > (
        SELECT coalesce(max(decisions_up_to), 0) FROM app.dataset_snapshots
    )
""")


def candidates(engine: Engine, policy: CollectPolicy) -> list[Candidate]:
    """Return the images to choose from."""
    with transaction(engine) as connection:
        rows = connection.execute(
            _CANDIDATES,
            {"sources": sorted(policy.sources), "trusted": sorted(policy.trusted_sources)},
        ).all()
    return [_candidate(row, withdrawn=row.withdrawn or row.expired) for row in rows]


def revoked_images(engine: Engine, policy: CollectPolicy) -> set[str]:
    """Return the images of sealed data sets that may no longer teach what they were taken for.

    What retention let expire may: the data set has its copy until an erasure.
    """
    with transaction(engine) as connection:
        rows = connection.execute(_TAKEN).all()
    taken = [(_candidate(row, withdrawn=row.withdrawn), Label(row.label)) for row in rows]
    return revoked(taken, policy, known_groups(engine))


def _candidate(row: Row[Any], *, withdrawn: bool) -> Candidate:
    rulings = tuple(
        ModeratorDecision(moderator=moderator, label=Label(label), at=datetime.fromisoformat(at))
        for moderator, label, at in row.rulings or ()
    )
    return Candidate(
        image_id=str(row.id),
        sha256=row.sha256 or "",
        source=row.source,
        uploader=row.uploader,
        rulings=rulings,
        pdq=row.pdq,
        pdq_quality=row.pdq_quality or 0,
        champion=_even_odds(row.score, row.prior),
        audit_share=row.audit_share,
        withdrawn=withdrawn,
        under_appeal=row.under_appeal,
        pinned=row.pinned,
    )


def _even_odds(score: float | None, prior: float | None) -> float | None:
    """Undo the assumed share of generated images: how sure the champion is by the picture alone."""
    if score is None or prior is None or not 0 < prior < 1:
        return score
    return convert_prior(score, assumed=prior, wanted=0.5)


def known_groups(engine: Engine) -> list[KnownGroup]:
    """Return the pictures whose groups have names, and those of pinned reports."""
    with transaction(engine) as connection:
        rows = connection.execute(_KNOWN_GROUPS, {"quality": MIN_PDQ_QUALITY}).all()
    return [
        KnownGroup(
            pdq=row.pdq,
            group=row.group_key,
            split=None if row.side is None else Split(row.side),
            pinned=row.pinned,
        )
        for row in rows
    ]


def known_bytes(engine: Engine) -> list[str]:
    """Return the sha256 of every image that is in a sealed data set."""
    with transaction(engine) as connection:
        return list(connection.scalars(_KNOWN_BYTES))


def count_new_decisions(engine: Engine, policy: CollectPolicy) -> tuple[int, int]:
    """Count images decided since the last snapshot, and name the newest decision."""
    with transaction(engine) as connection:
        row = connection.execute(_FRESH, {"sources": sorted(policy.sources)}).one()
    return row.images, row.newest


def collect_policy(settings: Training) -> CollectPolicy:
    """Return who may teach, and how much, by the settings."""
    return CollectPolicy(
        sources=frozenset(settings.sources),
        trusted_sources=frozenset(settings.trusted_sources),
        max_per_source=settings.max_per_source,
        max_per_uploader=settings.max_per_uploader,
        max_per_moderator=settings.max_per_moderator,
        evaluation=settings.evaluation_share,
        calibration=settings.calibration_share,
    )
