"""Text for people, log stores and spreadsheets: secrets hidden, what would be obeyed escaped."""

from __future__ import annotations

import re

MASK = "***"
#: Characters of one text that a person or a log store is given.
MAX_TEXT = 2000

# Without the scheme, whose pattern would take quadratic time on a long word.
_URL_PASSWORD = re.compile(r"(?P<before>://[^\s:/@]*:)[^\s/@]+(?=@)")
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


def shorten(text: str, limit: int = MAX_TEXT) -> str:
    """Cut the middle out of a text longer than `limit` characters, and say how much went.

    Both ends are kept: an error begins with what failed and ends with why. Mask before: half a
    secret is not recognised.
    """
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 2, limit // 2
    return f"{text[:head]}…[{len(text) - limit} characters cut]…{text[len(text) - tail :]}"


def escape_formula(text: str) -> str:
    """Keep spreadsheets from calculating what somebody wrote (CWE-1236)."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
