"""Colours told by code points or measurements, against values of the standards."""

from __future__ import annotations

import numpy as np
import pytest

from detection.intake.colour_spaces import by_code_points, by_measurement
from detection.intake.errors import UnsupportedFormat

_SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)


def _converted(primaries: int, transfer: int, *levels: int) -> list[int]:
    space = by_code_points(primaries, transfer)
    assert space is not None
    pixel = np.array(levels, np.uint8).reshape(1, 1, 3)
    return [int(level) for level in space.to_srgb(pixel)[0, 0]]


@pytest.mark.parametrize(
    ("primaries", "transfer", "stored", "shown"),
    [
        # Display P3, values of CSS Color 4, sample colours and out-of-gamut red.
        (12, 13, (234, 51, 35), (255, 0, 0)),
        (12, 13, (128, 128, 128), (128, 128, 128)),
        # BT.2020 and sRGB's red in it, at sRGB's curve: 0.6274, 0.0691, 0.0164 linear.
        (9, 13, (207, 74, 34), (255, 0, 0)),
        # Linear light: 0.5 is 188.
        (1, 8, (128, 128, 128), (188, 188, 188)),
        # PQ: 58.1 % of the signal is 203 cd/m2 (BT.2408), 10000 cd/m2 clips; 26 cd/m2 are 13 %.
        (9, 16, (148, 148, 148), (254, 254, 254)),
        (9, 16, (255, 255, 255), (255, 255, 255)),
        (9, 16, (0, 0, 0), (0, 0, 0)),
        (9, 16, (97, 97, 97), (101, 101, 101)),
        # HLG: 75 % of the signal is reference white (BT.2408).
        (9, 18, (191, 191, 191), (254, 254, 254)),
        (9, 18, (0, 0, 0), (0, 0, 0)),
    ],
)
def test_code_points_are_shown_as_the_standards_say(
    primaries: int, transfer: int, stored: tuple[int, ...], shown: tuple[int, ...]
) -> None:
    """Known colours come out within what 8 bits of the source allow."""
    assert np.abs(np.subtract(_converted(primaries, transfer, *stored), shown)).max() <= 3


@pytest.mark.parametrize("transfer", [1, 2, 6, 13, 14, 15])
def test_srgb_and_camera_curves_are_left_alone(transfer: int) -> None:
    """What viewers of HEIF and AVIF show as sRGB is not touched."""
    assert by_code_points(1, transfer) is None
    assert by_code_points(2, transfer) is None


def test_camera_curves_of_png_are_shown_with_the_gamma_of_a_display() -> None:
    """BT.1886: half the signal is 0.5 to the power of 2.4, which sRGB stores as 0.467."""
    space = by_code_points(1, 1, camera_display=True)
    assert space is not None
    pixel = np.full((1, 1, 3), 128, np.uint8)
    assert abs(int(space.to_srgb(pixel)[0, 0, 0]) - round(0.467 * 255 * 128 / 127.5)) <= 1


@pytest.mark.parametrize(("primaries", "transfer"), [(10, 13), (1, 9), (1, 10)])
def test_what_no_screen_shows_is_refused_by_its_numbers(primaries: int, transfer: int) -> None:
    """XYZ and logarithmic curves name themselves in the reason."""
    with pytest.raises(UnsupportedFormat, match=f"primaries {primaries}, transfer {transfer}"):
        by_code_points(primaries, transfer)


@pytest.mark.parametrize(
    ("points", "gamma"),
    [
        (None, 0.45455),
        (_SRGB, 0.45455),
        (_SRGB, 0.46),
        ((0.6400, 0.3301, 0.2999, 0.6001, 0.1500, 0.0600, 0.3127, 0.3290), 0.45455),
        (None, 0.0),
        (None, 1000.0),
        ((0.0,) * 8, 1.0),
        ((0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3), 1.0),
        ((0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.9, 0.9), 1.0),
    ],
)
def test_measurements_of_srgb_or_of_nothing_change_nothing(
    points: tuple[float, ...] | None, gamma: float
) -> None:
    """Photographs say sRGB by gamma and chromaticities; broken ones say nothing."""
    assert by_measurement(points, gamma) is None  # type: ignore[arg-type]  # eight of them


def test_gamma_alone_is_undone() -> None:
    """A linear file's half light is sRGB's 188."""
    space = by_measurement(None, 1.0)
    assert space is not None
    assert abs(int(space.to_srgb(np.full((1, 1, 3), 128, np.uint8))[0, 0, 0]) - 188) <= 1


def test_a_large_picture_is_converted_in_every_part() -> None:
    """Pixels beyond the block that is converted at once come out like the first."""
    space = by_code_points(1, 8)
    assert space is not None
    assert np.unique(space.to_srgb(np.full((1100, 1000, 3), 128, np.uint8))).tolist() == [188]
