"""The contact sheet: every image beside its evidence, with its label and distance, as one PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from detection.errors import UnlatentError
from detection.evidence import clean_and_drawn, make_evidence
from detection.intake.decode import decode
from detection.score import Label
from worker.demo.report import name
from worker.demo.uploads import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from detection.detector import Detector
    from detection.intake.decode import IntakeLimits
    from worker.demo.report import Row

SIDE = 168
GAP = 10
COLUMNS = 4
CELL_WIDTH = 2 * SIDE + 3 * GAP
TEXT_HEIGHT = 40
CELL_HEIGHT = SIDE + TEXT_HEIGHT + 2 * GAP
HEADING_HEIGHT = 44
FOOT_HEIGHT = 96
#: Images a sheet shows at most.
LIMIT = 120
INK, FAINT, PAPER, EMPTY = "#1d1d1f", "#6e6e73", "#ffffff", "#ececee"
COLOURS = {Label.REAL: "#1a7f37", Label.GENERATED: "#cf222e", Label.UNSURE: "#9a6700"}
HEADINGS = {
    Kind.PHOTOGRAPH: "Photographs (from scikit-learn and scikit-image)",
    Kind.RECONSTRUCTION: "Photographs through the bundle's small autoencoder",
    Kind.VARIANT: "Photographs noised and denoised by the bundle's small generator",
    Kind.BROKEN: "Broken files: no verdict",
    Kind.OWN: "Your pictures",
}
FOOT = """\
Left the image, right what counted most for its verdict. Red and blue (by backbone): where on the
centre square the number comes from, red for a generator, blue for a camera. Dark blue to light
yellow (by lare): where a generator's guess of added noise is wrong. Frames (by aligned): what was
read. The number is the distance from the point of accusation: above 0 the label is generated."""


def draw_sheet(
    file: Path, rows: Sequence[Row], detector: Detector, limits: IntakeLimits, *, title: str
) -> float:
    """Draw the first rows, at most `LIMIT`, with evidence computed again.

    Returns the largest difference between a row's score and the one computed here from the same
    bytes without any service.
    """
    shown = rows[:LIMIT]
    kinds = list(dict.fromkeys(row.upload.kind for row in shown))
    groups = {kind: [row for row in shown if row.upload.kind is kind] for kind in kinds}
    lines = sum(-(-len(group) // COLUMNS) for group in groups.values())
    height = HEADING_HEIGHT * (1 + len(groups)) + CELL_HEIGHT * lines + FOOT_HEIGHT
    sheet = Image.new("RGB", (CELL_WIDTH * COLUMNS + GAP, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    left_out = len(rows) - len(shown)
    more = f"; {left_out} more are not shown" if left_out else ""
    draw.text((GAP, 10), title + more, INK, _font(20))
    difference, top = 0.0, HEADING_HEIGHT
    for kind, group in groups.items():
        draw.text((GAP, top + 14), HEADINGS[kind], INK, _font(17))
        draw.line((GAP, top + 40, sheet.width - GAP, top + 40), EMPTY, 2)
        top += HEADING_HEIGHT
        for number, row in enumerate(group):
            at = (GAP + number % COLUMNS * CELL_WIDTH, top + GAP + number // COLUMNS * CELL_HEIGHT)
            difference = max(difference, _draw_cell(sheet, at, row, detector, limits))
        top += CELL_HEIGHT * -(-len(group) // COLUMNS)
    draw.multiline_text((GAP, top + 12), FOOT, FAINT, _font(13), spacing=8)
    sheet.save(file)
    return difference


def _draw_cell(
    sheet: Image.Image, at: tuple[int, int], row: Row, detector: Detector, limits: IntakeLimits
) -> float:
    left, top = at
    draw = ImageDraw.Draw(sheet)
    right = left + SIDE + GAP
    difference, branch = 0.0, ""
    for x in (left, right):
        draw.rectangle((x, top, x + SIDE - 1, top + SIDE - 1), EMPTY)
    if row.score is None:
        _centred(draw, (left, top), "no image")
        _centred(draw, (right, top), "no evidence")
    else:
        pixels = _pixels(row.upload.path, limits)
        score = detector.score([pixels])[0]
        difference = abs(score.probability - row.score)
        branch = "" if score.outside else f", by {score.decided_by}"
        thumbnail, drawn = clean_and_drawn(make_evidence(pixels, score), SIDE)
        _paste(sheet, (left, top), thumbnail)
        if drawn is None:
            _centred(draw, (right, top), "not judged" if score.outside else "no evidence")
        else:
            _paste(sheet, (right, top), drawn)
    colour = FAINT if row.label is None else COLOURS[row.label]
    draw.rectangle((left, top + SIDE, right + SIDE - 1, top + SIDE + 3), colour)
    verdict = f"{row.state}: {row.reason}" if row.label is None else row.verdict
    text_top = top + SIDE + 7
    draw.text((left, text_top), f"{verdict}{branch}", colour, _font(15))
    draw.text((left, text_top + 19), row.upload.says or name(row.upload), FAINT, _font(13))
    return difference


def _pixels(path: Path, limits: IntakeLimits) -> NDArray[np.uint8]:
    try:
        return decode(path.read_bytes(), limits=limits).pixels
    except OSError as error:
        raise UnlatentError(f"{path} cannot be read any more: {error.strerror}") from error


def _paste(sheet: Image.Image, at: tuple[int, int], picture: Image.Image) -> None:
    left, top = at
    sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))


def _centred(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str) -> None:
    draw.text((at[0] + SIDE / 2, at[1] + SIDE / 2), text, FAINT, _font(13), anchor="mm")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
