"""Provenance that a file states (EXIF, XMP, C2PA): facts beside the score, never part of it.

EXIF, IPTC and C2PA are claims by whoever wrote the file. They are read from their containers, never
by searching the bytes for words, and none of them decides anything alone.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self
from xml.parsers import expat

from detection.intake.container_limits import ContainerLimits
from detection.intake.containers import identify, survey
from detection.intake.errors import ImageRejected
from detection.intake.pillow_plugins import OPENERS
from detection.intake.tiff_ifd import texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MAX_TEXT = 200
_MAX_LIST = 16
_MAX_DEPTH = 32
_MAX_FRAMES = 10_000
_SOURCE_TYPE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/ DigitalSourceType"
_RDF_RESOURCE = "http://www.w3.org/1999/02/22-rdf-syntax-ns# resource"
# Whoever uploads must not make this process call a server or another one's revocation list.
_C2PA_SETTINGS = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
# The terms of http://cv.iptc.org/newscodes/digitalsourcetype/, and C2PA's own one, which say
# that a model made pixels.
_AI_TERMS = frozenset(
    {
        "trainedAlgorithmicMedia",
        "compositeWithTrainedAlgorithmicMedia",
        "compositeSynthetic",
        "trainedAlgorithmicData",
    }
)
_C2PA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIF": "image/heif",
}


class ManifestState(StrEnum):
    """What became of the C2PA manifest store.

    `VALID`: signature and hashes hold, whether or not the signer is one that we trust. `INVALID`:
    a store was read and does not fit its file. `UNREADABLE`: there is one, and it cannot be parsed
    or lies elsewhere.
    """

    ABSENT = "absent"
    VALID = "valid"
    INVALID = "invalid"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exif:
    """Camera and software as EXIF names them; `taken_at` as written ("2026:01:31 12:00:00")."""

    make: str | None = None
    model: str | None = None
    software: str | None = None
    taken_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class C2pa:
    """What the C2PA manifest store asserts; `problems` are the codes of failed validations."""

    state: ManifestState = ManifestState.ABSENT
    claim_generator: str | None = None
    digital_source_types: tuple[str, ...] = ()
    asserts_ai: bool = False
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenanceRecord:
    """Everything found; absent facts are None or empty."""

    exif: Exif = field(default_factory=Exif)
    iptc_digital_source_type: str | None = None
    iptc_asserts_ai: bool = False
    c2pa: C2pa = field(default_factory=C2pa)

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
            c2pa=C2pa(
                state=ManifestState(c2pa["state"]),
                claim_generator=_storable(c2pa["claim_generator"]),
                digital_source_types=_storables(c2pa["digital_source_types"]),
                asserts_ai=bool(c2pa["asserts_ai"]),
                problems=_storables(c2pa["problems"]),
            ),
        )


def read_provenance(data: bytes, *, max_metadata_bytes: int = 8 * 2**20) -> ProvenanceRecord:
    """Read the provenance of one file. Never raises for any bytes: what cannot be read is absent.

    The C2PA library fetches nothing: a manifest that lies elsewhere counts as unreadable.
    """
    kind = identify(data)
    if kind not in _C2PA_TYPES:
        return ProvenanceRecord()
    bounds = ContainerLimits(
        max_frames=_MAX_FRAMES, max_metadata_bytes=max_metadata_bytes, max_pixels=2**62
    )
    try:
        exif, xmp = _blocks(kind, data, bounds)
    except ImageRejected:
        return ProvenanceRecord()
    source_type = _xmp_source_type(xmp)
    return ProvenanceRecord(
        exif=_read_exif(exif),
        iptc_digital_source_type=source_type,
        iptc_asserts_ai=_is_ai(source_type),
        c2pa=_read_c2pa(data, _C2PA_TYPES[kind]),
    )


def _storable(text: object) -> str | None:
    """Replace what no database stores as text: NUL, and halves of surrogate pairs."""
    if text is None:
        return None
    return str(text)[:_MAX_TEXT].replace("\0", "?").encode("utf-8", "replace").decode("utf-8")


def _storables(texts: list[object]) -> tuple[str, ...]:
    return tuple(filter(None, map(_storable, texts[:_MAX_LIST])))


def _is_ai(source_type: str | None) -> bool:
    return source_type is not None and source_type.rstrip("/").rsplit("/", 1)[-1] in _AI_TERMS


def _blocks(kind: str, data: bytes, bounds: ContainerLimits) -> tuple[bytes, bytes]:
    """The EXIF block and the XMP packet, empty when there is none."""
    found = survey(kind, data, bounds)
    if kind == "TIFF":
        return data, found.xmp
    if kind in {"AVIF", "HEIF"}:
        # Their items lie anywhere in the file; the decoder's header pass finds them.
        try:
            with OPENERS[kind](io.BytesIO(data)) as image:
                exif, xmp = image.info.get("exif") or b"", image.info.get("xmp") or b""
        except Exception:  # noqa: BLE001 - decoders raise nearly every built-in exception
            return b"", b""
        return exif.removeprefix(b"Exif\0\0"), xmp
    return found.exif, found.xmp


# ---------------------------------------------------------------- EXIF

_MAKE, _MODEL, _SOFTWARE, _CHANGED, _TAKEN = 0x010F, 0x0110, 0x0131, 0x0132, 0x9003


def _read_exif(exif: bytes) -> Exif:
    found = texts(exif, frozenset({_MAKE, _MODEL, _SOFTWARE, _CHANGED, _TAKEN}))

    def text(*tags: int) -> str | None:
        return next((found[tag][:_MAX_TEXT] for tag in tags if found.get(tag)), None)

    return Exif(
        make=text(_MAKE),
        model=text(_MODEL),
        software=text(_SOFTWARE),
        taken_at=text(_TAKEN, _CHANGED),
    )


# ---------------------------------------------------------------- IPTC in XMP


class _Stop(Exception):
    """The property was found, or the packet declares entities."""


def _xmp_source_type(xmp: bytes) -> str | None:
    """Read Iptc4xmpExt:DigitalSourceType: attribute, rdf:resource or text (IPTC PMD 2023.1).

    The older IIM block has no such property.
    """
    found: list[str] = []
    inside = False

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal inside
        inside = name == _SOURCE_TYPE
        value = attributes.get(_RDF_RESOURCE) if inside else attributes.get(_SOURCE_TYPE)
        if value:
            found[:] = [value]
            raise _Stop

    def text(characters: str) -> None:
        if inside and len(found) < _MAX_LIST:
            found.append(characters)

    def end(_name: str) -> None:
        if inside and "".join(found).strip():
            raise _Stop

    def refuse(*_: object) -> None:
        found.clear()
        raise _Stop

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = start
    parser.CharacterDataHandler = text
    parser.EndElementHandler = end
    # Entities are how a small packet becomes a huge one; XMP has none.
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(xmp.strip(b"\0"), True)
    except _Stop:
        return "".join(found).strip()[:_MAX_TEXT] or None
    except (expat.ExpatError, ValueError):
        pass
    return None


# ---------------------------------------------------------------- C2PA


def _read_c2pa(data: bytes, media_type: str) -> C2pa:
    # A library of its own size, which only files that reach this point need.
    import c2pa  # type: ignore[import-untyped]

    try:
        context = c2pa.Context.from_dict(_C2PA_SETTINGS)
        with context, c2pa.Reader(media_type, io.BytesIO(data), context=context) as reader:
            store = json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return C2pa()
    except Exception as error:  # noqa: BLE001 - a native parser of hostile bytes
        return C2pa(state=ManifestState.UNREADABLE, problems=(type(error).__name__.lstrip("_"),))
    return _summarise(store)


def _summarise(store: dict[str, Any]) -> C2pa:
    state = {"Valid": ManifestState.VALID, "Trusted": ManifestState.VALID}.get(
        str(store.get("validation_state")), ManifestState.INVALID
    )
    manifests = store.get("manifests", {})
    active = manifests.get(store.get("active_manifest"), {})
    found = (str(value)[:_MAX_TEXT] for value in _values(manifests, "digitalSourceType"))
    types = tuple(sorted(set(found)))
    problems = {
        str(status.get("code"))[:_MAX_TEXT]
        for status in store.get("validation_status") or []
        if status.get("code") != "signingCredential.untrusted"
    }
    return C2pa(
        state=state,
        claim_generator=_generator(active),
        digital_source_types=types[:_MAX_LIST],
        asserts_ai=any(_is_ai(value) for value in types),
        problems=tuple(sorted(problems))[:_MAX_LIST],
    )


def _generator(manifest: dict[str, Any]) -> str | None:
    for info in manifest.get("claim_generator_info") or []:
        name, version = info.get("name"), info.get("version")
        if name:
            return f"{name} {version or ''}".strip()[:_MAX_TEXT]
    generator = manifest.get("claim_generator")
    return str(generator)[:_MAX_TEXT] if generator else None


def _values(node: object, key: str, depth: int = 0) -> Iterator[object]:
    """Every value under `key` in nested JSON, down to a bounded depth."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(node, dict):
        for name, child in node.items():
            if name == key:
                yield child
            else:
                yield from _values(child, key, depth + 1)
    elif isinstance(node, list):
        for child in node:
            yield from _values(child, key, depth + 1)
