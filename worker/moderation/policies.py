"""Policies: thresholds on the score as data, tried on past verdicts before they rule.

What a policy would have done is estimated from decided images. Of the images in one cell (source,
tier, policy) people have decided some; each stands for its cell's size over its cell's decided
count (post-stratification; Cochran, "Sampling Techniques", 3rd ed., 5A.9). Unflagged cells count
only images that the random audit drew; flagged cells assume that what was decided is like what was
not.

However many verdicts there are, at most `MOST_VERDICTS` and `MOST_DECISIONS` rows are looked at.
How many there are, and how large a cell is, comes from the counts by day: a time before now begins
at 0:00 UTC of its day.
"""

from __future__ import annotations

from bisect import bisect_left
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

#: Of more verdicts so many are looked at: a run of neighbours, which lie on the same pages, in each
#: of equal stretches of their ids. A hash chooses where it begins: what comes in turns is not met
#: in step, and a second look sees the same.
MOST_VERDICTS = 10_000
RUN = 10

#: Rates come from the images of so many newest decisions, of all sources together.
MOST_DECISIONS = 10_000


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
    """What a draft would have done to the verdicts since a day.

    Of all `verdicts` so many were `looked_at`, and `changes` are among those. Of those that were
    `decided`, and can tell a rate, so many were `weighed`. `precision` maps a share of generated
    uploads to (expected, at least): the second takes the upper end of the false-positive rate and
    the lower end of the recall.
    """

    verdicts: int
    looked_at: int
    decided: int
    weighed: int
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
        "runs": MOST_VERDICTS // RUN,
        "run": RUN,
    }
    # Rows and their counts are of one moment.
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        counted = connection.execute(text(_COUNTED), values).one()
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
        verdicts=counted.verdicts,
        looked_at=sum(row.images for row in moved),
        decided=counted.decided,
        weighed=len(decided),
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
    wanted = f"a false-positive rate of {false_positives:g} needs at least {needed:.0f} images"
    if needed > MOST_DECISIONS:
        raise TooFewDecisions(
            f"{wanted} decided real, and at most {MOST_DECISIONS} decisions are looked at: no"
            " threshold is chosen for so small a rate"
        )
    if len(reals) < needed:
        of_source = "" if source is None else f" of {source}"
        advice = "" if source is None else "choose a threshold for all sources, or "
        raise TooFewDecisions(
            f"{wanted} decided real, there are {len(reals)}{of_source} among the newest"
            f" {MOST_DECISIONS} decisions of all sources: {advice}let the random audit draw more"
        )

    def fits(threshold: float) -> bool:
        rate = _rate(reals, threshold, of="real")
        return rate is not None and rate.high <= false_positives

    # A higher threshold accuses fewer: once one fits, all higher ones do.
    candidates = [min(1.0, score + 1e-9) for score in sorted({row.score for row in reals} | {1.0})]
    lowest = bisect_left(candidates, True, key=fits)
    if lowest == len(candidates):
        raise TooFewDecisions(
            f"no score keeps the false-positive rate under {false_positives:g} "
            "with enough certainty"
        )
    return candidates[lowest]


def activate(engine: Engine, draft: PolicyDraft, *, reason: str) -> int:
    """Put the draft in force for verdicts from now on; return its id. Past verdicts keep theirs."""
    values = {name: getattr(draft, name) for name in PolicyDraft.__dataclass_fields__}
    with engine.begin() as connection:
        enacted: int = connection.scalars(
            insert(Policy).values(**values, reason=reason).returning(Policy.id)
        ).one()
    return enacted


def _decided(connection: Connection, source: str | None, since: timedelta) -> Sequence[Any]:
    values = {"source": source, "since": since, "most": MOST_DECISIONS}
    return connection.execute(text(_DECIDED), values).all()


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


_FIRST_DAY = "((now() - CAST(:since AS interval)) AT TIME ZONE 'UTC')::date"
_FIRST_MOMENT = f"({_FIRST_DAY}::timestamp AT TIME ZONE 'UTC')"
_OF_SOURCE = "(CAST(:source AS text) IS NULL OR {0}.source = :source)".format

