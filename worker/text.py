"""Text for people and log stores: secrets hidden, control characters escaped."""

from __future__ import annotations

import re

MASK = "***"

_URL_PASSWORD = re.compile(
    r"(?P<before>[a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s/@]+(?=@)", re.IGNORECASE
)
_SIGNED_QUERY = re.compile(
    r"(?P<before>X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"']+", re.IGNORECASE
)


def mask(text: str) -> str:
    """Hide the passwords of URLs and the signatures of presigned S3 addresses."""
    for pattern in (_URL_PASSWORD, _SIGNED_QUERY):
        text = pattern.sub(rf"\g<before>{MASK}", text)
    return text


def escape_controls(text: str) -> str:
    r"""Escape, as Python would write it, every character that a terminal may obey.

    Those are the control characters (ESC among them) and the invisible ones that change direction;
    line feeds too, because a forged line looks like ours: "a\x1b[2J" becomes "a\\x1b[2J".
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
