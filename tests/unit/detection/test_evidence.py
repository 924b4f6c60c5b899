"""Evidence: layers of what decided, each in its place, and words only of what is shown."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from detection import evidence
from detection.evidence import (
    DOCUMENT,
    ERROR_MAP,
    MAX_SIDE,
    OUTSIDE,
    PREVIEW,
    captions,
    clean_and_drawn,
    error_at_image_scale,
    flat_picture,
    make_evidence,
)
from detection.score import Label, Score, TileLogit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MAP = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
GREY = np.full((80, 120, 3), 100, np.uint8)
TILES = (
    TileLogit(top=0, left=0, height=40, width=40, logit=2.0),
    TileLogit(top=40, left=80, height=40, width=40, logit=-3.0),
)
#: Words of people who build detectors.
JARGON = ("lare", "aligned", "branch", "logit", "operating", "fpr", "latent", "tile", "crop")


def score(decided_by: str = "lare", **changes: Any) -> Score:
    """A verdict with a map of four cells and two tiles."""
    values: dict[str, Any] = {"error_map": MAP, "tiles": TILES, "distance": 0.42} | changes
    return Score(
        probability=0.875,
        label=Label.GENERATED,
        branches={"lare": 1.5, "aligned": -0.5},
        decided_by=decided_by,
        operating_point="fpr=0.01",
        prior=0.5,
        **values,
    )


def document(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Read the document."""
    return json.loads(files[DOCUMENT])


def kinds(files: Mapping[str, bytes]) -> list[str]:
    """Name the layers."""
    return [layer["kind"] for layer in document(files)["layers"]]


def opened(data: bytes) -> NDArray[np.int64]:
    """Decode a picture."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int64)


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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"decided_by": "lare"}, ["preview", "error_map"]),
        ({"decided_by": "aligned"}, ["preview", "tiles"]),
        ({"decided_by": "lare", "error_map": None}, ["preview"]),
        ({"decided_by": "aligned", "tiles": ()}, ["preview"]),
        ({"decided_by": "another"}, ["preview"]),
        ({"decided_by": "lare", "outside": "blank", "distance": None}, ["preview"]),
        ({"decided_by": "aligned", "outside": "blank", "distance": None}, ["preview"]),
    ],
)
def test_evidence_follows_what_decided(changes: dict[str, Any], expected: list[str]) -> None:
    """There is a layer of the branch that decided only, words of that layer only, and no jargon."""
    files = make_evidence(GREY, score(**changes))
    assert kinds(files) == expected
    assert (ERROR_MAP in files) == ("error_map" in expected)
    said = " ".join(captions(files))
    assert ("Colours" in said) == ("error_map" in expected)
    assert ("Frames" in said) == ("tiles" in expected)
    assert ("blank" in said) == ("outside" in changes)
    assert (document(files)["decided_by"] is None) == ("outside" in changes)
    assert [word for word in JARGON if word in said.lower()] == []


def test_the_caption_says_where_the_score_lies() -> None:
    """Label, words and distance stand first, as in the views; the probability does not."""
    first, second = document(make_evidence(GREY, score("aligned")))["caption"]
    assert first == (
        'The detector says "generated": just beyond the point of accusation, from which on it says'
        ' "generated" (distance +0.4).'
    )
    assert second == (
        "What counted most: the part that reads small squares of the picture at full size."
    )


@pytest.mark.parametrize("shape", [(80, 120), (1600, 1600), (2100, 3333), (7001, 64), (64, 30011)])
def test_the_preview_is_the_clean_picture_and_nothing_else(shape: tuple[int, int]) -> None:
    """At most 1600 pixels a side, its colours where they were, without any metadata."""
    height, width = shape
    down, across = np.mgrid[0:height, 0:width]
    pixels = np.stack(
        [255 * down // height, 255 * across // width, np.full(shape, 30)], axis=2
    ).astype(np.uint8)
    files = make_evidence(pixels, score())
    told = document(files)
    preview = opened(files[PREVIEW])
    layer = told["layers"][0]
    assert preview.shape[:2] == (layer["height"], layer["width"])
    assert max(preview.shape) == min(MAX_SIDE, max(shape))
    assert preview.shape[0] / preview.shape[1] == pytest.approx(height / width, rel=0.05, abs=0.6)
    assert told["picture"] == {"width": width, "height": height, "frame": 0}
    rows, columns = (np.arange(n) + 0.5 for n in preview.shape[:2])
    assert np.abs(preview[:, 0, 0] - 255 * rows / len(rows)).max() <= 12
    assert np.abs(preview[0, :, 1] - 255 * columns / len(columns)).max() <= 12
    with Image.open(io.BytesIO(files[PREVIEW])) as picture:
        assert picture.format == "JPEG"
        assert set(picture.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_large_pictures_are_never_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Pillow is given at once is bounded, however large the picture is."""
    given: list[int] = []
    convert = Image.fromarray

    def watched(array: NDArray[np.uint8]) -> Image.Image:
        given.append(array.shape[0] * array.shape[1])
        return convert(array)

    monkeypatch.setattr(evidence.Image, "fromarray", watched)
    make_evidence(np.zeros((5000, 9000, 3), np.uint8), score("aligned"))
    assert max(given) <= (2 * MAX_SIDE) ** 2
    assert sum(given) > 5000 * 9000


