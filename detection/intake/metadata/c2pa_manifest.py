"""C2PA manifest stores (C2PA specification 2.2), read by the library of its authors.

Whether a file fits its manifest and what is known of the signer are two things. The first is
arithmetic; the second needs lists of whom to trust, and no list is shipped.
"""

from __future__ import annotations

import io
import json
import ssl
from collections import deque
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from detection.errors import SettingsError
from detection.intake.metadata.source_type import is_ai

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_MAX_TEXT = 200
_MAX_LIST = 16
_MAX_DEPTH = 32
_MAX_INGREDIENTS, _MAX_INGREDIENT_PROBLEMS = 8, 4
#: C2PA's own code for a manifest that lies elsewhere, which is never fetched.
_ELSEWHERE = "manifest.inaccessible"
#: Failures that speak of the signer or of the time of signing, not of whether the file fits.
_ABOUT_THE_SIGNER = ("signingCredential.", "timeStamp.")
_UNTRUSTED, _EXPIRED = "signingCredential.untrusted", "signingCredential.expired"
# Whoever uploads must not make this process call a server or another one's revocation list.
_OFFLINE = {"remote_manifest_fetch": False, "ocsp_fetch": False}


class ManifestState(StrEnum):
    """Whether a file fits the manifest that it carries, and whether its signer is trusted.

    `TRUSTED`: it fits, and the signer is on the list. `WELL_FORMED`: it fits; `SignerState` says
    what is known of the signer. `BROKEN`: signature or hashes do not fit the file, or the manifest
    cannot be parsed. `ABSENT`: the file carries none; one that lies elsewhere is not fetched.
    """

    ABSENT = "absent"
    TRUSTED = "trusted"
    WELL_FORMED = "well_formed"
    BROKEN = "broken"


class SignerState(StrEnum):
    """What is known of the signer of a manifest that fits.

    `UNKNOWN`: no list of trusted signers is set. `UNTRUSTED`: one is, and the signer is not on it,
    or the certificate is unfit or revoked. `EXPIRED`: the certificate did not hold at the time of
    signing, or does not hold now where no time stamp proves that time.
    """

    TRUSTED = "trusted"
    UNKNOWN = "unknown"
    UNTRUSTED = "untrusted"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustLists:
    """Root certificates, as PEM: of signers, and of the authorities whose time stamps count."""

    signers: str = ""
    time_stamp_authorities: str = ""

    @classmethod
    def load(cls, signers: Iterable[Path], time_stamp_authorities: Iterable[Path]) -> Self:
        """Read PEM files; raises `SettingsError` naming one that cannot be read or holds none."""
        return cls(
            signers="\n".join(map(_read_pem, signers)),
            time_stamp_authorities="\n".join(map(_read_pem, time_stamp_authorities)),
        )


def _read_pem(path: Path) -> str:
    try:
        pem = path.read_text("ascii")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except OSError as error:
        # An error of ssl is one of these too; its text names routines of C.
        why = "it holds no PEM certificates" if isinstance(error, ssl.SSLError) else error.strerror
        raise SettingsError(f"the trust list {path} cannot be read: {why}") from error
    except ValueError as error:
        raise SettingsError(
            f"the trust list {path} cannot be read: it holds no PEM certificates"
        ) from error
    return pem


NO_LISTS = TrustLists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredient:
    """A file that went into this one, as the signer says.

    `relationship` is C2PA's word: "parentOf" (what was edited), "componentOf" (what was placed in
    it), "inputTo" (what a process was given); of an ingredient of an ingredient, the words from the
    outside in, joined by "/". `asserts_ai`: its own manifest says that a model made pixels.
    `problems` are the codes of what failed when it was taken in or now: it was altered since its
    own signing, for one.
    """

    relationship: str
    asserts_ai: bool = False
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class C2pa:
    """What the manifest of a file asserts, and by whom.

    `signer` is the subject of the certificate ("common name, organisation"), `signer_state` is None
    unless the file fits, `signed_at` is the time of a time stamp (RFC 3339), None without one.
    `digital_source_types` are the file's own. `asserts_ai`: one of them says that a model made
    pixels, or the file only goes on from a parent whose own do; `ai_generator` is the program that
    is said to have made them. `problems` are the codes of what failed. What ingredients say and
    lack stands with them.
    """

    state: ManifestState = ManifestState.ABSENT
    signer: str | None = None
    signer_state: SignerState | None = None
    signed_at: str | None = None
    claim_generator: str | None = None
    digital_source_types: tuple[str, ...] = ()
    asserts_ai: bool = False
    ai_generator: str | None = None
    problems: tuple[str, ...] = ()
    ingredients: tuple[Ingredient, ...] = ()


