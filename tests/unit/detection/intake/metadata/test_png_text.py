"""PNG text chunks, unpacked within bounds."""

from __future__ import annotations

import zlib

from detection.intake.metadata.png_text import PngText, read_texts


def packed(keyword: bytes, size: int) -> tuple[bytes, bytes]:
    """A zTXt chunk that unpacks to so many bytes."""
    return b"zTXt", keyword + b"\0\0" + zlib.compress(bytes(size))


def test_texts_unpack_to_the_limit_together() -> None:
    """Reading ends before the texts are more than the limit, packed ones and plain ones."""
    chunks = [packed(b"a", 1000), (b"tEXt", b"b\0" + bytes(1000)), packed(b"c", 10**6)]
    found = list(read_texts(chunks, max_bytes=2500))
    assert [(text.keyword, len(text.data)) for text in found] == [("a", 1000), ("b", 1000)]


def test_what_is_no_text_is_left_out() -> None:
    """Chunks without a keyword's end, or with what is no zlib stream, cost only themselves."""
    chunks = [
        (b"tEXt", b"endless"),
        (b"zTXt", b"a\0\0junk"),
        (b"iTXt", b"b\0\1\0\0\0junk"),
        (b"tEXt", b"c\0d"),
    ]
    assert [text.keyword for text in read_texts(chunks, max_bytes=100)] == ["c"]


def test_texts_are_read_as_latin_where_they_are_no_utf_8() -> None:
    """The standard says Latin-1; most programs write UTF-8."""
    for data in ("Käthe".encode(), "Käthe".encode("latin-1")):
        assert PngText(chunk="tEXt", keyword="Author", data=data).text == "Käthe"


def test_a_profile_of_no_digits_is_empty() -> None:
    """A raw profile that holds something else gives no bytes."""
    for data in (b"", b"\nexif\n 3\n", b"\nexif\n  3\nzz", b"\nexif\n  3\nabc"):
        text = PngText(chunk="zTXt", keyword="Raw profile type exif", data=data)
        assert (text.profile, text.profile_bytes()) == ("exif", b"")
