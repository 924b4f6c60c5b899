"""Forward passes: what they do about device memory, broken devices, and images that break them.

* out of device memory: halves of the batch, down to one image, which fails alone;
* any other exception: every image of the batch by itself, so that only the guilty one fails, and
  only if the golden image still scores as it must;
* a challenger in shadow: none of its faults is searched for, because none reaches an image.
"""

from __future__ import annotations

import time
from itertools import chain, islice
from typing import TYPE_CHECKING, ClassVar

import structlog

from detection.errors import PermanentError, UnlatentError
from detection.score import decide
from worker.scoring.batcher import CountMismatch
from worker.scoring.interface import DeviceLost, DeviceMemoryExceeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from detection.intake.animation import ShownFrame
    from detection.score import Score
    from worker.scoring.interface import Scorer

_log = structlog.get_logger(__name__)


class GoldenMismatch(UnlatentError):
    """The golden image does not score as it must: the device or the weights are broken."""


class OutOfDeviceMemory(PermanentError):
    """The image alone does not fit into the device's memory."""

    reason: ClassVar[str] = "out_of_device_memory"


class ScoringFailed(PermanentError):
    """The detector failed on the image, alone and with a sound device."""

    reason: ClassVar[str] = "scoring_failed"


class ForwardPass:
    """Runs images through scorers, at most `max_batch` at once; one thread owns it."""

    def __init__(self, *, max_batch: int) -> None:
        self._max_batch = max_batch
        #: When the pass that runs began, in times of `time.monotonic`; for other threads to read.
        self.running_since: float | None = None

    def verify_golden(self, scorer: Scorer) -> None:
        """Score the golden image, alone and in a full batch; raises `GoldenMismatch`."""
        self._verify_golden(scorer, (1, self._max_batch))

    def score(
        self, scorer: Scorer, samples: Sequence[Sequence[ShownFrame]], *, in_shadow: bool
    ) -> list[Score | Exception]:
        """Score every frame of every sample, no more at once than a batch, and decide by sample.

        Returns for each sample its score or what is wrong with it. Raises `DeviceLost`, and
        `GoldenMismatch` when not even the golden image scores.
        """
        images = [frame.pixels for sample in samples for frame in sample]
        score = self._score_in_shadow if in_shadow else self._score
        parts = range(0, len(images), self._max_batch)
        outcomes = chain.from_iterable(
            score(scorer, images[at : at + self._max_batch]) for at in parts
        )
        decided: list[Score | Exception] = []
        for sample in samples:
            frames = list(islice(outcomes, len(sample)))
            scores = [outcome for outcome in frames if not isinstance(outcome, Exception)]
            failures = [outcome for outcome in frames if isinstance(outcome, Exception)]
            decided.append(failures[0] if failures else decide(sample, scores))
        return decided

    def _score_in_shadow(
        self, scorer: Scorer, images: Sequence[NDArray[np.uint8]]
    ) -> list[Score | Exception]:
        try:
            return list(self._forward(scorer, images))
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001 - a challenger's fault is no image's
            _log.exception("shadow_batch_failed", size=len(images))
            return [error] * len(images)

    def _score(
        self, scorer: Scorer, images: Sequence[NDArray[np.uint8]]
    ) -> list[Score | Exception]:
        try:
            return list(self._forward(scorer, images))
        except DeviceMemoryExceeded as error:
            if len(images) == 1:
                return [_caused(OutOfDeviceMemory(), error)]
            _log.warning("device_memory_exhausted", size=len(images))
            half = (len(images) + 1) // 2
            return self._score(scorer, images[:half]) + self._score(scorer, images[half:])
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001 - an image may make the detector raise anything
            _log.exception("batch_failed", size=len(images))
            if len(images) > 1:
                return [outcome for image in images for outcome in self._score(scorer, [image])]
            if isinstance(error, PermanentError):
                return [error]
            self._verify_golden(scorer, (1,))
            return [_caused(ScoringFailed(f"{type(error).__name__} in the detector."), error)]

    def _forward(self, scorer: Scorer, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
        self.running_since = time.monotonic()
        try:
            scores = scorer.score(images)
        finally:
            self.running_since = None
        if len(scores) != len(images):
            message = f"{len(images)} images gave {len(scores)} scores."
            raise CountMismatch(message)
        if not all(0 <= score.probability <= 1 for score in scores):
            message = "A score is not a probability."
            raise UnlatentError(message)
        return scores

    def _verify_golden(self, scorer: Scorer, sizes: Sequence[int]) -> None:
        golden = scorer.golden()
        for size in sizes:
            try:
                scores = scorer.score([golden.image] * size)
            except DeviceMemoryExceeded:
                if size == 1:
                    raise
                _log.warning("batch_does_not_fit", size=size)
                continue
            if len(scores) != size:
                raise GoldenMismatch(f"{size} golden images gave {len(scores)} scores.")
            for name, expected in golden.branches.items():
                allowed = golden.tolerance * max(1.0, abs(expected))
                for score in scores:
                    found = score.branches[name]
                    # Written so that a logit that is no number fails too.
                    if not abs(found - expected) <= allowed:
                        raise GoldenMismatch(
                            f"The golden image of model {scorer.model_version} gets {found:.6f} "
                            f"from the {name} branch in a batch of {size}, not {expected:.6f}."
                        )


def _caused(error: PermanentError, cause: BaseException) -> PermanentError:
    error.__cause__ = cause
    return error
