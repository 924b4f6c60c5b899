"""Bytes that nobody would send on purpose, or only on purpose: nothing but refusals escapes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.intake.decode import decode
from detection.intake.errors import ImageRejected
from detection.intake.pdq import HASH_BYTES
from tests.support.images import bad_files
from tests.support.images.bad_files import LIMITS

_CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
_MAGIC = [
    b"",
    b"\xff\xd8\xff\xe1",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"II+\0\x08\0\0\0",
    b"BM",
    b"RIFF\x40\0\0\0WEBPVP8X",
    b"\0\0\0\x18ftypavif",
    b"\0\0\0\x18ftypheic",
]


def _decode_or_refuse(data: bytes) -> None:
    try:
        image = decode(data, limits=LIMITS)
    except ImageRejected:
        return
    assert image.pixels.shape == (image.height, image.width, 3)
    assert min(image.pixels.shape[:2]) >= LIMITS.min_side
    assert len(image.pdq) == HASH_BYTES


@settings(max_examples=300, deadline=None)
@given(magic=st.sampled_from(_MAGIC), rest=st.binary(max_size=400))
def test_random_bytes_are_refused(magic: bytes, rest: bytes) -> None:
    """Random bytes behind any format's first bytes end in a refusal."""
    _decode_or_refuse(magic + rest)


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """A good file with a few bytes overwritten, cut out or repeated, mostly in its header."""
    data = bytearray(bad_files.accepted()[draw(st.sampled_from(sorted(bad_files.accepted())))])
    for _ in range(draw(st.integers(1, 6))):
        reach = draw(st.sampled_from((64, 600, len(data)))) if data else 0
        at = draw(st.integers(0, max(0, min(len(data), reach) - 1)))
        match draw(st.sampled_from(("write", "cut", "repeat"))):
            case "write":
                patch = draw(st.binary(min_size=1, max_size=4))
                data[at : at + len(patch)] = patch
            case "cut":
                del data[at : at + draw(st.integers(1, 40))]
            case _:
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
    return bytes(data)


@settings(max_examples=500, deadline=None)
@given(data=_mutated())
def test_mutated_files_decode_or_are_refused(data: bytes) -> None:
    """A damaged file of any format either gives a whole picture or a refusal."""
    _decode_or_refuse(data)


@pytest.mark.parametrize("path", _CORPUS, ids=lambda path: path.name)
def test_corpus_decodes_or_is_refused(path: Path) -> None:
    """Inputs that were slow or odd when they were found stay harmless."""
    _decode_or_refuse(path.read_bytes())
