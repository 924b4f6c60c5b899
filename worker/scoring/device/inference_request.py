"""One image on its way through the device, and the verdict that it gets there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from detection.intake.version import INTAKE_VERSION
from worker.ledger.interface import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from detection.intake.animation import ShownFrame
    from detection.score import Score
    from worker.ledger.interface import ImageFacts, Lease, Role
    from worker.scoring.interface import Scorer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferenceRequest:
    """One image on its way through the device; `model_version` is set if no other one will do.

    `sample` are the frames to be judged, one for a still. `submitted_at` is a time of
    `time.monotonic`.
    """

    lease: Lease
    facts: ImageFacts
    sample: tuple[ShownFrame, ...]
    role: Role
    timings_ms: Mapping[str, float]
    submitted_at: float
    model_version: str | None = None

    def fits(self, scorer: Scorer | None) -> bool:
        """Whether the model on the device is one that may judge this image."""
        return scorer is not None and self.model_version in {None, scorer.model_version}

    def verdict(self, score: Score, scorer: Scorer, *, begun: float, forward_s: float) -> Verdict:
        """Return the row that the ledger keeps of a score.

        The batch began at `begun`, in times of `time.monotonic`, and ran for `forward_s`.
        """
        return Verdict(
            image_id=self.lease.image_id,
            lease_id=self.lease.lease_id,
            facts=self.facts,
            model_version=scorer.model_version,
            role=self.role,
            score=score.probability,
            label=score.label.value,
            branches=dict(score.branches),
            decided_by=score.decided_by,
            operating_point=score.operating_point,
            prior=score.prior,
            device=scorer.device,
            dtype=scorer.dtype,
            intake_version=INTAKE_VERSION,
            thresholds_hold=INTAKE_VERSION in scorer.intake_versions,
            timings_ms={
                **self.timings_ms,
                "batch_wait": 1000 * (begun - self.submitted_at),
                "forward": 1000 * forward_s,
            },
            error_map=score.error_map,
            contributions=score.contributions,
            outside=score.outside,
            frame=score.frame,
            distance=score.distance,
            tiles=score.tiles,
        )
