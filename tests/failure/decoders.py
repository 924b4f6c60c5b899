"""The decoder of workers under test: the real one, but for bytes that say what to do instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detection import intake
from tests.unit import decoders

if TYPE_CHECKING:
    from detection.intake import DecodedImage

POISON = b"poison "


def decode(data: bytes, **told: Any) -> DecodedImage:
    """Decode an image; `poison die`, `poison hang`, … do what `tests.unit.decoders` says."""
    if data.startswith(POISON):
        del told["limits"]
        return decoders.decode(data.removeprefix(POISON), **told)
    return intake.decode(data, **told)
