"""GIF (GIF89a): frames and their times."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from detection.intake.errors import Truncated
from detection.intake.formats.survey import Survey, Timeline

if TYPE_CHECKING:
    from detection.intake.container_limits import ContainerLimits

_IMAGE, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B
_GRAPHIC_CONTROL, _APPLICATION = 0xF9, 0xFF
_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")


def survey_gif(data: bytes, bounds: ContainerLimits) -> Survey:
    """Walk the blocks; what a frame needs is checked while it is decoded."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _palette_bytes(flags)
    pieces, delay_ms, repeats = 0, 0.0, False
    durations: list[float] = []
    while at < len(data) and data[at] != _TRAILER:
        introducer = data[at]
        if introducer == _IMAGE:
            durations.append(delay_ms)
            bounds.check_frames(len(durations))
            delay_ms = 0.0
            at += 11 + _palette_bytes(data[at + 9]) if at + 9 < len(data) else len(data)
        elif introducer == _EXTENSION:
            label, block = data[at + 1 : at + 2], data[at + 3 : at + 22]
            if label == bytes([_GRAPHIC_CONTROL]) and len(block) >= 3:
                delay_ms = 10.0 * int.from_bytes(block[1:3], "little")
            elif label == bytes([_APPLICATION]) and block.startswith(_LOOPS):
                # A sub-block of three bytes: 1 and the number of repetitions, 0 for ever.
                repeats = block[11:13] == b"\x03\x01" and block[13:15] == b"\0\0"
            at += 2
        else:
            break
        while at < len(data) and data[at]:
            pieces += 1
            bounds.check_pieces(pieces)
            at += data[at] + 1
        if introducer == _IMAGE and at >= len(data) and len(durations) > 1:
            durations.pop()  # viewers play a file that was cut up to its last whole frame
        at += 1
    if not durations:
        message = "The GIF file ends before its first frame."
        raise Truncated(message)
    timeline = Timeline(durations_ms=tuple(durations), repeats=repeats)
    return Survey(
        size=(width, height),
        frames=len(durations),
        timeline=timeline if len(durations) > 1 else None,
    )


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
