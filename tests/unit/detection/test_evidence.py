"""Evidence: in its place, at the image's scale, and saying what it explains."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from detection.detector import TileLogit
from detection.evidence import OUTSIDE, describe, error_at_image_scale, overlay
from detection.score import Label, Score

MAP = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
GREY = np.full((80, 120, 3), 100, np.uint8)


def score(decided_by: str = "lare", error_map: object = MAP) -> Score:
    """A verdict with a map of four cells."""
    return Score(
        probability=0.875,
        label=Label.GENERATED,
        branches={"lare": 1.5, "aligned": -0.25},
        decided_by=decided_by,
        operating_point="fpr=0.01",
        prior=0.5,
        error_map=error_map,
        distance=0.42,
    )


@pytest.mark.parametrize("shape", [(80, 120), (120, 80), (81, 64), (64, 64)])
def test_the_map_lies_on_the_centre_square_only(shape: tuple[int, int]) -> None:
    """Each quarter of the centre square holds its cell's error; outside there is no number."""
    errors = error_at_image_scale(MAP, *shape)
    assert errors.shape == shape
    assert errors.dtype == np.float32
    square = min(shape)
    top, left = (shape[0] - square) // 2, (shape[1] - square) // 2
    inside = errors[top : top + square, left : left + square]
    half = square // 2
    assert (inside[:half, :half] == 1).all()
    assert (inside[:half, -half:] == 2).all()
    assert (inside[-half:, :half] == 3).all()
    assert (inside[-half:, -half:] == 4).all()
    assert np.isnan(errors).sum() == errors.size - square * square


def test_the_overlay_shows_where_there_is_evidence() -> None:
    """Low errors are blue, high ones light, and what is no part of the map is darkened."""
    png = Image.open(io.BytesIO(overlay(GREY, score())))
    assert png.format == "PNG"
    pixels = np.asarray(png).astype(int)
    assert pixels.shape[1] >= 120
    assert pixels.shape[0] > 80
    assert (pixels[40, 5] == int(100 * OUTSIDE)).all()
    red, _, blue = pixels[10, 30]
    assert blue > red
    assert pixels[70, 90].min() > 150


def test_tiles_are_framed_by_the_sign_of_their_logit() -> None:
    """A tile above 0 is framed red, one below 0 blue, each where it lies."""
    tiles = [
        TileLogit(top=0, left=0, height=40, width=40, logit=2.0),
        TileLogit(top=40, left=80, height=40, width=40, logit=-2.0),
    ]
    pixels = np.asarray(Image.open(io.BytesIO(overlay(GREY, score("aligned", None), tiles))))
    assert tuple(pixels[39, 20]) == (255, 0, 0)
    red, _, blue = (int(value) for value in pixels[79, 100])
    assert blue > red
    assert tuple(pixels[60, 20]) == (100, 100, 100)


def test_the_caption_names_the_branch_and_the_scale() -> None:
    """The PNG carries its caption: verdict, deciding branch, colours with their numbers."""
    png = Image.open(io.BytesIO(overlay(GREY, score())))
    text = png.text["Description"]
    assert text.startswith(
        "generated: just beyond, +0.4 from the point of accusation; label at fpr=0.01.\n"
    )
    assert "0.875" not in text
    assert "Decided by the lare branch" in text
    assert "from 1.03 (dark blue)" in text
    assert "to 3.97" in text
    assert "does not explain" not in text


def test_a_map_is_not_passed_off_as_the_reason() -> None:
    """When the aligned branch decided, the caption says that the map explains nothing."""
    tiles = [TileLogit(top=0, left=0, height=64, width=64, logit=3.0)]
    assert describe(score("aligned"), tiles)[-1] == (
        "The error map does not explain this verdict; the tiles do."
    )
    assert not any("map" in line for line in describe(score("aligned", None), tiles))


def test_a_constant_map_is_drawn() -> None:
    """A map without any contrast is no division by zero: all of it has the colour of no error."""
    flat = np.ones((4, 4), np.float32)
    drawn = np.asarray(Image.open(io.BytesIO(overlay(GREY, score(error_map=flat)))))
    square = drawn[:80, 20:100].reshape(-1, 3)
    assert (square == square[0]).all()
    assert square[0, 2] > square[0, 0]
