"""Declared content type and file name, checked against what the bytes are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from detection.intake.errors import TypeMismatch


@dataclass(frozen=True, slots=True)
class _Names:
    """The content types and extensions by which a kind may go."""

    types: frozenset[str]
    extensions: frozenset[str]


def _names(types: str, extensions: str) -> _Names:
    return _Names(frozenset(types.split()), frozenset(extensions.split()))


# An MPO file is a JPEG with more JPEGs behind it, and an AVIF file is a HEIF container, but what
# calls itself HEIC promises HEVC.
_KINDS = {
    "JPEG": _names(
        "image/jpeg image/jpg image/pjpeg image/mpo image/x-mpo",
        "jpg jpeg jpe jfif jif pjpeg mpo",
    ),
    "PNG": _names("image/png image/x-png image/apng image/vnd.mozilla.apng", "png apng"),
    "GIF": _names("image/gif", "gif"),
    "WEBP": _names("image/webp", "webp"),
    "TIFF": _names("image/tiff image/tif image/x-tiff image/tiff-fx", "tif tiff"),
    "BMP": _names("image/bmp image/x-bmp image/x-ms-bmp image/x-windows-bmp", "bmp dib"),
    "AVIF": _names(
        "image/avif image/avif-sequence image/heif image/heif-sequence",
        "avif avifs heif hif",
    ),
    "HEIF": _names(
        "image/heic image/heif image/heic-sequence image/heif-sequence",
        "heic heics heif heifs hif",
    ),
    "SVG": _names("image/svg+xml image/svg text/xml application/xml", "svg xml"),
    "Photoshop": _names("image/vnd.adobe.photoshop image/x-photoshop image/psd", "psd psb"),
    "PDF": _names("application/pdf", "pdf ai"),
    "PostScript": _names("application/postscript image/x-eps application/eps", "ps eps ai"),
    "JPEG 2000": _names("image/jp2 image/jpx image/jpm image/j2k", "jp2 j2k jpf jpx jpm j2c jpc"),
    "JPEG XL": _names("image/jxl", "jxl"),
    "JPEG XR": _names("image/jxr image/vnd.ms-photo", "jxr wdp hdp"),
    "icon": _names("image/x-icon image/vnd.microsoft.icon image/icns", "ico cur icns"),
}
_GENERIC_TYPES = frozenset(
    {
        "",
        "application/octet-stream",
        "binary/octet-stream",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "image/*",
        "*/*",
    }
)
# Extensions that promise something which is no image.
_FOREIGN = _names(
    "",
    "txt md csv json yaml html htm css js php py sh exe dll apk jar zip gz tar 7z rar doc docx xls "
    "xlsx ppt pptx mp3 wav flac ogg mp4 m4v mov avi mkv webm mpg mpeg wmv flv",
).extensions
_KNOWN_EXTENSIONS = _FOREIGN.union(*(names.extensions for names in _KINDS.values()))


def check_declared_type(kind: str, *, declared_type: str | None, key: str | None) -> None:
    """Raise `TypeMismatch` when the content type or the key's extension names another kind.

    A missing or generic type and a missing or unknown extension claim nothing. Kinds without names
    of their own are never contradicted: they are refused as unsupported anyway.
    """
    names = _KINDS.get(kind)
    if names is None:
        return
    media_type = (declared_type or "").split(";")[0].strip().lower()
    if media_type not in _GENERIC_TYPES and media_type not in names.types:
        message = f"The content type says {media_type[:100]!r} but the bytes are {kind}."
        raise TypeMismatch(message)
    extension = PurePosixPath(key or "").suffix.removeprefix(".").lower()
    if extension in _KNOWN_EXTENSIONS - names.extensions:
        message = f"The name ends in {'.' + extension!r} but the bytes are {kind}."
        raise TypeMismatch(message)
