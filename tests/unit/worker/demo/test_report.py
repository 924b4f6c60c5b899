"""What the demo's table and contact sheet say of a verdict."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console

from detection.detector import Detector
from detection.score import Label
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from worker.demo.contact_sheet import draw_sheet
from worker.demo.report import Row, summary, table
from worker.demo.uploads import DemoUpload, Kind
from worker.ledger.interface import State
from worker.scoring.file_scoring import intake_limits
from worker.settings import Intake

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

TOLD = [
    "real: below, -1.8",
    "real: below, -1.0",
    "unsure: not judged",
    "unsure: not surely beyond, -0.4",
    "generated: far beyond, +4.2",
]
SCORES = ["0.740", "0.865", "0.500", "0.925", "0.999"]


def rows(folder: Path) -> list[Row]:
    """Rows of what was misread: 0.74 and 0.865 beside real, 0.5 of a blank image, 0.93 unsure."""
    said: list[tuple[float, Label, float | None, str | None]] = [
        (0.74, Label.REAL, -1.84, None),
        (0.865, Label.REAL, -1.03, None),
        (0.5, Label.UNSURE, None, "nearly nothing to look at: 99% of what was read is blank"),
        (0.925, Label.UNSURE, -0.38, None),
        (0.999, Label.GENERATED, 4.24, None),
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    made = []
    for number, (score, label, distance, outside) in enumerate(said):
        file = folder / f"{number}.png"
        Image.fromarray(pixels).save(file)
        upload = DemoUpload(path=file, key=file.name, kind=Kind.PHOTOGRAPH, says="a picture")
        made.append(
            Row(
                upload=upload,
                state=State.SCORED,
                reason=None,
                detail=None,
                score=score,
                label=label,
                distance=distance,
                outside=outside,
                model_version="m",
            )
        )
    return made


def test_the_table_says_label_words_and_distance_before_the_score(tmp_path: Path) -> None:
    """A row of a terminal of 80 columns holds all of them, uncut and in the order of reading."""
    printed = io.StringIO()
    Console(file=printed, width=80).print(table(rows(tmp_path)))
    lines = printed.getvalue().splitlines()[1:]
    ends = [f"{told:<31}  {score}" for told, score in zip(TOLD, SCORES, strict=True)]
    assert [line[-len(end) :] for line, end in zip(lines, ends, strict=True)] == ends


def test_the_sheet_shows_no_probability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a picture stand label, words and distance, and the branch that decided."""
    drawn: list[str] = []
    text = ImageDraw.ImageDraw.text

    def note(draw: ImageDraw.ImageDraw, at: Any, words: str, *others: Any, **named: Any) -> None:
        drawn.append(words)
        text(draw, at, words, *others, **named)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    detector = Detector(build_tiny_bundle(tmp_path / "tiny", branches=("aligned",)))
    file = tmp_path / "sheet.png"
    draw_sheet(file, rows(tmp_path), detector, intake_limits(Intake()), title="a title")
    told = [words.removesuffix(", by aligned") for words in drawn if ", by " in words]
    assert told == TOLD
    assert not any(score in words for words in drawn for score in SCORES)


def test_the_generator_is_spoken_of_where_it_made_something(tmp_path: Path) -> None:
    """Pictures of one's own are no work of the bundle's generator, and nothing is said of it."""
    bundle = build_tiny_bundle(tmp_path / "tiny", branches=("backbone",))
    plain = rows(tmp_path)
    remade = [replace(row, upload=replace(row.upload, kind=Kind.VARIANT)) for row in plain]
    told = [" ".join(summary(some, bundle.manifest)) for some in (plain, remade)]
    assert ["makes pairs for retraining" in words for words in told] == [False, True]
