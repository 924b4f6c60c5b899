"""Policies: thresholds on the score as data, tried on past verdicts before they rule.

What a policy would have done is estimated from decided images. Of the images in one cell (source,
tier) people have decided some; each stands for its cell's size over its cell's decided count
(post-stratification; Cochran, "Sampling Techniques", 3rd ed., 5A.9). Unflagged cells count only
images that the random audit drew; flagged cells assume that what was decided is like what was not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, text

from detection.errors import SettingsError
from worker.ledger.tables import Policy
from worker.moderation.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Engine


#: Shares of generated uploads at which a preview tells the precision to expect.
BASE_RATES = (0.001, 0.01, 0.05)

#: An operating point needs this many reals for every expected false positive: with none seen among
#: 3 / budget, the upper end of a 95 % interval is about the budget ("rule of three").
REALS_PER_FALSE_POSITIVE = 3


class TooFewDecisions(SettingsError):
    """So few images are decided that no threshold can be chosen at this false-positive budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDraft:
    """A policy that is not in force yet; `source` None means every source without its own."""

    review: float
    flag: float
    flag_high: float
    source: str | None = None
    audit_share: float = 0.005
    min_flag_share: float = 0.0
    max_flag_share: float = 0.2
    breaker_window: timedelta = timedelta(hours=1)
    breaker_images: int = 200

    def __post_init__(self) -> None:
        if not 0 <= self.review <= self.flag <= self.flag_high <= 1:
            raise SettingsError("thresholds must rise: 0 <= review <= flag <= flag_high <= 1")
        if not 0 <= self.min_flag_share <= self.max_flag_share <= 1:
            raise SettingsError("the band of flag shares must rise within 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TierChange:
    """How many verdicts would move from one tier to another, with a few of them."""

    before: str
    after: str
    images: int
    examples: tuple[UUID, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedRate:
    """A weighted share with its 95 % interval and the number of decided images behind it."""

    share: float
    low: float
    high: float
    decided: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a draft would have done to the verdicts since a moment.

    `precision` maps a share of generated uploads to (expected, at least): the second takes the
    upper end of the false-positive rate and the lower end of the recall.
    """

    verdicts: int
    changes: tuple[TierChange, ...]
    false_positives: EstimatedRate | None
    recall: EstimatedRate | None
    precision: dict[float, tuple[float, float]]


def preview(
    engine: Engine, draft: PolicyDraft, *, since: timedelta = timedelta(days=30)
) -> Preview:
    """Try the draft on current verdicts of its source; nothing is written."""
    values = {
        "source": draft.source,
        "since": since,
        "review": draft.review,
        "flag": draft.flag,
        "flag_high": draft.flag_high,
    }
    with engine.connect() as connection:
        moved = connection.execute(text(_CHANGES), values).all()
        decided = _decided(connection, draft.source, since)
    reals = _rate(decided, draft.flag, of="real")
    fakes = _rate(decided, draft.flag, of="generated")
    precision = {}
    if reals is not None and fakes is not None:
        precision = {
            base: (
                _precision(base, fakes.share, reals.share),
                _precision(base, fakes.low, reals.high),
            )
            for base in BASE_RATES
        }
    return Preview(
        verdicts=sum(row.images for row in moved),
        changes=tuple(
            TierChange(
                before=row.before,
                after=row.after,
                images=row.images,
                examples=tuple(row.examples),
            )
            for row in moved
            if row.before != row.after
        ),
        false_positives=reals,
        recall=fakes,
        precision=precision,
    )


def threshold_for(
    engine: Engine,
    *,
    false_positives: float,
    source: str | None = None,
    since: timedelta = timedelta(days=90),
) -> float:
    """Return the lowest score at which the false-positive rate stays within the budget.

    The upper end of the rate's 95 % interval has to stay within it. Raises `TooFewDecisions` when
    the decided reals cannot support the budget.
    """
    with engine.connect() as connection:
        decided = _decided(connection, source, since)
    reals = [row for row in decided if row.decision == "real"]
    needed = REALS_PER_FALSE_POSITIVE / false_positives
    if len(reals) < needed:
        message = (
            f"a false-positive rate of {false_positives:g} needs at least {needed:.0f} images "
            f"decided real, there are {len(reals)}: let the random audit draw more"
        )
        raise TooFewDecisions(message)
    for candidate in sorted({row.score for row in reals} | {1.0}):
        threshold = min(1.0, candidate + 1e-9)
        rate = _rate(reals, threshold, of="real")
        if rate is not None and rate.high <= false_positives:
            return threshold
    raise TooFewDecisions(
        f"no score keeps the false-positive rate under {false_positives:g} with enough certainty"
    )


def activate(engine: Engine, draft: PolicyDraft, *, reason: str) -> int:
    """Put the draft in force for verdicts from now on; return its id. Past verdicts keep theirs."""
    values = {name: getattr(draft, name) for name in PolicyDraft.__dataclass_fields__}
    with engine.begin() as connection:
        enacted: int = connection.scalars(
            insert(Policy).values(**values, reason=reason).returning(Policy.id)
        ).one()
    return enacted


def _decided(connection: Connection, source: str | None, since: timedelta) -> Sequence[Any]:
    return connection.execute(text(_DECIDED), {"source": source, "since": since}).all()


def _rate(decided: Sequence[Any], threshold: float, *, of: str) -> EstimatedRate | None:
    """Weigh the share of decided images of one kind that score at or above the threshold."""
    kind = [row for row in decided if row.decision == of]
    total = sum(row.weight for row in kind)
    if not total:
        return None
    share = sum(row.weight for row in kind if row.score >= threshold) / total
    # Kish's effective size of a weighted sample ("Survey Sampling", 1965, 11.7).
    size = total**2 / sum(row.weight**2 for row in kind)
    low, high = wilson(share, size)
    return EstimatedRate(share=share, low=low, high=high, decided=len(kind))


def _precision(base: float, recall: float, false_positives: float) -> float:
    flagged = base * recall + (1 - base) * false_positives
    return base * recall / flagged if flagged else 0.0


_CHANGES = """
    SELECT v.tier AS before,
           app.tier_of(v.score, v.label, :review, :flag, :flag_high) AS after,
           count(*) AS images,
           (array_agg(v.image_id ORDER BY v.scored_at DESC))[1:5] AS examples
    FROM app.verdicts v JOIN app.images i ON i.id = v.image_id
    WHERE v.role = 'champion' AND v.tier IS NOT NULL
      AND v.scored_at > now() - CAST(:since AS interval)
      AND (CAST(:source AS text) IS NULL OR i.source = :source)
    GROUP BY 1, 2
    ORDER BY images DESC
"""

_DECIDED = """
    WITH seen AS (
        SELECT i.source, v.tier, v.score, v.policy_id,
               CASE WHEN v.tier <> 'allow' OR r.audit_share IS NOT NULL THEN d.decision END
                   AS decision
        FROM app.verdicts v
        JOIN app.images i ON i.id = v.image_id
        LEFT JOIN app.reviews r ON r.image_id = v.image_id
        LEFT JOIN LATERAL (
            SELECT x.decision FROM app.decisions x WHERE x.image_id = v.image_id
            ORDER BY x.id DESC LIMIT 1
        ) d ON r.image_id IS NOT NULL
        WHERE v.role = 'champion' AND v.tier IS NOT NULL
          AND v.scored_at > now() - CAST(:since AS interval)
          AND (CAST(:source AS text) IS NULL OR i.source = :source)
    ), cells AS (
        SELECT source, tier, policy_id, count(*)::float8 / nullif(count(decision), 0) AS weight
        FROM seen GROUP BY source, tier, policy_id
    )
    SELECT s.score, s.decision, c.weight
    FROM seen s
    JOIN cells c ON (c.source, c.tier, c.policy_id) = (s.source, s.tier, s.policy_id)
    WHERE s.decision IS NOT NULL
"""
