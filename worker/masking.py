"""Hiding secrets in text that people and log stores read."""

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
