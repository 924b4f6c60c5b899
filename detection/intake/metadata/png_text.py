"""PNG text chunks (tEXt, zTXt, iTXt) and the binary profiles that ImageMagick writes into them."""

from __future__ import annotations

import binascii
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Keyword of an XMP packet in any of the three chunks; the XMP specification names iTXt alone.
XMP_KEYWORD = "XML:com.adobe.xmp"
_PROFILE = "Raw profile type "


@dataclass(frozen=True, slots=True, kw_only=True)
class PngText:
    """One text: `chunk` is "tEXt", "zTXt" or "iTXt", `data` the unpacked bytes of the text."""

    chunk: str
    keyword: str
    data: bytes

    @property
    def text(self) -> str:
        """The text; tEXt and zTXt are Latin-1 by the standard and often UTF-8 in practice."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return self.data.decode("latin-1")

    @property
    def profile(self) -> str | None:
        """Name of the profile in lower case ("xmp", "exif", "app1"), None for a plain text."""
        if not self.keyword.startswith(_PROFILE):
            return None
        return self.keyword.removeprefix(_PROFILE).strip().lower()

    def profile_bytes(self) -> bytes:
        """Decode ImageMagick's form: a name, a length and hexadecimal digits, each on lines.

        Empty when the digits are none.
        """
        parts = self.data.split(None, 2)
        if len(parts) < 3:
            return b""
        try:
            return binascii.unhexlify(b"".join(parts[2].split()))
        except binascii.Error:
            return b""


def read_texts(chunks: Iterable[tuple[bytes, bytes]], *, max_bytes: int) -> Iterator[PngText]:
    """Read text chunks, each a name and a body; what cannot be read is left out.

    Reading ends once the texts unpack to more than `max_bytes` together.
    """
    left = max_bytes
    for name, body in chunks:
        keyword, separator, rest = body.partition(b"\0")
        if not separator:
            continue
        packed = name == b"zTXt"
        if name == b"zTXt":
            rest = rest[1:]  # the compression method, of which there is one
        elif name == b"iTXt":
            packed = rest[:1] == b"\x01"
            # flag and method, then the language and the translated keyword
            rest = rest[2:].split(b"\0", 2)[-1]
        data = _unpacked(rest, left) if packed else rest
        if data is None:
            continue
        left -= len(data)
        if left < 0:
            return
        yield PngText(
            chunk=name.decode("ascii"), keyword=keyword.decode("latin-1").strip(), data=data
        )


def _unpacked(packed: bytes, limit: int) -> bytes | None:
    """Unpack at most one byte more than `limit`; None for what is no zlib stream."""
    try:
        return zlib.decompressobj().decompress(packed, limit + 1)
    except zlib.error:
        return None
