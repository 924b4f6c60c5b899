"""Bearer keys (RFC 6750): which source a request speaks for.

A key is 256 random bits, so one SHA-256 of it is what the settings hold: there is nothing to guess
that a slow hash would slow down. A source may have several keys at once, for the time in which one
replaces another.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from detection.errors import SettingsError
from worker.serving.problems import RequestRefused

if TYPE_CHECKING:
    from starlette.datastructures import Headers

    from worker.settings import Http

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SETTING = "UNLATENT_HTTP__KEYS"


class Keys:
    """The keys that are valid, or none on a loopback address, where everybody is believed.

    Raises `SettingsError` for a digest that is none, and for no keys on any other address.
    """

    def __init__(self, settings: Http) -> None:
        self._sources: list[tuple[str, str]] = []
        for source, digests in settings.keys.items():
            known = digests.get_secret_value().split()
            if not known:
                raise SettingsError(f"{_SETTING}: source {source!r} has no digest of a key")
            for digest in known:
                if not _DIGEST.fullmatch(digest):
                    raise SettingsError(
                        f"{_SETTING}: source {source!r} has a digest that is not 64 hexadecimal"
                        " digits; `unlatent new-key` prints a key and its digest"
                    )
                self._sources.append((digest, source))
        if not self._sources and not is_loopback(settings.host):
            raise SettingsError(
                f"UNLATENT_HTTP__HOST is {settings.host}, where others can ask: set {_SETTING} to"
                ' {"SOURCE": "DIGEST"}; `unlatent new-key` prints a key and its digest'
            )

    @property
    def required(self) -> bool:
        """Whether a request must have a key."""
        return bool(self._sources)

    def source_of(self, key: str | None) -> str | None:
        """Return the source that a key is of; None where no key is needed.

        Raises `RequestRefused` for a missing or unknown key.
        """
        if not self._sources:
            return None
        found = None
        digest = hashlib.sha256((key or "").encode()).hexdigest()
        for known, source in self._sources:  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, digest):
                found = source
        if found is None:
            raise RequestRefused(
                "This needs the header `Authorization: Bearer KEY` with a valid key.",
                status=401,
                reason="unauthorized",
            )
        return found


def new_key() -> tuple[str, str]:
    """Return a new key and the digest that the settings take."""
    key = f"ul_{secrets.token_urlsafe(32)}"
    return key, hashlib.sha256(key.encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Say whether nobody but this machine reaches a host of that name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


#: What proxies add; a request with one of these is not this machine's own.
_PROXIED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


def is_local(headers: Headers) -> bool:
    """Say whether a program on this machine asks, and no page of another site through a browser.

    A page that had its name point here would have its own name as `Host`; one that asks a loopback
    name has its own `Origin`, and `Sec-Fetch-Site` says so (Fetch Metadata). What a proxy passes on
    is somebody else's.
    """
    if any(name in headers for name in _PROXIED):
        return False
    if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        return False
    origin = headers.get("origin")
    return _names_loopback(f"//{headers.get('host', '')}") and (
        origin is None or _names_loopback(origin)
    )


def _names_loopback(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False
