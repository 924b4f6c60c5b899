"""Content encodings are undone as a viewer does, and never beyond the limit."""

from __future__ import annotations

import gzip
import zlib

import pytest

from worker.storage.content_encoding import undo_encodings
from worker.storage.interface import ContentEncodingUnknown, ObjectTooLarge

BODY = bytes(range(256)) * 8


@pytest.mark.parametrize(
    ("stored", "header"),
    [
        (BODY, ""),
        (BODY, "identity"),
        (BODY, "aws-chunked"),
        (BODY, "gzip"),  # a label that the bytes do not bear out
        (BODY, "deflate"),
        (gzip.compress(BODY), "gzip"),
        (gzip.compress(BODY), "X-GZIP"),
        (gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]), "gzip"),
        (gzip.compress(BODY) + b"\0" * 20, "gzip"),
        (zlib.compress(BODY), "deflate"),
        (gzip.compress(BODY), "gzip,aws-chunked"),
        (gzip.compress(zlib.compress(BODY)), "deflate, gzip"),
    ],
)
def test_what_was_encoded_is_decoded(stored: bytes, header: str) -> None:
    """The content comes back whole from every encoding that is undone."""
    assert undo_encodings(stored, header, max_bytes=len(BODY)) == BODY


def test_a_small_file_does_not_become_a_large_one() -> None:
    """A bomb is refused while it unfolds."""
    bomb = gzip.compress(bytes(10**8))
    with pytest.raises(ObjectTooLarge):
        undo_encodings(bomb, "gzip", max_bytes=10**5)


def test_an_encoding_without_a_decoder_has_a_reason_of_its_own() -> None:
    """Brotli's bytes are not handed to a decoder of pictures."""
    with pytest.raises(ContentEncodingUnknown, match="'br'"):
        undo_encodings(BODY, "br", max_bytes=10**6)


def test_what_is_cut_short_is_returned_as_far_as_it_goes() -> None:
    """A truncated file stays a truncated picture, which intake names."""
    half = undo_encodings(gzip.compress(BODY)[:-20], "gzip", max_bytes=10**6)
    assert half
    assert BODY.startswith(half)