def read_c2pa(data: bytes, media_type: str, trust: TrustLists = NO_LISTS) -> C2pa:
    """Read the manifest of a file of a media type; raises nothing for any bytes.

    A time stamp by any authority proves when a file was signed, as long as nobody is trusted.
    `TRUSTED` takes one by an authority on the list, or a certificate that holds today. (Manifests
    of the first version of claims are an exception: the library takes their time stamps as they
    are.)
    """
    # A library of its own size, which only files that reach this point need.
    import c2pa  # type: ignore[import-untyped]

    def store(**settings: dict[str, Any]) -> dict[str, Any]:
        with (
            c2pa.Context.from_dict(settings) as context,
            c2pa.Reader(media_type, io.BytesIO(data), context=context) as reader,
        ):
            told = json.loads(reader.json())
        return told if isinstance(told, dict) else {}

    try:
        told = store(
            verify=_OFFLINE | {"verify_timestamp_trust": False},
            trust={"trust_anchors": trust.signers} if trust.signers else {},
        )
        found = _summarise(told, listed=bool(trust.signers))
        if found.state is not ManifestState.TRUSTED or found.signed_at is None:
            return found
        again = store(
            verify=_OFFLINE | {"verify_timestamp_trust": True},
            trust={
                "trust_anchors": f"{trust.signers}\n{trust.time_stamp_authorities}",
            },
        )
        return found if again.get("validation_state") == "Trusted" else _expired(found)
    except c2pa.C2paError.ManifestNotFound:
        return C2pa()
    except Exception as error:  # noqa: BLE001 - a native parser of hostile bytes
        if str(error).startswith("Remote:"):
            return C2pa(problems=(_ELSEWHERE,))
        return C2pa(state=ManifestState.BROKEN, problems=(type(error).__name__.lstrip("_"),))


def _expired(found: C2pa) -> C2pa:
    return replace(found, state=ManifestState.WELL_FORMED, signer_state=SignerState.EXPIRED)


def _summarise(store: dict[str, Any], *, listed: bool) -> C2pa:
    manifests, label = store.get("manifests", {}), store.get("active_manifest")
    active = manifests.get(label, {})
    results = store.get("validation_results", {}).get("activeManifest", {})
    passed, failed = _codes(results, "success"), _codes(results, "failure")
    state, signer_state = ManifestState.BROKEN, None
    if "claimSignature.validated" in passed and not any(map(_is_misfit, failed)):
        signer_state = _signer_state(passed, failed, listed=listed)
        trusted = signer_state is SignerState.TRUSTED
        state = ManifestState.TRUSTED if trusted else ManifestState.WELL_FORMED
    signature = active.get("signature_info") or {}
    names = (_text(signature.get(name)) for name in ("common_name", "issuer"))
    types = sorted({value[:_MAX_TEXT] for value in _source_types(active)})
    claimant = _ai_claimant(manifests, label)
    return C2pa(
        state=state,
        signer=", ".join(filter(None, names))[:_MAX_TEXT] or None,
        signer_state=signer_state,
        signed_at=_moment(signature.get("time")),
        claim_generator=_generator(active),
        digital_source_types=tuple(types[:_MAX_LIST]),
        asserts_ai=claimant is not None,
        ai_generator=_agent(claimant) if claimant else None,
        problems=tuple(sorted(failed - {_UNTRUSTED, _EXPIRED}))[:_MAX_LIST],
        ingredients=tuple(islice(_ingredients(store, str(label)), _MAX_INGREDIENTS)),
    )


def _codes(results: dict[str, Any], kind: str) -> set[str]:
    return {str(status.get("code"))[:_MAX_TEXT] for status in results.get(kind) or ()}


def _is_misfit(code: str) -> bool:
    return not code.startswith(_ABOUT_THE_SIGNER)


def _signer_state(passed: set[str], failed: set[str], *, listed: bool) -> SignerState:
    if _EXPIRED in failed:
        return SignerState.EXPIRED
    if "signingCredential.trusted" in passed and all(map(_is_misfit, failed)):
        return SignerState.TRUSTED
    # What is unfit or revoked is so whoever is on the list.
    unfit = any(not _is_misfit(code) and code != _UNTRUSTED for code in failed)
    return SignerState.UNTRUSTED if listed or unfit else SignerState.UNKNOWN


