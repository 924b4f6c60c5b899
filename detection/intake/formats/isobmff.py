"""AVIF and HEIF (ISO/IEC 14496-12 and 23008-12): where the file ends, its colours, its timing.

Phones write more behind the last box: Samsung its own trailer, others a film. Viewers read a file
up to there, and so does `survey_avif`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from detection.intake.colour_spaces import by_code_points
from detection.intake.errors import MetadataBomb, Truncated, UnsupportedFormat
from detection.intake.formats.survey import Survey, Timeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from detection.intake.colour_spaces import ColourSpace
    from detection.intake.container_limits import ContainerLimits

# Name, where the body begins, where it ends.
Box = tuple[bytes, int, int]

# Boxes that hold what the picture needs: one that the file's end cuts means a file that was cut.
_NEEDED = {b"ftyp", b"meta", b"moov", b"mdat", b"moof"}
_SAMPLE_ENTRY_BYTES = 78  # of a VisualSampleEntry, before its boxes


def boxes(data: bytes, bounds: ContainerLimits) -> Iterator[Box]:
    """Yield the file's own boxes; whatever follows the last of them is no part of the picture.

    Raises `Truncated` when the file ends inside a box that the picture needs.
    """
    at, pieces, seen = 0, 0, set[bytes]()
    while at < len(data):
        pieces += 1
        bounds.check_pieces(pieces)
        name, body, end = _header(data, at, len(data))
        described = bool(seen & {b"meta", b"moov"})
        if described and (body > end or not name.isalnum() or name == b"ftyp"):
            return
        if end > len(data) or body > end:
            if described and name not in _NEEDED:
                return
            message = f"The file ends inside its {name.decode('latin-1')!r} box."
            raise Truncated(message)
        seen.add(name)
        yield name, body, end
        at = end


def survey_avif(data: bytes, bounds: ContainerLimits) -> Survey:
    """Cut off what follows the last box; read the colours (`colr`) and a sequence's timing."""
    whole = list(boxes(data, bounds))
    for name, start, end in whole:
        if name in {b"meta", b"moov"} and end - start > bounds.max_metadata_bytes:
            message = (
                f"The file's tables (its {name.decode()!r} box) take more than "
                f"{bounds.max_metadata_bytes} bytes, the limit (max_metadata_bytes)."
            )
            raise MetadataBomb(message)
    timeline = colours = None
    for name, start, stop in whole:
        if name == b"meta":
            colours = colours or _item_colours(data, start + 4, stop)
        elif name == b"moov":
            track = _picture_track(data, start, stop)
            if track is not None and _is_sequence(data):
                colours = _track_colours(data, *track) or colours
                timeline = _timeline(data, *track, bounds)
    end = whole[-1][2] if whole else len(data)
    frames = 1 if timeline is None else len(timeline.durations_ms)
    picture = data[:end] if end < len(data) else None
    return Survey(frames=frames, picture=picture, colours=colours, timeline=timeline)


def survey_heif(data: bytes, bounds: ContainerLimits) -> Survey:
    """The same for pictures of HEVC; raises `UnsupportedFormat` for a film of them."""
    if _is_sequence(data):
        message = "The file is an HEIF sequence, which is not checked; upload one picture of it."
        raise UnsupportedFormat(message)
    return survey_avif(data, bounds)


def _header(data: bytes, at: int, stop: int) -> tuple[bytes, int, int]:
    length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
    if length == 1:
        return name, at + 16, at + int.from_bytes(data[at + 8 : at + 16], "big")
    return name, at + 8, stop if length == 0 else at + length


def _inner(data: bytes, start: int, stop: int) -> Iterator[Box]:
    """Yield the boxes inside another one, until something is no box."""
    at = start
    while at + 8 <= stop:
        name, body, end = _header(data, at, stop)
        if not body <= end <= stop:
            return
        yield name, body, end
        at = end


def _find(data: bytes, start: int, stop: int, *path: bytes) -> tuple[int, int] | None:
    for wanted in path:
        place = next((box[1:] for box in _inner(data, start, stop) if box[0] == wanted), None)
        if place is None:
            return None
        start, stop = place
    return start, stop


def _is_sequence(data: bytes) -> bool:
    """Whether the picture is the sequence (its major brand says so) and not the still beside it."""
    return data[8:12] in {b"avis", b"msf1", b"hevc", b"hevx"}


# ---------------------------------------------------------------- colours