_COUNTED = f"""
    SELECT coalesce(sum(c.n), 0)::bigint AS verdicts,
        coalesce(sum(c.n) FILTER (
            WHERE c.decision IS NOT NULL AND (c.tier <> 'allow' OR c.audited)
        ), 0)::bigint AS decided
    FROM app.verdict_counts c
    WHERE c.day >= {_FIRST_DAY} AND c.tier IS NOT NULL AND {_OF_SOURCE("c")}
"""  # noqa: S608 - of this module's constants

# Ids rise with time, but for transactions that overlap: the first is looked for among a thousand.
_CHANGES = f"""
    WITH ends AS (
        SELECT (
            SELECT min(f.id) FROM (
                SELECT x.id FROM app.verdicts x
                WHERE x.role = 'champion' AND x.scored_at >= {_FIRST_MOMENT}
                ORDER BY x.scored_at, x.id LIMIT 1000
            ) f
        ) AS first, (SELECT max(x.id) FROM app.verdicts x) AS last
    ), steps AS (
        SELECT first, last, greatest((last - first) / :runs + 1, :run) AS width FROM ends
    ), chosen AS MATERIALIZED (
        SELECT s.first + n * s.width
            + (hashint8(n)::bigint + 2147483648) % (s.width - :run + 1) + place AS id
        FROM steps s, generate_series(0, (s.last - s.first) / s.width) n,
            generate_series(0, :run - 1) place
    )
    SELECT v.tier AS before,
           app.tier_of(v.score, v.label, :review, :flag, :flag_high) AS after,
           count(*) AS images,
           (array_agg(v.image_id ORDER BY v.scored_at DESC))[1:5] AS examples
    FROM chosen
    CROSS JOIN LATERAL (SELECT * FROM app.verdicts x WHERE x.id = chosen.id OFFSET 0) v
    CROSS JOIN LATERAL (SELECT x.source FROM app.images x WHERE x.id = v.image_id OFFSET 0) i
    WHERE v.role = 'champion' AND v.tier IS NOT NULL AND v.scored_at >= {_FIRST_MOMENT}
      AND {_OF_SOURCE("i")}
    GROUP BY 1, 2
    ORDER BY images DESC
"""  # noqa: S608 - of this module's constants

_DECIDED = f"""
    WITH newest AS MATERIALIZED (
        SELECT d.id, d.image_id, d.decision FROM app.decisions d ORDER BY d.id DESC LIMIT :most
    ), last AS MATERIALIZED (
        SELECT DISTINCT ON (n.image_id) n.image_id, n.decision
        FROM newest n ORDER BY n.image_id, n.id DESC
    ), seen AS MATERIALIZED (
        SELECT i.source, v.tier, v.policy_id, v.score, l.decision
        FROM last l
        LEFT JOIN LATERAL (SELECT * FROM app.reviews x WHERE x.image_id = l.image_id OFFSET 0) r
            ON true
        -- The queue, which is small, knows the source of what was in it.
        CROSS JOIN LATERAL (
            SELECT coalesce(
                r.source, (SELECT x.source FROM app.images x WHERE x.id = l.image_id)
            ) AS source
            OFFSET 0
        ) i
        CROSS JOIN LATERAL (
            SELECT * FROM app.verdicts x
            WHERE x.image_id = l.image_id AND x.role = 'champion' AND x.tier IS NOT NULL
              AND x.scored_at >= {_FIRST_MOMENT}
            OFFSET 0
        ) v
        WHERE {_OF_SOURCE("i")} AND (v.tier <> 'allow' OR r.audit_share IS NOT NULL)
    ), cells AS (
        SELECT c.source, c.tier, c.policy_id, sum(c.n)::float8 AS verdicts
        FROM app.verdict_counts c
        WHERE c.day >= {_FIRST_DAY} AND c.tier IS NOT NULL
        GROUP BY c.source, c.tier, c.policy_id
    )
    SELECT s.score, s.decision,
           c.verdicts / count(*) OVER (PARTITION BY s.source, s.tier, s.policy_id) AS weight
    FROM seen s
    JOIN cells c ON (c.source, c.tier, c.policy_id) = (s.source, s.tier, s.policy_id)
"""  # noqa: S608 - of this module's constants
