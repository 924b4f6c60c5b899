"""PNG (third edition, with APNG): the chunks that draw the picture, in a form every decoder takes.

Viewers draw a PNG whatever is wrong with a chunk that the picture does not need, and when IEND is
missing. `survey_png` therefore copies the needed chunks only, and a decoder gets that copy.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from detection.intake.colour_spaces import by_code_points, by_measurement
from detection.intake.errors import Corrupt, DecompressionBomb, Truncated, UnsupportedFormat
from detection.intake.formats.survey import Survey, Timeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from detection.intake.colour_spaces import ColourSpace
    from detection.intake.container_limits import ContainerLimits

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3
_METADATA = {b"tEXt", b"zTXt", b"iCCP", b"iTXt", b"eXIf"}
# A chunk that says how to show the picture is ignored without its checksum, as viewers do, and one
# that the picture cannot do without spoils it. Pixels have a checksum of their own.
_CRITICAL = {b"IHDR", b"PLTE"}
_CHECKED = {*_CRITICAL, b"tRNS", b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"eXIf"} | {
    b"acTL",
    b"fcTL",
}
_BROKEN_ANIMATION = (
    "The PNG file's animation (APNG) does not fit together: each viewer shows something else."
)
# Of these only the first counts, and only before the picture.
_ONCE = {b"IHDR", b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"tRNS", b"acTL"}


def chunks(data: bytes, bounds: ContainerLimits) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the name and body of each whole chunk up to IEND, or to where the file ends.

    What viewers ignore for its checksum is left out. Raises `Truncated` when the end cuts the
    picture's own data.
    """
    view = memoryview(data)
    at, pieces, drawn = len(SIGNATURE), 0, False
    while at + 8 <= len(data):
        (length,), name = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        pieces += 1
        bounds.check_pieces(pieces)
        if name == b"IEND":
            break
        if at + 8 + length > len(data):
            if name in {b"IDAT", b"fdAT"} or not drawn:
                message = f"The PNG file ends inside its {name.decode('latin-1')!r} chunk."
                raise Truncated(message)
            break
        drawn = drawn or name == b"IDAT"
        body = view[at + 8 : at + 8 + length]
        at += 12 + length
        if name in _CHECKED and zlib.crc32(body, zlib.crc32(name)).to_bytes(4) != data[at - 4 : at]:
            if name in _CRITICAL:
                message = f"The PNG file's {name.decode()!r} chunk does not have its checksum."
                raise Corrupt(message)
            continue
        yield name, body
    if not drawn:
        message = "The PNG file ends before its picture begins."
        raise Truncated(message)


def survey_png(data: bytes, bounds: ContainerLimits) -> Survey:
    """Read the metadata, and copy the chunks that draw the picture.

    What tells its colours has the standard's order of precedence: cICP, iCCP, sRGB, then gAMA with
    cHRM. A colour key (tRNS) is written the way Pillow reads it.
    """
    found = list(chunks(data, bounds))
    if found[0][0] == b"CgBI":
        message = "The file is Apple's variant of PNG for iOS (CgBI), which no other viewer shows."
        raise UnsupportedFormat(message)
    first = _before_the_picture(found)
    header = first.get(b"IHDR", b"")
    if len(header) < 13:
        message = "The PNG file does not say how large its picture is."
        raise Corrupt(message)
    frames = sum(name == b"fcTL" for name, _ in found)
    bounds.check_frames(frames)
    exif, texts = _metadata(found, bounds)
    icc, colours = _colours(first, bounds)
    timeline = _timeline(found, first)
    return Survey(
        size=struct.unpack_from(">II", header),
        frames=max(1, frames),
        exif=exif,
        texts=texts,
        picture=_picture(found, first, animated=timeline is not None),
        timeline=timeline,
        icc=icc,
        colours=colours,
    )


def _metadata(
    found: list[tuple[bytes, memoryview]], bounds: ContainerLimits
) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    """EXIF and all text chunks, once what is packed is known to unpack to little."""
    unpacked = 0
    exif = b""
    texts: list[tuple[bytes, bytes]] = []
    for name, view in found:
        if name not in _METADATA:
            continue
        body = bytes(view)
        unpacked += len(_inflated(name, body, bounds.max_metadata_bytes))
        if unpacked > bounds.max_metadata_bytes:
            message = (
                f"The PNG file's compressed texts and profiles ({name.decode()}) unpack to more "
                f"than {bounds.max_metadata_bytes} bytes, the limit (max_metadata_bytes)."
            )
            raise DecompressionBomb(message)
        if name == b"eXIf":
            exif = body
        elif name != b"iCCP":
            texts.append((name, body))
    return exif, tuple(texts)


def _inflated(name: bytes, body: bytes, limit: int) -> bytes:
    """Unpack a text or profile chunk: at most `limit` + 1 bytes, none where it is not packed."""
    if name in {b"zTXt", b"iCCP"}:
        packed = body[body.find(b"\0") + 2 :]
    elif name == b"iTXt":
        fields = body.split(b"\0", 1)[-1]
        packed = fields[2:].split(b"\0", 2)[-1] if fields.startswith(b"\x01") else b""
    else:
        return b""
    try:
        return zlib.decompressobj().decompress(packed, limit + 1)
    except zlib.error:
        return b""