# ---------------------------------------------------------------- what a manifest asserts


def _text(value: object) -> str | None:
    return str(value)[:_MAX_TEXT] if value else None


def _moment(value: object) -> str | None:
    """Keep a time that a database can store."""
    try:
        return datetime.fromisoformat(str(value)).astimezone(UTC).isoformat() if value else None
    except (ValueError, OverflowError):
        return None


def _generator(manifest: dict[str, Any]) -> str | None:
    for info in manifest.get("claim_generator_info") or []:
        if name := _named(info):
            return name
    return _text(manifest.get("claim_generator"))


def _named(program: object) -> str | None:
    """Name and version of a program, which older manifests give as one text."""
    if isinstance(program, dict):
        name, version = program.get("name"), program.get("version")
        return f"{name} {version or ''}".strip()[:_MAX_TEXT] if name else None
    return _text(program)


def _source_types(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield the source types in the assertions of a manifest; ingredients have their own."""
    yield from map(str, _values(manifest.get("assertions"), "digitalSourceType"))


def _actions(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for assertion in manifest.get("assertions") or ():
        if str(assertion.get("label")).startswith("c2pa.actions"):
            yield from assertion.get("data", {}).get("actions") or ()


def _ai_claimant(manifests: dict[str, Any], label: object) -> dict[str, Any] | None:
    """Find the manifest that says that a model made pixels of the file.

    It is the file's own, or that of the parent which the file goes on from: a generated picture
    stays one when it is saved again. A file that says how it was created needs no parent for that.
    """
    seen: set[object] = set()
    while label not in seen and isinstance(manifest := manifests.get(str(label)), dict):
        seen.add(label)
        if any(map(is_ai, _source_types(manifest))):
            return manifest
        if any(action.get("action") == "c2pa.created" for action in _actions(manifest)):
            return None
        parents = (
            ingredient.get("active_manifest")
            for ingredient in manifest.get("ingredients") or ()
            if ingredient.get("relationship") == "parentOf"
        )
        label = next(parents, None)
    return None


def _agent(manifest: dict[str, Any]) -> str | None:
    """Name the program of the action that generated, else the one that made the claim."""
    for action in _actions(manifest):
        if is_ai(_text(action.get("digitalSourceType"))) and (
            name := _named(action.get("softwareAgent"))
        ):
            return name
    return _generator(manifest)


def _values(node: object, key: str, depth: int = 0) -> Iterator[object]:
    """Yield every value under `key` in nested JSON, down to a bounded depth."""
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


# ---------------------------------------------------------------- ingredients


def _ingredients(store: dict[str, Any], label: str) -> Iterator[Ingredient]:
    """Yield what went into the file, level by level."""
    manifests = store.get("manifests", {})
    deltas = store.get("validation_results", {}).get("ingredientDeltas") or ()
    waiting, seen = deque([(label, "")]), {label}
    while waiting:
        owner, path = waiting.popleft()
        for found in manifests.get(owner, {}).get("ingredients") or ():
            relationship = f"{path}{found.get('relationship')}"
            own = str(found.get("active_manifest"))
            yield Ingredient(
                relationship=relationship[:_MAX_TEXT],
                asserts_ai=_ai_claimant(manifests, own) is not None
                or any(is_ai(str(value)) for value in _values(found, "digitalSourceType")),
                problems=_ingredient_problems(found, owner, deltas),
            )
            if own in manifests and own not in seen:
                seen.add(own)
                waiting.append((own, f"{relationship}/"))


def _ingredient_problems(
    ingredient: dict[str, Any], owner: str, deltas: Iterable[dict[str, Any]]
) -> tuple[str, ...]:
    """Collect what failed when the ingredient was taken in (its own results), and what fails now.

    That its signer was not trusted there and then says nothing of the ingredient.
    """
    failed = _codes(ingredient, "validation_status")
    failed |= _codes(
        (ingredient.get("validation_results") or {}).get("activeManifest", {}), "failure"
    )
    for delta in deltas:
        uri = str(delta.get("ingredientAssertionURI"))
        if f"/{owner}/" in uri and uri.endswith(f"/{ingredient.get('label')}"):
            failed |= _codes(delta.get("validationDeltas", {}), "failure")
    return tuple(sorted(filter(_is_misfit, failed)))[:_MAX_INGREDIENT_PROBLEMS]
