"""What a promotion would change: tiers of recent images under the challenger's verdicts.

The challenger judged them in shadow, with its own thresholds and labels. Both verdicts are put
under the policy that is in force for the source now, so that what differs is the model's doing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from worker.database.engine import transaction
from worker.models.shadow import MAX_PAIRS, PAIRS_OF_CHALLENGER

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Engine

_TIERS = text(f"""
    WITH pairs AS MATERIALIZED (
        SELECT p.*, i.source FROM ({PAIRS_OF_CHALLENGER}) p JOIN app.images i ON i.id = p.image_id
        -- What an earlier champion said is no part of what would change now.
        WHERE p.champion_version = coalesce(
            (SELECT c.model_version FROM app.champion c ORDER BY c.id DESC LIMIT 1),
            p.champion_version
        )
    ), sources AS MATERIALIZED (
        SELECT s.source, o.review, o.flag, o.flag_high
        FROM (SELECT DISTINCT source FROM pairs) s, LATERAL app.policy_of(s.source) o
    )
    SELECT app.tier_of(p.champion_score, p.champion, s.review, s.flag, s.flag_high) AS before,
           app.tier_of(p.score, p.challenger, s.review, s.flag, s.flag_high) AS after,
           count(*) AS images,
           (array_agg(p.image_id ORDER BY p.image_id))[1:5] AS examples
    FROM pairs p JOIN sources s ON s.source = p.source
    GROUP BY 1, 2
    ORDER BY images DESC, before, after
""")  # noqa: S608 - of this module's constants

_SINCE = text("SELECT now() - interval '30 days'")


@dataclass(frozen=True, slots=True, kw_only=True)
class TierMove:
    """How many images would go from one tier to another, with a few of them."""

    before: str
    after: str
    images: int
    examples: tuple[UUID, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionPreview:
    """Of `images` that a model judged in shadow, those whose tier it would change, most first."""

    images: int
    changes: tuple[TierMove, ...]


def preview_promotion(engine: Engine, digest: str) -> PromotionPreview:
    """Hold a model's shadow verdicts of the last 30 days against the champion's.

    Nothing is written; at most the newest `MAX_PAIRS` are looked at.
    """
    with transaction(engine) as connection:
        values = {"challenger": digest, "since": connection.scalar(_SINCE), "limit": MAX_PAIRS}
        rows = connection.execute(_TIERS, values).all()
    return PromotionPreview(
        images=sum(row.images for row in rows),
        changes=tuple(
            TierMove(
                before=row.before,
                after=row.after,
                images=row.images,
                examples=tuple(row.examples),
            )
            for row in rows
            if row.before != row.after
        ),
    )
