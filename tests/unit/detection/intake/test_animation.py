"""Which frames of an animation are judged, and that their pixels are those shown."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from detection.intake.animation import SLOTS, sample
from detection.intake.decode import IntakeLimits, decode
from detection.intake.errors import Corrupt, TooManyPixels
from detection.intake.formats.survey import Timeline
from tests.support.images import bad_files
from tests.support.images.bad_files import HEIGHT, LIMITS, WIDTH, encoded, png_chunk

_COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def _flat(level: float) -> np.ndarray:
    return np.full((16, 16, 3), level, np.float32)


def _numbers(timeline: Timeline, levels: list[float]) -> list[int]:
    return [number for number, _ in sample(timeline, SLOTS, lambda n: _flat(levels[n]))]


# ---------------------------------------------------------------- which frames


def test_few_frames_are_all_judged_by_their_time() -> None:
    """As many frames as slots, or fewer, each count by their share."""
    timeline = Timeline(durations_ms=(100.0, 200.0, 700.0))
    assert sample(timeline, SLOTS, lambda _: pytest.fail("no frame needs a look")) == [
        (0, pytest.approx(0.1)),
        (1, pytest.approx(0.2)),
        (2, pytest.approx(0.7)),
    ]


@pytest.mark.parametrize("at", range(0, 100, 3))
def test_a_frame_that_flashes_by_is_never_chosen(at: int) -> None:
    """Wherever a decoy stands among frames of a film, the film is what is judged."""
    levels = [float(100 + number % 7) for number in range(100)]
    levels[at] = 255.0
    numbers = _numbers(Timeline(durations_ms=(40.0,) * 100), levels)
    assert at not in numbers
    assert len(numbers) == SLOTS


def test_decoys_at_every_border_and_middle_are_not_chosen() -> None:
    """Knowing how time is cut does not help: decoys of a tenth of the time change nothing."""
    levels = [100.0] * 100
    decoys = [number for slot in range(SLOTS) for number in (20 * slot, 20 * slot + 10)]
    for number in decoys:
        levels[number] = 255.0
    assert not set(decoys) & set(_numbers(Timeline(durations_ms=(40.0,) * 100), levels))


def test_shares_follow_the_time_and_sum_to_one() -> None:
    """A frame that fills three fifths of the time stands for three slots."""
    durations = (10_000.0, *(1000.0,) * 7)
    chosen = dict(
        sample(Timeline(durations_ms=durations), SLOTS, lambda number: _flat(30.0 * number))
    )
    assert chosen[0] == pytest.approx(0.6)
    assert sum(chosen.values()) == pytest.approx(1)


def test_frames_without_time_are_shown_as_browsers_show_them() -> None:
    """10 ms or less are 100 ms: a decoy of "1 ms" before 5 s has 2 % of the time."""
    ((_, first), (_, second)) = sample(Timeline(durations_ms=(1.0, 4900.0)), SLOTS, _flat)
    assert (first, second) == (pytest.approx(0.02), pytest.approx(0.98))


def test_the_last_frame_of_an_animation_that_ends_stays() -> None:
    """Played once, nine seconds of something else do not outweigh what remains to be seen."""
    timeline = Timeline(durations_ms=(9000.0, 100.0), repeats=False)
    assert sample(timeline, SLOTS, _flat) == [(0, pytest.approx(0.5)), (1, pytest.approx(0.5))]


# ---------------------------------------------------------------- decoded


@pytest.mark.parametrize("kind", bad_files.animated())
def test_every_frame_is_decoded_with_its_share(kind: str) -> None:
    """Colours and shares of the frames come out in order, and the longest is the picture."""
    image = decode(bad_files.animated()[kind], limits=LIMITS)
    assert image.frames == 3
    assert [frame.number for frame in image.sample] == [0, 1, 2]
    assert [frame.share for frame in image.sample] == pytest.approx([0.1, 0.2, 0.7])
    for frame, colour in zip(image.sample, _COLOURS, strict=True):
        assert frame.pixels.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(frame.pixels.astype(int) - colour).max() <= 3
    assert image.pixels is image.frame(2)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_frames_after_a_look_at_all_are_those_of_their_number(kind: str) -> None:
    """With more frames than slots, what is decoded in the end is what was chosen."""
    levels = [20 * n for n in range(12)]
    pictures = [Image.new("RGB", (64, 64), (level, level, 60)) for level in levels]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(
        pictures[0], kind, save_all=True, append_images=pictures[1:], duration=200, **options
    )
    image = decode(data, limits=LIMITS)
    assert len(image.sample) <= SLOTS
    for frame in image.sample:
        assert abs(int(frame.pixels[30, 30, 0]) - levels[frame.number]) <= 3


def test_frames_that_only_change_a_part_are_shown_whole() -> None:
    """A GIF's later frame that covers a corner keeps what the earlier one left."""
    base = Image.new("RGB", (64, 64), (255, 0, 0))
    changed = base.copy()
    changed.paste((0, 0, 255), (0, 0, 20, 20))
    data = encoded(base, "GIF", save_all=True, append_images=[changed], duration=500, loop=0)
    second = decode(data, limits=LIMITS).frame(1)
    assert second[5, 5].tolist() == [0, 0, 255]
    assert second[50, 50].tolist() == [255, 0, 0]


