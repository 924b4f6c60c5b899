"""Scoring files without any service: find, decode ahead in threads, batch, score, in order."""

from __future__ import annotations

import os
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from detection.intake.decode import DecodedImage, IntakeLimits, decode
from detection.score import decide

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from detection.detector import Detector
    from detection.score import Score
    from worker.settings import Intake

#: What counts as an image file inside a folder; a file that is named itself is always tried.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".gif", ".tif", ".tiff"}
    | {".bmp", ".heic", ".heif"}
)
#: Pixels that one batch may hold: bounds memory when the photographs are large.
BATCH_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredFile:
    """One file's outcome: its image and score, or the error that stood in the way."""

    path: Path
    image: DecodedImage | None = None
    score: Score | None = None
    error: Exception | None = None


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """List files as named, and the image files in folders recursively, sorted within each."""
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.suffix.lower() in SUFFIXES and file.is_file():
                    yield file
        else:
            yield path


def intake_limits(settings: Intake) -> IntakeLimits:
    """Translate the settings into the decoder's limits."""
    return IntakeLimits(
        max_bytes=settings.max_bytes,
        max_pixels=settings.max_pixels,
        max_frames=settings.max_frames,
        max_metadata_bytes=settings.max_metadata_bytes,
    )


def check_files(
    files: Iterable[Path], detector: Detector, limits: IntakeLimits, *, batch: int
) -> Iterator[ScoredFile]:
    """Score files in batches of at most `batch`, the next ones being decoded meanwhile.

    Yields one outcome a file, in their order; no file's fault is another's, or raised.
    """
    waiting: list[ScoredFile] = []
    images = pixels = 0
    for decoded in _decode_ahead(files, limits, ahead=batch):
        waiting.append(decoded)
        if decoded.image is not None:
            images += 1
            pixels += len(decoded.image.sample) * decoded.image.width * decoded.image.height
        if images >= batch or pixels >= BATCH_PIXELS:
            yield from _score(waiting, detector)
            waiting, images, pixels = [], 0, 0
    yield from _score(waiting, detector)


def _decode_ahead(
    files: Iterable[Path], limits: IntakeLimits, *, ahead: int
) -> Iterator[ScoredFile]:
    remaining = iter(files)
    with (
        # Decoding ignores warnings for a while, which is the process's and no thread's own.
        warnings.catch_warnings(action="ignore"),
        ThreadPoolExecutor(_decoders(), thread_name_prefix="decode") as threads,
    ):
        futures: deque[Future[ScoredFile]] = deque(
            threads.submit(_decode, file, limits) for file in islice(remaining, ahead)
        )
        try:
            while futures:
                decoded = futures.popleft().result()
                futures.extend(
                    threads.submit(_decode, file, limits) for file in islice(remaining, 1)
                )
                yield decoded
        finally:  # who stops early waits for a few files and not for all that were to come
            for future in futures:
                future.cancel()


def _decoders() -> int:
    """Return how many large photographs are decoded at once; codecs let other threads run."""
    return min(4, os.cpu_count() or 1)


def _decode(file: Path, limits: IntakeLimits) -> ScoredFile:
    try:
        with file.open("rb") as handle:
            # One byte more than allowed is enough for the decoder to refuse the file.
            data = handle.read(limits.max_bytes + 1)
        return ScoredFile(path=file, image=decode(data, limits=limits))
    except Exception as error:  # noqa: BLE001 - the file's line says so; the others go on
        return ScoredFile(path=file, error=error)


def _score(batch: list[ScoredFile], detector: Detector) -> Iterator[ScoredFile]:
    images = [decoded.image for decoded in batch if decoded.image is not None]
    try:
        scores: list[Score | Exception] = [*_decided(images, detector)]
    except Exception:  # noqa: BLE001 - one by one, the image at fault names itself
        scores = [_score_alone(image, detector) for image in images]
    outcomes = iter(scores)
    for decoded in batch:
        if decoded.image is None:
            yield decoded
            continue
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            yield ScoredFile(path=decoded.path, error=outcome)
        else:
            yield ScoredFile(path=decoded.path, image=decoded.image, score=outcome)


def _decided(images: Sequence[DecodedImage], detector: Detector) -> list[Score]:
    """Score every frame of the images at once and decide by image."""
    frames = [frame.pixels for image in images for frame in image.sample]
    scores = iter(detector.score(frames) if frames else [])
    return [decide(image.sample, list(islice(scores, len(image.sample)))) for image in images]


def _score_alone(image: DecodedImage, detector: Detector) -> Score | Exception:
    try:
        return _decided([image], detector)[0]
    except Exception as error:  # noqa: BLE001 - as above
        return error
