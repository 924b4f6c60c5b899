"""AVIF and HEIF: colours told by `colr`, films, and files that were cut."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from detection.intake.container_limits import ContainerLimits
from detection.intake.decode import decode
from detection.intake.errors import MetadataBomb, Truncated, UnsupportedFormat
from detection.intake.formats.isobmff import survey_avif
from tests.support.images.bad_files import LIMITS, animated, box, encoded, picture

_BOUNDS = ContainerLimits(max_frames=50, max_metadata_bytes=2**18, max_pixels=2**22)


def _recoloured(data: bytes, primaries: int, transfer: int) -> bytes:
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_code_points_tell_the_colours(kind: str) -> None:
    """The same levels in P3 are more vivid in sRGB; in sRGB they stay."""
    plain = encoded(picture(), kind, quality=95)
    as_stored = decode(plain, limits=LIMITS).pixels.astype(int)
    assert np.array_equal(decode(_recoloured(plain, 1, 13), limits=LIMITS).pixels, as_stored)
    vivid = decode(_recoloured(plain, 12, 13), limits=LIMITS).pixels.astype(int)
    assert np.ptp(vivid, axis=2).mean() > np.ptp(as_stored, axis=2).mean() + 5
    assert np.abs(vivid[-3, -3] - as_stored[-3, -3]).max() <= 2  # white corner


def test_a_grid_takes_the_colours_of_its_tiles() -> None:
    """Where the primary item has no `colr`, that of another item counts."""
    plain = _recoloured(encoded(picture(), "AVIF", quality=95), 12, 13)
    at = plain.index(b"pitm") + 4
    elsewhere = plain[: at + 4] + struct.pack(">H", 99) + plain[at + 6 :]
    assert survey_avif(elsewhere, _BOUNDS).colours == survey_avif(plain, _BOUNDS).colours
    assert survey_avif(plain, _BOUNDS).colours is not None


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_a_file_that_was_cut_is_truncated(kind: str) -> None:
    """What ends inside its own pixels is no file with something behind it."""
    whole = encoded(picture(), kind, quality=95)
    for length in (len(whole) - 1, len(whole) * 3 // 4, 60):
        with pytest.raises(Truncated):
            decode(whole[:length], limits=LIMITS)


def test_a_sequence_of_hevc_pictures_is_refused_by_name() -> None:
    """A still would stand in for the film."""
    data = box(b"ftyp", b"msf1\0\0\0\0msf1hevc") + box(b"moov", bytes(40))
    with pytest.raises(UnsupportedFormat, match="HEIF sequence"):
        decode(data, limits=LIMITS)


def test_tables_beyond_the_limit_are_refused() -> None:
    """A table of megabytes keeps a parser busy and describes no picture."""
    plain = encoded(picture(), "AVIF")
    with pytest.raises(MetadataBomb, match="tables"):
        survey_avif(plain + box(b"moov", bytes(2**18 + 1)), _BOUNDS)


def test_frame_times_are_read_from_the_track() -> None:
    """Durations come out in milliseconds, whatever the file's own clock."""
    timeline = survey_avif(animated()["AVIF"], _BOUNDS).timeline
    assert timeline is not None
    assert timeline.durations_ms == pytest.approx((100, 200, 700))
    assert timeline.repeats
