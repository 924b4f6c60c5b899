"""TIFF and EXIF image file directories (IFDs), read within bounds."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from detection.intake.errors import MetadataBomb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from detection.intake.container_limits import ContainerLimits

_MAX_IFDS = 10_000
_ORIENTATION, _EXIF_IFD = 0x0112, 0x8769
_USER_COMMENT = 0x9286
_ASCII, _SHORT = 2, 3
_SUB_IFDS = {0x8769, 0x8825, 0xA005}
_SUB_PAGES, _MAX_SUB_PAGES = 0x014A, 64
_TYPE_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_BIG_TYPE_SIZES = _TYPE_SIZES | {16: 8, 17: 8, 18: 8}

# Tag, type, count, value. The value is a view: overlapping entries must multiply nothing.
Entry = tuple[int, int, int, memoryview]


def orientation(exif: bytes) -> int:
    """Read EXIF orientation, 1 to 8; anything unreadable or out of range counts as upright."""
    try:
        for tag, kind, count, value in _entries(exif, _first_ifd(exif)):
            if tag == _ORIENTATION and kind == _SHORT and count == 1:
                (found,) = struct.unpack_from(_order(exif) + "H", value)
                return int(found) if 1 <= found <= 8 else 1  # EXIF's own range
    except (struct.error, IndexError):
        pass
    return 1


def texts(exif: bytes, wanted: frozenset[int]) -> dict[int, str]:
    """Read ASCII tags of the first directory and of its EXIF directory, skipping what is broken."""
    found: dict[int, str] = {}
    try:
        starts = [_first_ifd(exif)]
        for at in starts:
            for tag, kind, _, value in _entries(exif, at):
                if tag == _EXIF_IFD and len(starts) == 1:
                    starts.append(integer(exif, kind, value))
                elif tag in wanted and kind == _ASCII:
                    text = bytes(value).split(b"\0")[0].decode("utf-8", "replace").strip()
                    found.setdefault(tag, text)
    except (struct.error, IndexError):
        pass
    return found


def user_comment(exif: bytes) -> str | None:
    """Read UserComment of the EXIF directory: eight bytes name its code, the text follows.

    The standard leaves the byte order of UTF-16 open; where text is mostly Latin the zeros tell.
    """
    try:
        for tag, kind, _, value in _entries(exif, _first_ifd(exif)):
            if tag == _EXIF_IFD:
                for inner, form, _, comment in _entries(exif, integer(exif, kind, value)):
                    if inner == _USER_COMMENT and _TYPE_SIZES.get(form) == 1:
                        return _decode_comment(bytes(comment))
    except (struct.error, IndexError):
        pass
    return None


def _decode_comment(value: bytes) -> str:
    code, text = value[:8], value[8:]
    if code == b"UNICODE\0":
        big = text[0::2].count(0) >= text[1::2].count(0)
        return text.decode("utf-16-be" if big else "utf-16-le", "replace").strip("\0\ufeff ")
    if code not in {b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8)}:
        text = value  # what writes no code writes the text at once
    return text.decode("utf-8", "replace").strip("\0 ")


def directories(data: bytes, bounds: ContainerLimits) -> Iterator[list[Entry]]:
    """Yield every page's entries, following each page's sub-directories on the way."""
    for entries in _chain(data, _first_ifd(data), bounds):
        for tag, kind, _, value in entries:
            if tag in _SUB_IFDS:
                for _ in _chain(data, integer(data, kind, value), bounds):
                    pass
        yield entries


def sub_pages(data: bytes, entries: list[Entry], bounds: ContainerLimits) -> Iterator[list[Entry]]:
    """Yield the entries of the pictures below a page (SubIFDs, TIFF technical note 1)."""
    for tag, kind, _, value in entries:
        if tag == _SUB_PAGES:
            for at in integers(data, kind, value)[:_MAX_SUB_PAGES]:
                yield from _chain(data, at, bounds)


def _chain(data: bytes, start: int, bounds: ContainerLimits) -> Iterator[list[Entry]]:
    """Yield the entries of each directory of a chain, bounding what they refer to."""
    seen: set[int] = set()
    at, referred = start, 0
    while at:
        if at in seen:
            message = "The file's metadata directories refer to one another in a circle."
            raise MetadataBomb(message)
        seen.add(at)
        if len(seen) > _MAX_IFDS + bounds.max_frames:
            message = f"The file has more than {_MAX_IFDS} metadata directories."
            raise MetadataBomb(message)
        entries = list(_entries(data, at))
        # Entries may overlap: a small directory can ask a reader to copy the file many times.
        referred += sum(len(value) for *_, value in entries)
        bounds.check_referred(referred, len(data))
        yield entries
        at = _next_ifd(data, at)


def _order(data: bytes) -> str:
    return ">" if data[:2] == b"MM" else "<"


def _is_big(data: bytes) -> bool:
    return data[2:4] in {b"+\0", b"\0+"}


def _first_ifd(data: bytes) -> int:
    if data[:2] not in {b"II", b"MM"}:
        return 0
    big = _is_big(data)
    (at,) = struct.unpack_from(_order(data) + ("Q" if big else "I"), data, 8 if big else 4)
    return int(at)


def _entry_count(data: bytes, at: int) -> tuple[int, int, int]:
    """Number of entries, where they start, and the bytes of each."""
    big = _is_big(data)
    (count,) = struct.unpack_from(_order(data) + ("Q" if big else "H"), data, at)
    return (int(count), at + 8, 20) if big else (int(count), at + 2, 12)


def _next_ifd(data: bytes, at: int) -> int:
    count, start, stride = _entry_count(data, at)
    form = _order(data) + ("Q" if _is_big(data) else "I")
    if start + count * stride + struct.calcsize(form) > len(data):
        return 0
    return int(struct.unpack_from(form, data, start + count * stride)[0])


def _entries(data: bytes, at: int) -> Iterator[Entry]:
    """Read the directory at `at`; values end with the data."""
    if not at:
        return
    order, big = _order(data), _is_big(data)
    form, sizes = (order + "HHQ", _BIG_TYPE_SIZES) if big else (order + "HHI", _TYPE_SIZES)
    inline = 8 if big else 4
    view = memoryview(data)
    count, start, stride = _entry_count(data, at)
    for position in range(start, start + min(count, 65_536) * stride, stride):
        tag, kind, values = struct.unpack_from(form, data, position)
        value = position + struct.calcsize(form)
        size = values * sizes.get(kind, 1)
        if size > inline:
            (value,) = struct.unpack_from(order + ("Q" if big else "I"), data, value)
        yield tag, kind, values, view[value : value + size]


def integer(data: bytes, kind: int, value: memoryview) -> int:
    """Read the first integer of a value; 0 when it is none."""
    form = _INTEGERS.get(kind)
    if form is None or len(value) < struct.calcsize(form):
        return 0
    return int(struct.unpack_from(_order(data) + form, value)[0])


def integers(data: bytes, kind: int, value: memoryview) -> tuple[int, ...]:
    """Read all integers of a value; none when it holds something else."""
    form = _INTEGERS.get(kind)
    if form is None:
        return ()
    count = len(value) // struct.calcsize(form)
    return struct.unpack_from(f"{_order(data)}{count}{form}", value)
