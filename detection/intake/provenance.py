"""Provenance that a file states (EXIF, XMP, texts, C2PA): facts beside the score, never part of it.

All of them are claims by whoever wrote the file. They are read from their containers, never by
searching the bytes for words, and none of them decides anything alone.
"""

from __future__ import annotations

import io
import struct
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from detection.intake.container_limits import ContainerLimits
from detection.intake.containers import identify, survey
from detection.intake.errors import ImageRejected
from detection.intake.metadata import xmp
from detection.intake.metadata.c2pa_manifest import (
    NO_LISTS,
    C2pa,
    Ingredient,
    ManifestState,
    SignerState,
    TrustLists,
    read_c2pa,
)
from detection.intake.metadata.generator_marks import (
    FieldKind,
    Mark,
    TextField,
    aigc_mark,
    find_marks,
    holds_data,
)
from detection.intake.metadata.png_text import XMP_KEYWORD, PngText, read_texts
from detection.intake.metadata.source_type import is_ai
from detection.intake.pillow_plugins import OPENERS
from detection.intake.tiff_ifd import directories, texts, user_comment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MAX_TEXT = 200
_MAX_LIST = 16
_MAX_FRAMES = 10_000
_C2PA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIF": "image/heif",
}
_XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exif:
    """Camera and software as EXIF names them; `taken_at` as written ("2026:01:31 12:00:00").

    A PNG without EXIF may name its software in the text of that keyword (PNG, section 11.3.4).
    """

    make: str | None = None
    model: str | None = None
    software: str | None = None
    taken_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenanceRecord:
    """Everything found; absent facts are None or empty.

    `declares_ai`: the file says itself that a model made it, or part of it. `declared_where` are
    the places that say so ("XMP Iptc4xmpExt:DigitalSourceType", "PNG tEXt parameters"), and
    `declared_generator` is the program, model or service that the first of them names.
    """

    exif: Exif = field(default_factory=Exif)
    iptc_digital_source_type: str | None = None
    iptc_asserts_ai: bool = False
    c2pa: C2pa = field(default_factory=C2pa)
    declares_ai: bool = False
    declared_generator: str | None = None
    declared_where: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values that `json.dumps` takes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """Rebuild what another process told by `as_dict`; its texts are cut and made storable.

        Raises `LookupError`, `TypeError` or `ValueError` for anything of another shape.
        """
        exif, c2pa = told["exif"], told["c2pa"]
        return cls(
            exif=Exif(**{name: _storable(exif[name]) for name in Exif.__dataclass_fields__}),
            iptc_digital_source_type=_storable(told["iptc_digital_source_type"]),
            iptc_asserts_ai=bool(told["iptc_asserts_ai"]),
            c2pa=_c2pa_of(c2pa),
            declares_ai=bool(told["declares_ai"]),
            declared_generator=_storable(told["declared_generator"]),
            declared_where=_storables(told["declared_where"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blocks:
    """The blocks of metadata as they stand in the file; a PNG may hold several of each."""

    exif: tuple[bytes, ...] = ()
    xmp: tuple[bytes, ...] = ()
    texts: tuple[PngText, ...] = ()


def read_provenance(
    data: bytes, *, max_metadata_bytes: int = 8 * 2**20, trust: TrustLists = NO_LISTS
) -> ProvenanceRecord:
    """Read the provenance of one file. Never raises for any bytes: what cannot be read is absent.

    `trust` says which signers of C2PA manifests are trusted. Nothing is fetched from anywhere.
    """
    kind = identify(data)
    if kind not in _C2PA_TYPES:
        return ProvenanceRecord()
    bounds = ContainerLimits(
        max_frames=_MAX_FRAMES, max_metadata_bytes=max_metadata_bytes, max_pixels=2**62
    )
    try:
        blocks = _blocks(kind, data, bounds)
    except ImageRejected:
        return ProvenanceRecord()
    properties: dict[str, str] = {}
    for packet in blocks.xmp:
        properties = xmp.read_properties(packet) | properties
    fields = [*_png_fields(blocks.texts), *_exif_fields(blocks.exif), *_xmp_fields(properties)]
    source_type = properties.get(xmp.DIGITAL_SOURCE_TYPE, "")[:_MAX_TEXT] or None
    c2pa = read_c2pa(data, _C2PA_TYPES[kind], trust)
    marks = [*find_marks(fields), *_marks(properties, c2pa)]
    return ProvenanceRecord(
        exif=_camera(fields),
        iptc_digital_source_type=source_type,
        iptc_asserts_ai=is_ai(source_type),
        c2pa=c2pa,
        declares_ai=bool(marks),
        declared_generator=next((m.generator[:_MAX_TEXT] for m in marks if m.generator), None),
        declared_where=tuple(dict.fromkeys(mark.where[:_MAX_TEXT] for mark in marks))[:_MAX_LIST],
    )


def _marks(properties: Mapping[str, str], c2pa: C2pa) -> Iterator[Mark]:
    if mark := aigc_mark(properties):
        yield mark
    if is_ai(properties.get(xmp.DIGITAL_SOURCE_TYPE)):
        yield Mark(where=f"XMP {xmp.DIGITAL_SOURCE_TYPE}")
    if c2pa.asserts_ai:
        broken = " (broken)" if c2pa.state is ManifestState.BROKEN else ""
        yield Mark(where=f"C2PA manifest{broken}", generator=c2pa.ai_generator)


def _c2pa_of(told: Mapping[str, Any]) -> C2pa:
    signer_state, signed_at = told["signer_state"], told["signed_at"]
    return C2pa(
        state=ManifestState(told["state"]),
        signer=_storable(told["signer"]),
        signer_state=None if signer_state is None else SignerState(signer_state),
        signed_at=None if signed_at is None else datetime.fromisoformat(signed_at).isoformat(),
        claim_generator=_storable(told["claim_generator"]),
        digital_source_types=_storables(told["digital_source_types"]),
        asserts_ai=bool(told["asserts_ai"]),
        ai_generator=_storable(told["ai_generator"]),
        problems=_storables(told["problems"]),
        ingredients=tuple(
            Ingredient(
                relationship=_storable(ingredient["relationship"]) or "",
                asserts_ai=bool(ingredient["asserts_ai"]),
                problems=_storables(ingredient["problems"]),
            )
            for ingredient in told["ingredients"][:_MAX_LIST]
        ),
    )


def _storable(text: object) -> str | None:
    """Replace what no database stores as text: NUL, and halves of surrogate pairs."""
    if text is None:
        return None
    return str(text)[:_MAX_TEXT].replace("\0", "?").encode("utf-8", "replace").decode("utf-8")


def _storables(texts: list[object]) -> tuple[str, ...]:
    return tuple(filter(None, map(_storable, texts[:_MAX_LIST])))


# ---------------------------------------------------------------- blocks


def _blocks(kind: str, data: bytes, bounds: ContainerLimits) -> _Blocks:
    found = survey(kind, data, bounds)
    if kind == "TIFF":
        return _Blocks(exif=(data,), xmp=(found.xmp,))
    if kind in {"AVIF", "HEIF"}:
        # Their items lie anywhere in the file; the decoder's header pass finds them.
        try:
            with OPENERS[kind](io.BytesIO(found.picture or data)) as image:
                exif, packet = image.info.get("exif") or b"", image.info.get("xmp") or b""
        except Exception:  # noqa: BLE001 - decoders raise nearly every built-in exception
            return _Blocks()
        return _Blocks(exif=(exif.removeprefix(b"Exif\0\0"),), xmp=(packet,))
    if kind == "PNG":
        return _png_blocks(found.exif, found.texts, bounds)
    return _Blocks(exif=(found.exif,), xmp=(found.xmp,))


def _png_blocks(
    exif: bytes, chunks: tuple[tuple[bytes, bytes], ...], bounds: ContainerLimits
) -> _Blocks:
    """A PNG keeps XMP in a text and, where ImageMagick wrote it, profiles in hexadecimal texts."""
    exifs, packets, plain = [exif], [], []
    for text in read_texts(chunks, max_bytes=bounds.max_metadata_bytes):
        if text.profile is not None:
            block = text.profile_bytes()
            if text.profile == "xmp" or block.startswith(_XMP_SEGMENT):
                packets.append(block.removeprefix(_XMP_SEGMENT))
            elif text.profile in {"exif", "app1"}:
                exifs.append(_checked(block.removeprefix(b"Exif\0\0"), bounds))
        elif text.keyword == XMP_KEYWORD:
            packets.append(text.data)
        else:
            plain.append(text)
    return _Blocks(exif=tuple(exifs), xmp=tuple(packets), texts=tuple(plain))


def _checked(exif: bytes, bounds: ContainerLimits) -> bytes:
    """Leave out EXIF that would cost more to read than its size; other blocks were surveyed."""
    try:
        for _ in directories(exif, bounds):
            pass
    except (struct.error, IndexError):
        pass
    except ImageRejected:
        return b""
    return exif


# ---------------------------------------------------------------- fields

_TAKEN = "DateTimeOriginal"
_CHANGED = "DateTime"
_TAGS = {
    0x010D: "DocumentName",
    0x010E: "ImageDescription",
    0x010F: "Make",
    0x0110: "Model",
    0x0131: "Software",
    0x0132: _CHANGED,
    0x013B: "Artist",
    0x9003: _TAKEN,
}


def _exif_fields(blocks: tuple[bytes, ...]) -> Iterator[TextField]:
    for block in blocks:
        found = {_TAGS[tag]: text for tag, text in texts(block, frozenset(_TAGS)).items()}
        found["UserComment"] = user_comment(block) or ""
        for name, text in found.items():
            if text:
                yield TextField(kind=FieldKind.EXIF, name=name, text=text, where=f"EXIF {name}")


def _png_fields(found: tuple[PngText, ...]) -> Iterator[TextField]:
    for text in found:
        where = f"PNG {text.chunk} {text.keyword}"
        yield TextField(kind=FieldKind.PNG, name=text.keyword, text=text.text, where=where)


def _xmp_fields(properties: Mapping[str, str]) -> Iterator[TextField]:
    for name, text in properties.items():
        yield TextField(kind=FieldKind.XMP, name=name, text=text, where=f"XMP {name}")


def _camera(fields: list[TextField]) -> Exif:
    """Camera and software; some generators keep their data in the tags for the camera's name."""

    def text(kind: FieldKind, name: str) -> str | None:
        found = (f.text for f in fields if (f.kind, f.name) == (kind, name))
        return next((t[:_MAX_TEXT] for t in found if not holds_data(t)), None)

    return Exif(
        make=text(FieldKind.EXIF, "Make"),
        model=text(FieldKind.EXIF, "Model"),
        software=text(FieldKind.EXIF, "Software") or text(FieldKind.PNG, "Software"),
        taken_at=text(FieldKind.EXIF, _TAKEN) or text(FieldKind.EXIF, _CHANGED),
    )
