"""One decoded image on its way through the device, and what it gets there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from worker.ledger.interface import Role

if TYPE_CHECKING:
    from detection.intake.animation import ShownFrame
    from detection.score import Score
    from worker.scoring.interface import Scorer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferenceRequest:
    """One decoded image for the device; `model_version` is set if no other one will do.

    `sha256` is that of its file, `sample` the frames to be judged, one for a still. `submitted_at`
    is a time of `time.monotonic`. One that is `alone` shares its batch with no other.
    """

    sha256: str
    sample: tuple[ShownFrame, ...]
    submitted_at: float
    role: Role = Role.CHAMPION
    model_version: str | None = None
    alone: bool = False

    def fits(self, scorer: Scorer | None) -> bool:
        """Whether the model on the device is one that may judge this image."""
        return scorer is not None and self.model_version in {None, scorer.model_version}


Request = TypeVar("Request", bound=InferenceRequest)


@dataclass(frozen=True, slots=True, eq=False)
class ScoredRequest(Generic[Request]):
    """An image with its score, by `scorer`; its batch began at `begun` and ran for `forward_s`."""

    request: Request
    score: Score
    scorer: Scorer
    begun: float
    forward_s: float

    def timings_ms(self) -> dict[str, float]:
        """Return how long the image waited for its batch, and how long the batch ran."""
        return {
            "batch_wait": 1000 * (self.begun - self.request.submitted_at),
            "forward": 1000 * self.forward_s,
        }
