"""Agreement of the challenger in shadow with the champion.

Its verdicts carry the role `shadow`, come after the champion's, and decide nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from worker.database.engine import transaction

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Engine

#: How many of the newest pairs the report covers.
MAX_PAIRS = 10_000

#: The challenger in shadow and since when; no row without one.
IN_SHADOW = """
    SELECT model_version, since
    FROM (SELECT model_version, since FROM app.shadow ORDER BY id DESC LIMIT 1) newest
    WHERE model_version IS NOT NULL
"""


def _pairs(chosen: str) -> str:
    """Return the query of both verdicts of the images that a query of shadow verdicts chooses."""
    return f"""
        SELECT s.image_id, s.label AS challenger, s.score, c.label AS champion,
            c.score AS champion_score, c.model_version AS champion_version
        FROM ({chosen}) s
        JOIN LATERAL (
            SELECT label, score, model_version FROM app.verdicts x
            WHERE x.image_id = s.image_id AND x.role = 'champion'
                AND x.model_version <> s.model_version
            ORDER BY x.scored_at DESC, x.id DESC LIMIT 1
        ) c ON true
    """  # noqa: S608 - of this module's constants


#: The newest `limit` pairs of one challenger since a time.
PAIRS_OF_CHALLENGER = _pairs("""
    SELECT image_id, label, score, model_version FROM app.verdicts
    WHERE model_version = :challenger AND role = 'shadow' AND scored_at >= :since
    ORDER BY scored_at DESC LIMIT :limit
""")
#: The newest thousand pairs of the last day of whichever challenger is in shadow.
LATEST_PAIRS = _pairs(f"""
    SELECT v.image_id, v.label, v.score, v.model_version
    FROM app.verdicts v JOIN ({IN_SHADOW}) p ON p.model_version = v.model_version
    WHERE v.role = 'shadow' AND v.scored_at >= greatest(p.since, now() - interval '1 day')
    ORDER BY v.scored_at DESC LIMIT 1000
""")  # noqa: S608 - of this module's constants

_REPORT = text(f"""
    SELECT count(*) AS images,
        count(*) FILTER (WHERE champion <> challenger) AS disagreements,
        count(*) FILTER (WHERE champion <> 'generated' AND challenger = 'generated') AS accused,
        count(*) FILTER (WHERE champion = 'generated' AND challenger <> 'generated') AS acquitted,
        corr(champion_score, score) AS correlation
    FROM ({PAIRS_OF_CHALLENGER}) pairs
""")  # noqa: S608 - of this module's constants


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What the challenger said of images that the champion judged too.

    `disagreements` counts other labels; `accused` those newly called generated, `acquitted` those
    no longer. `correlation` is Pearson's, of the scores; None where one of them never varies.
    """

    images: int
    disagreements: int
    accused: int
    acquitted: int
    correlation: float | None

    @property
    def disagreement(self) -> float | None:
        """The share of images with another label."""
        return self.disagreements / self.images if self.images else None


def agreement(engine: Engine, challenger: str, *, since: datetime) -> Agreement:
    """Compare a challenger's verdicts since then with the champion's of the same images."""
    with transaction(engine) as connection:
        row = connection.execute(
            _REPORT, {"challenger": challenger, "since": since, "limit": MAX_PAIRS}
        ).one()
    return Agreement(**row._asdict())
