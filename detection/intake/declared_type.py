"""Declared content type and file name: what they rule out, and what the bytes contradict.

The names of all kinds stand here and nowhere else: events, `unlatent reconcile` and decoding read
the same lists.
"""

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
# Of these kinds, what is not in pixels: no picture that this service could judge.
_NO_PIXELS = ("SVG", "PDF", "PostScript")
# Content types and extensions that promise something which is no image. "text/plain" is none of
# them, nor is what upload forms send: servers say it of whatever they do not know.
_FOREIGN = _names(
    "text/html text/css text/csv text/javascript text/markdown text/calendar text/vcard "
    "application/javascript application/json application/ld+json application/x-ndjson "
    "application/xhtml+xml application/yaml application/rtf application/msword "
    "application/vnd.ms-excel application/vnd.ms-powerpoint application/epub+zip "
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document "
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet "
    "application/vnd.openxmlformats-officedocument.presentationml.presentation "
    "application/vnd.oasis.opendocument.text application/vnd.oasis.opendocument.spreadsheet "
    "application/zip application/gzip application/x-gzip application/x-bzip2 application/x-xz "
    "application/zstd application/x-tar application/x-7z-compressed application/vnd.rar "
    "application/x-rar-compressed application/java-archive application/wasm "
    "application/vnd.android.package-archive application/x-msdownload application/x-sh "
    "application/sql application/vnd.sqlite3 application/vnd.apache.parquet "
    "application/x-directory",
    "txt md csv json yaml yml html htm css js mjs php py sh sql log exe dll apk jar wasm zip gz "
    "tgz bz2 xz zst tar 7z rar iso dmg doc docx xls xlsx ppt pptx odt ods odp rtf epub mp3 m4a aac "
    "wav flac ogg oga opus mid mp4 m4v mov avi mkv webm mpg mpeg wmv flv 3gp m3u8 ttf otf woff "
    "woff2 sqlite parquet svgz",
)
_FOREIGN_FAMILIES = ("audio/", "font/", "video/")
_KNOWN_EXTENSIONS = _FOREIGN.extensions.union(*(names.extensions for names in _KINDS.values()))
_NEVER = _Names(
    _FOREIGN.types.union(*(_KINDS[kind].types for kind in _NO_PIXELS)),
    _FOREIGN.extensions.union(*(_KINDS[kind].extensions for kind in _NO_PIXELS)),
)


def foreign_claim(*, declared_type: str | None, key: str) -> str | None:
    """Say which claim rules a file out without a look at its bytes, None if neither does.

    Returns "content_type" or "extension". What either claims to be an image is none of that, and
    neither is what claims nothing, or something unknown: there the bytes decide.
    """
    media_type, extension = _media_type(declared_type), _extension(key)
    foreign_type = media_type in _NEVER.types or media_type.startswith(_FOREIGN_FAMILIES)
    foreign_extension = extension in _NEVER.extensions
    if (media_type.startswith("image/") and not foreign_type) or (
        extension in _KNOWN_EXTENSIONS and not foreign_extension
    ):
        return None
    if foreign_type:
        return "content_type"
    return "extension" if foreign_extension else None


def check_declared_type(kind: str, *, declared_type: str | None, key: str | None) -> None:
    """Raise `TypeMismatch` when the content type or the key's extension promises no picture.

    `kind` is what the bytes are. Viewers go by the bytes, so the name of another picture format
    contradicts nothing, nor does a video's or sound's type where the extension is right (phones
    send the picture of a live photo with the type of its video).
    """
    media_type, extension = _media_type(declared_type), _extension(key or "")
    family = media_type.startswith(_FOREIGN_FAMILIES)
    overruled = family and kind in _KINDS and extension in _KINDS[kind].extensions
    if (family or media_type in _NEVER.types) and not overruled:
        message = f"The content type says {media_type[:100]!r} but the bytes are {kind}."
        raise TypeMismatch(message)
    if extension in _NEVER.extensions:
        message = f"The name ends in {'.' + extension!r} but the bytes are {kind}."
        raise TypeMismatch(message)


def _media_type(declared_type: str | None) -> str:
    return (declared_type or "").split(";")[0].strip().lower()


def _extension(key: str) -> str:
    return PurePosixPath(key).suffix.removeprefix(".").lower()
