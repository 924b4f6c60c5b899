"""`make bench-check DATA=…`: score every image file of a folder; speed after loading, and errors.

Prints a table on standard error and one JSON object on standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detection.detector import Detector
from worker.scoring.file_scoring import ScoredFile, check_files, find_files, intake_limits
from worker.settings import Intake

PHOTOGRAPH = (4928, 3264)  # 16 megapixels
SQUARE = 512


def main() -> int:
    """Run the benchmark; returns 1 when a file could not be scored."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder, read recursively")
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    files = list(find_files([options.data]))
    if not files:
        parser.error(f"no image files in {options.data}")
    began = time.perf_counter()
    detector = Detector.load(options.bundle, device=options.device)
    detector.self_check()
    report: dict[str, Any] = {
        "model_version": detector.model_version,
        "device": options.device,
        "batch": options.batch,
        "load_s": time.perf_counter() - began,
        **whole_folder(detector, files, options.batch),
        f"squares_{SQUARE}_per_s": squares_per_s(detector, files, options.batch),
        "photograph_16_megapixels_s": photograph_s(detector, files),
    }
    for name, value in report.items():
        shown = f"{value:.3f}" if isinstance(value, float) else value
        print(f"{name:<28} {shown}", file=sys.stderr)
    print(json.dumps(report))
    return 1 if report["errors"] else 0


def whole_folder(detector: Detector, files: list[Path], batch: int) -> dict[str, Any]:
    """Score every file once, decoding included."""
    began = time.perf_counter()
    labels: Counter[str] = Counter()
    errors: dict[str, str] = {}
    for checked in check_files(files, detector, intake_limits(Intake()), batch=batch):
        if checked.score is None:
            errors[str(checked.path)] = f"{type(checked.error).__name__}: {checked.error}"
        else:
            labels[checked.score.label.value] += 1
    seconds = time.perf_counter() - began
    return {
        "files": len(files),
        "errors": errors,
        "labels": dict(labels),
        "seconds": seconds,
        "files_per_s": len(files) / seconds,
    }


def squares_per_s(detector: Detector, files: list[Path], batch: int) -> float:
    """Score 32 images of the folder, brought to 512 x 512 beforehand: the forward passes alone."""
    decoded = [checked.image for checked in _decoded(detector, files[:32])]
    squares = [
        np.asarray(Image.fromarray(image.pixels).resize((SQUARE, SQUARE)))
        for image in decoded
        if image is not None
    ]
    detector.score(squares[:batch])
    began = time.perf_counter()
    for start in range(0, len(squares), batch):
        detector.score(squares[start : start + batch])
    return len(squares) / (time.perf_counter() - began)


def photograph_s(detector: Detector, files: list[Path]) -> float:
    """Score one 16-megapixel JPEG, from its bytes on the disk to its score."""
    source = next(c.image for c in _decoded(detector, files) if c.image is not None)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "photograph.jpg"
        large = Image.fromarray(source.pixels).resize(PHOTOGRAPH, Image.Resampling.BICUBIC)
        large.save(file, quality=92)
        began = time.perf_counter()
        (checked,) = _check(detector, [file], 1)
        seconds = time.perf_counter() - began
    if checked.error is not None:
        raise checked.error
    return seconds


def _check(detector: Detector, files: list[Path], batch: int) -> list[ScoredFile]:
    return list(check_files(files, detector, intake_limits(Intake()), batch=batch))


def _decoded(detector: Detector, files: list[Path]) -> list[ScoredFile]:
    return [checked for checked in _check(detector, files[:32], 8) if checked.error is None]


if __name__ == "__main__":
    sys.exit(main())
