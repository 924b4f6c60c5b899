"""The same images scored in several forms: what calibration rests on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from training.data.manifest import sampling_weights
from training.evaluation.scoring import CALIBRATION_TIERS, RAW, Scored, merge, score_tier, untouched

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from detection.detector import Detector
    from detection.fusion import Fusion
    from training.data.manifest import Entry
    from training.evaluation.calibration import Logits


@dataclass(frozen=True, slots=True)
class ScoredVariants:
    """The same N images scored in several forms: form name to scored images, in one order."""

    scored: Mapping[str, Scored]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The images (N,)."""
        return next(iter(self.scored.values())).entries

    @property
    def weights(self) -> NDArray[np.float64]:
        """What each image counts (N,)."""
        return sampling_weights(self.scored["clean"].entries)

    def pooled(self) -> Logits:
        """Every form as an image of its own, for fitting the fusion."""
        return replace(merge(list(self.scored.values())).logits, forms=len(self.scored))

    def worst(self, fusion: Fusion) -> NDArray[np.float64]:
        """Fused logits (N,): of a photograph its highest, of a generated image its clean one."""
        fused = {name: part.logits.fused(fusion) for name, part in self.scored.items()}
        generated = next(iter(self.scored.values())).logits.generated
        highest = np.max(list(fused.values()), axis=0)
        return np.where(generated, fused["clean"], highest)


def score_variants(detector: Detector, entries: Sequence[Entry]) -> ScoredVariants:
    """Score entries in the calibration tiers, and as uploaded."""
    scored = {tier: score_tier(detector, entries, tier) for tier in CALIBRATION_TIERS}
    scored[RAW] = score_tier(detector, entries, "clean", read=untouched)
    return ScoredVariants(scored)