def test_a_gif_that_was_cut_is_judged_up_to_its_last_whole_frame() -> None:
    """Viewers play what is there."""
    data = bad_files.animated()["GIF"]
    image = decode(data[:-8], limits=LIMITS)
    assert [frame.number for frame in image.sample] == [0, 1]
    assert image.sample[1].pixels[5, 5].tolist() == [0, 255, 0]


def _grey_steps(count: int) -> bytes:
    pictures = [Image.new("RGB", (96, 80), (5 * n, 0, 0)) for n in range(count)]
    rest = pictures[1:]
    return encoded(pictures[0], "GIF", save_all=True, append_images=rest, duration=100, loop=0)


def _limited(pictures: int) -> IntakeLimits:
    """Limits that one picture may have as many pixels as some of 96 x 80."""
    return IntakeLimits(
        max_bytes=2**20, max_pixels=pictures * 96 * 80, max_frames=50, max_metadata_bytes=2**20
    )


def test_the_frames_of_a_large_animation_are_fewer() -> None:
    """All frames kept have no more pixels than one picture may have."""
    assert len(decode(_grey_steps(7), limits=_limited(4)).sample) == 4


def test_an_animation_of_too_many_pixels_is_refused() -> None:
    """What it would take to look at every frame is bounded."""
    with pytest.raises(TooManyPixels, match="40 frames of 96 x 80"):
        decode(_grey_steps(40), limits=_limited(19))
    assert len(decode(_grey_steps(40), limits=_limited(20)).sample) == SLOTS


# ---------------------------------------------------------------- APNG


def _packed(colour: tuple[int, int, int]) -> bytes:
    return zlib.compress((b"\0" + bytes(colour) * 64) * 64)


def _control(sequence: int, *, width: int = 64, ms: int = 500) -> bytes:
    return png_chunk(b"fcTL", struct.pack(">5I2H2B", sequence, width, 64, 0, 0, ms, 1000, 0, 0))


def _data(sequence: int, colour: tuple[int, int, int]) -> bytes:
    return png_chunk(b"fdAT", struct.pack(">I", sequence) + _packed(colour))


def _apng(*chunks: bytes, count: int) -> bytes:
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)),
            png_chunk(b"acTL", struct.pack(">II", count, 0)),
            *chunks,
            png_chunk(b"IEND", b""),
        )
    )


_RED, _GREEN, _BLUE = _COLOURS
_DEFAULT = png_chunk(b"IDAT", _packed(_RED))


@pytest.mark.parametrize("count", [1, 2])
def test_a_default_picture_outside_the_animation_is_not_judged(count: int) -> None:
    """The picture that only software without APNG shows is no frame."""
    chunks = [_DEFAULT, _control(0), _data(1, _GREEN)]
    if count == 2:
        chunks += [_control(2), _data(3, _BLUE)]
    image = decode(_apng(*chunks, count=count), limits=LIMITS)
    colours = [tuple(frame.pixels[5, 5].tolist()) for frame in image.sample]
    assert colours == [_GREEN, _BLUE][:count]
    assert [frame.number for frame in image.sample] == list(range(count))


@pytest.mark.parametrize(
    "chunks",
    [
        (_DEFAULT, _control(0), _data(5, _GREEN)),
        (_DEFAULT, _control(1), _data(2, _GREEN)),
        (_DEFAULT, _control(0, width=65), _data(1, _GREEN)),
        (_DEFAULT, _control(0)),
        (_control(0, width=32), _DEFAULT, _control(1), _data(2, _GREEN)),
        (_DEFAULT, _data(0, _GREEN)),
    ],
)
def test_an_animation_that_does_not_fit_together_is_refused(chunks: tuple[bytes, ...]) -> None:
    """Some browsers show the default picture of a broken APNG, others nothing."""
    with pytest.raises(Corrupt, match="does not fit together"):
        decode(_apng(*chunks, count=1), limits=LIMITS)


def test_an_animation_whose_control_chunk_is_damaged_is_none() -> None:
    """Without its checksum acTL is ignored, so that browsers show the default picture."""
    data = _apng(_DEFAULT, _control(0), _data(1, _GREEN), count=1)
    at = data.index(b"acTL") + 12
    image = decode(data[:at] + bytes(4) + data[at + 4 :], limits=LIMITS)
    assert [tuple(frame.pixels[5, 5].tolist()) for frame in image.sample] == [_RED]
