"""C2PA manifest stores (C2PA specification 2.2), read by its own library."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from detection.intake.metadata.source_type import is_ai

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_TEXT = 200
_MAX_LIST = 16
_MAX_DEPTH = 32
# Whoever uploads must not make this process call a server or another one's revocation list.
_C2PA_SETTINGS = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


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
class C2pa:
    """What the C2PA manifest store asserts; `problems` are the codes of failed validations."""

    state: ManifestState = ManifestState.ABSENT
    claim_generator: str | None = None
    digital_source_types: tuple[str, ...] = ()
    asserts_ai: bool = False
    problems: tuple[str, ...] = ()


def read_c2pa(data: bytes, media_type: str) -> C2pa:
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
        asserts_ai=any(is_ai(value) for value in types),
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
