"""Content encodings (RFC 9110, section 8.4), undone as a viewer would, within a limit on bytes.

Storage returns what was stored with the header it was stored under: a picture that was uploaded
compressed, under `Content-Encoding: gzip`, is shown by every browser.
"""

from __future__ import annotations

import zlib

from worker.storage.interface import ContentEncodingUnknown, ObjectTooLarge

_GZIP_MAGIC = b"\x1f\x8b"
#: The container that zlib expects, by its `wbits`.
_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
#: Says nothing of the bytes; `aws-chunked` was the framing of the upload.
_NOTHING = frozenset({"", "identity", "aws-chunked", "none"})


def undo_encodings(data: bytes, header: str, *, max_bytes: int) -> bytes:
    """Return the content behind its encodings, the last one applied undone first.

    Bytes under a name that they do not bear out are left as they are: labels are often wrong. What
    is cut short is returned as far as it goes. Raises `ObjectTooLarge` and, for an encoding without
    a decoder here, `ContentEncodingUnknown`.
    """
    for name in reversed([part.strip().lower() for part in header.split(",")]):
        if name in _NOTHING:
            continue
        if name not in _WBITS:
            raise ContentEncodingUnknown(f"The object is stored under Content-Encoding {name!r}.")
        data = _inflated(data, wbits=_WBITS[name], max_bytes=max_bytes)
    return data


def _inflated(data: bytes, *, wbits: int, max_bytes: int) -> bytes:
    if wbits == _WBITS["gzip"] and not data.startswith(_GZIP_MAGIC):
        return data
    whole, rest = bytearray(), data
    # Several members may follow one another (RFC 1952, section 2.2).
    while rest:
        inflater = zlib.decompressobj(wbits)
        try:
            whole += inflater.decompress(rest, max_bytes + 1 - len(whole))
        except zlib.error:
            return bytes(whole) or data
        if len(whole) > max_bytes:
            raise ObjectTooLarge(f"The object has more than {max_bytes} bytes uncompressed.")
        rest = inflater.unused_data
    return bytes(whole)
