"""A leased image on its way through the device, and the verdict that the ledger keeps of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from detection.intake.version import INTAKE_VERSION
from worker.ledger.interface import Verdict
from worker.scoring.device.inference_request import InferenceRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.ledger.interface import ImageFacts, Lease
    from worker.scoring.device.inference_request import ScoredRequest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LeasedRequest(InferenceRequest):
    """An image of the ledger, its lease, and how long its steps took until here."""

    lease: Lease
    facts: ImageFacts
    timings_ms: Mapping[str, float]


def verdict_of(scored: ScoredRequest[LeasedRequest]) -> Verdict:
    """Return the row that the ledger keeps of a scored image."""
    request, score, scorer = scored.request, scored.score, scored.scorer
    return Verdict(
        image_id=request.lease.image_id,
        lease_id=request.lease.lease_id,
        facts=request.facts,
        model_version=scorer.model_version,
        role=request.role,
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
        timings_ms={**request.timings_ms, **scored.timings_ms()},
        error_map=score.error_map,
        contributions=score.contributions,
        outside=score.outside,
        frame=score.frame,
        distance=score.distance,
        tiles=score.tiles,
    )
