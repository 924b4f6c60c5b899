"""A score as plain values: what `unlatent check` prints and `unlatent serve` answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detection.score import distance_words

if TYPE_CHECKING:
    from detection.score import Score


def score_record(score: Score, *, model_version: str) -> dict[str, Any]:
    """Return a score by the names of its fields, of types that `json.dumps` takes."""
    return {
        "score": score.probability,
        "label": score.label.value,
        "distance": score.distance,
        "distance_words": distance_words(score.label, score.distance, score.outside),
        "model_version": model_version,
        "branches": dict(score.branches),
        "decided_by": score.decided_by,
        "operating_point": score.operating_point,
        "prior": score.prior,
        "outside": score.outside,
        "frame": score.frame,
    }