def _picture(
    found: list[tuple[bytes, memoryview]], first: dict[bytes, bytes], *, animated: bool
) -> bytes:
    kept = {b"IHDR", b"PLTE", b"tRNS", b"IDAT"}
    if animated:
        kept |= {b"acTL", b"fcTL", b"fdAT"}
    once = dict(first)
    if b"tRNS" in once:
        once[b"tRNS"] = _colour_key(once[b"IHDR"], once[b"tRNS"])
    pieces: list[bytes | memoryview] = [SIGNATURE]
    for name, body in found:
        if name not in kept:
            continue
        if name not in _ONCE:
            pieces += _chunk(name, body)
        elif name in once:
            pieces += _chunk(name, once.pop(name))
    pieces += _chunk(b"IEND", b"")
    return b"".join(pieces)


def _before_the_picture(found: list[tuple[bytes, memoryview]]) -> dict[bytes, bytes]:
    """The first of each chunk that must stand before IDAT and counts once."""
    first: dict[bytes, bytes] = {}
    for name, body in found:
        if name == b"IDAT":
            break
        if name in _ONCE:
            first.setdefault(name, bytes(body))
    return first


def _chunk(name: bytes, body: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    checksum = zlib.crc32(body, zlib.crc32(name))
    return struct.pack(">I", len(body)) + name, body, struct.pack(">I", checksum)


def _colour_key(header: bytes, key: bytes) -> bytes:
    """Give the clear colour as Pillow compares it, with the levels that it unpacks to.

    The standard takes the low bits of each 2-byte value; Pillow unpacks grey of 2 and 4 bits to the
    range of 8 and colour of 16 bits to its high byte.
    """
    depth, kind = header[8], header[9]
    count = {_GREY: 1, _RGB: 3}.get(kind)
    if count is None:
        return key
    values = struct.unpack_from(f">{count}H", key.ljust(2 * count, b"\0"))
    top = (1 << depth) - 1
    if kind == _RGB and depth == 16:
        scaled = [value >> 8 for value in values]
    elif kind == _GREY and depth in {2, 4}:
        scaled = [(value & top) * 255 // top for value in values]
    else:
        scaled = [value & top for value in values]
    return struct.pack(f">{count}H", *scaled)


def _colours(
    first: dict[bytes, bytes], bounds: ContainerLimits
) -> tuple[bytes | None, ColourSpace | None]:
    coded = first.get(b"cICP", b"")
    # RGB has no matrix; libpng ignores a chunk that names one.
    if len(coded) >= 4 and coded[2] == 0:
        if not coded[3]:
            message = "The PNG file's levels are of video range (cICP), which viewers show unlike."
            raise UnsupportedFormat(message)
        return None, by_code_points(coded[0], coded[1], camera_display=True)
    if b"iCCP" in first:
        profile = _inflated(b"iCCP", first[b"iCCP"], bounds.max_metadata_bytes)
        if profile:
            return profile, None
    gamma, points = first.get(b"gAMA", b""), first.get(b"cHRM", b"")
    if b"sRGB" in first or len(gamma) < 4:
        return None, None
    primaries = None
    if len(points) >= 32:
        white_x, white_y, *colours = (
            value / 100_000 for value in struct.unpack_from(">8I", points)
        )
        primaries = (*colours, white_x, white_y)
    (stored,) = struct.unpack_from(">I", gamma)
    return None, by_measurement(primaries, stored / 100_000)


def _timeline(found: list[tuple[bytes, memoryview]], first: dict[bytes, bytes]) -> Timeline | None:
    """Read the animation (APNG), None when there is none.

    Raises `Corrupt` for one whose chunks do not fit together: some viewers show the default picture
    then, others a part of the animation or nothing.
    """
    control = first.get(b"acTL", b"")
    if len(control) < 8:
        return None
    count, plays = struct.unpack_from(">II", control)
    canvas = struct.unpack_from(">II", first[b"IHDR"])
    durations: list[float] = []
    sequence, drawn, hidden, empty = 0, False, False, False
    for name, body in found:
        if name == b"IDAT":
            hidden = hidden or not durations
            drawn, empty = True, False
        if name not in {b"fcTL", b"fdAT"}:
            continue
        in_order = len(body) >= 4 and struct.unpack_from(">I", body)[0] == sequence
        expected = not empty if name == b"fcTL" else bool(drawn and durations)
        if not (in_order and expected):
            raise Corrupt(_BROKEN_ANIMATION)
        sequence += 1
        empty = name == b"fcTL"
        if empty:
            durations.append(_frame_ms(body, canvas, whole=not drawn))
    if empty or not durations or not count:
        raise Corrupt(_BROKEN_ANIMATION)
    durations = durations[:count]
    if len(durations) == 1 and not hidden:
        return None
    return Timeline(durations_ms=tuple(durations), repeats=plays == 0, first=int(hidden))


def _frame_ms(body: memoryview, canvas: tuple[int, ...], *, whole: bool) -> float:
    """A frame's time, once it is known to lie on the canvas, and on all of it if it must."""
    if len(body) < 26:
        raise Corrupt(_BROKEN_ANIMATION)
    width, height, x, y, numerator, denominator = struct.unpack_from(">IIIIHH", body, 4)
    fits = width and height and x + width <= canvas[0] and y + height <= canvas[1]
    if not fits or (whole and (width, height) != canvas):
        raise Corrupt(_BROKEN_ANIMATION)
    return float(1000 * numerator / (denominator or 100))