def _item_colours(data: bytes, start: int, stop: int) -> ColourSpace | None:
    """The colours of the primary item; of any item where that one has none (a grid's tiles)."""
    container = _find(data, start, stop, b"iprp", b"ipco")
    if container is None:
        return None
    properties = list(_inner(data, *container))
    primary = _primary_item(data, start, stop)
    numbers = _properties_of(data, primary, start, stop)
    own = [properties[number - 1] for number in numbers if 0 < number <= len(properties)]
    for candidates in (own, properties):
        told = [box for box in candidates if box[0] == b"colr"]
        if told:
            return _colr(data, told)
    return None


def _primary_item(data: bytes, start: int, stop: int) -> int:
    place = _find(data, start, stop, b"pitm")
    if place is None:
        return 0
    at, _ = place
    return int.from_bytes(data[at + 4 : at + (6 if data[at] == 0 else 8)], "big")


def _properties_of(data: bytes, item: int, start: int, stop: int) -> list[int]:
    """Numbers, from 1, of an item's properties in `ipco` (ItemPropertyAssociationBox)."""
    place = _find(data, start, stop, b"iprp", b"ipma")
    if place is None:
        return []
    at, end = place
    wide_items, wide_numbers = data[at] > 0, bool(data[at + 3] & 1)
    (entries,) = struct.unpack_from(">I", data, at + 4)
    at += 8
    for _ in range(entries):
        size = 4 if wide_items else 2
        if at + size >= end:
            break
        found = int.from_bytes(data[at : at + size], "big")
        count, at = data[at + size], at + size + 1
        step = 2 if wide_numbers else 1
        if found == item:
            mask = 0x7FFF if wide_numbers else 0x7F
            places = range(at, min(at + count * step, end - step + 1), step)
            return [int.from_bytes(data[i : i + step], "big") & mask for i in places]
        at += count * step
    return []


def _colr(data: bytes, told: list[Box]) -> ColourSpace | None:
    """Read colour boxes; an ICC profile among them tells the colours, and the decoder has it."""
    kinds = {data[start : start + 4]: start for _, start, stop in told if stop - start >= 11}
    at = kinds.get(b"nclx")
    if at is None or kinds.keys() & {b"prof", b"rICC"}:
        return None
    primaries, transfer = struct.unpack_from(">HH", data, at + 4)
    return by_code_points(primaries, transfer)


# ---------------------------------------------------------------- sequences


def _picture_track(data: bytes, start: int, stop: int) -> tuple[int, int] | None:
    for name, body, end in _inner(data, start, stop):
        if name == b"trak":
            handler = _find(data, body, end, b"mdia", b"hdlr")
            if handler is not None and data[handler[0] + 8 : handler[0] + 12] == b"pict":
                return body, end
    return None


def _track_colours(data: bytes, start: int, stop: int) -> ColourSpace | None:
    place = _find(data, start, stop, b"mdia", b"minf", b"stbl", b"stsd")
    entry = None if place is None else next(_inner(data, place[0] + 8, place[1]), None)
    if entry is None:
        return None
    told = [
        box for box in _inner(data, entry[1] + _SAMPLE_ENTRY_BYTES, entry[2]) if box[0] == b"colr"
    ]
    return _colr(data, told) if told else None


def _timeline(data: bytes, start: int, stop: int, bounds: ContainerLimits) -> Timeline | None:
    header = _find(data, start, stop, b"mdia", b"mdhd")
    times = _find(data, start, stop, b"mdia", b"minf", b"stbl", b"stts")
    if header is None or times is None:
        return None
    wide = data[header[0]] == 1
    (scale,) = struct.unpack_from(">I", data, header[0] + (20 if wide else 12))
    (entries,) = struct.unpack_from(">I", data, times[0] + 4)
    durations: list[float] = []
    for at in range(times[0] + 8, min(times[0] + 8 + 8 * entries, times[1] - 7), 8):
        count, ticks = struct.unpack_from(">II", data, at)
        bounds.check_frames(len(durations) + count)
        durations += [1000 * ticks / (scale or 1)] * count
    if len(durations) < 2:
        return None
    edits = _find(data, start, stop, b"edts", b"elst")
    # Without an edit list viewers repeat for ever; its lowest flag says that it repeats.
    repeats = edits is None or bool(data[edits[0] + 3] & 1)
    return Timeline(durations_ms=tuple(durations), repeats=repeats)