def test_the_error_map_is_a_layer_of_its_own() -> None:
    """A pixel a cell, low errors blue and high ones light, with its place and its numbers."""
    files = make_evidence(GREY, score())
    layer = document(files)["layers"][1]
    coloured = opened(files[ERROR_MAP])
    assert coloured.shape == (2, 2, 3)
    assert (layer["width"], layer["height"], layer["box"]) == (2, 2, [20, 0, 80, 80])
    assert coloured[0, 0, 2] > coloured[0, 0, 0]
    assert coloured[1, 1].min() > 200
    low, high = layer["range"]
    assert (low, high) == (pytest.approx(1.03), pytest.approx(3.97))


def test_the_tiles_layer_says_what_was_read() -> None:
    """Boxes in pixels of the original, logits, and their mean in the words."""
    layer = document(make_evidence(GREY, score("aligned")))["layers"][1]
    assert layer["tiles"] == [
        {"box": [0, 0, 40, 40], "logit": 2.0},
        {"box": [80, 40, 40, 40], "logit": -3.0},
    ]
    assert "the 2 squares" in layer["caption"]
    assert "average, -0.50," in layer["caption"]


def test_the_flat_picture_shows_the_clean_one_beside_the_map() -> None:
    """Left nothing is drawn, right the map lies on its square and the rest is darkened."""
    files = make_evidence(GREY, score())
    with Image.open(io.BytesIO(flat_picture(files))) as flat:
        assert flat.format == "PNG"
        assert flat.info["Description"].split("\n") == captions(files)
        pixels = np.asarray(flat.convert("RGB")).astype(int)
    assert (pixels[:80, :120] == opened(files[PREVIEW])).all()
    left = pixels.shape[1] // 2 + evidence.GAP // 2
    assert (pixels[40, left + 5] == int(100 * OUTSIDE)).all()
    red, _, blue = pixels[10, left + 30]
    assert blue > red
    assert pixels[70, left + 90].min() > 150


def test_tiles_are_framed_by_the_sign_of_their_logit() -> None:
    """A tile above 0 is framed red, one below 0 blue, where it lies; nothing else is changed."""
    large = GREY.repeat(25, axis=0).repeat(25, axis=1)
    tiles = tuple(
        TileLogit(top=25 * t.top, left=25 * t.left, height=1000, width=1000, logit=t.logit)
        for t in TILES
    )
    clean, drawn = clean_and_drawn(make_evidence(large, score("aligned", tiles=tiles)), MAX_SIDE)
    assert clean.size == (1600, 1067)
    assert drawn is not None
    pixels = np.asarray(drawn)
    assert tuple(pixels[532, 300]) == (255, 0, 0)
    red, _, blue = (int(value) for value in pixels[1066, 1300])
    assert blue > red
    assert tuple(pixels[800, 300]) == (100, 100, 100)
    assert (np.asarray(clean) == 100).all()


def test_a_picture_without_layers_stands_alone() -> None:
    """Nothing is drawn beside a picture that could not be judged; the reason stands below."""
    files = make_evidence(GREY, score(outside="blank: no pixel differs", distance=None))
    assert clean_and_drawn(files, MAX_SIDE)[1] is None
    pixels = opened(flat_picture(files))
    assert (pixels[:80, 120:] == 255).all()
    assert "(blank: no pixel differs)" in captions(files)[1]


@pytest.mark.parametrize("decided_by", ["lare", "aligned"])
@pytest.mark.parametrize("shape", [(64, 200_000), (200_000, 64)])
def test_a_thin_line_can_be_drawn(decided_by: str, shape: tuple[int, int]) -> None:
    """However small a square or tile becomes, it is at least a pixel."""
    tile = TileLogit(top=shape[0] - 64, left=shape[1] - 64, height=64, width=64, logit=1.0)
    files = make_evidence(np.zeros((*shape, 3), np.uint8), score(decided_by, tiles=(tile,)))
    assert opened(flat_picture(files)).any()


def test_a_constant_map_is_drawn() -> None:
    """A map without any contrast is no division by zero: all of it has the colour of no error."""
    flat = np.ones((4, 4), np.float32)
    coloured = opened(make_evidence(GREY, score(error_map=flat))[ERROR_MAP]).reshape(-1, 3)
    assert (coloured == coloured[0]).all()
    assert coloured[0, 2] > coloured[0, 0]
