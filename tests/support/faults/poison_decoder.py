"""The decoder of workers under test: the real one, but for bytes that say what to do instead."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.intake import decode as intake
from tests.support.processes import misbehaving_decoder

if TYPE_CHECKING:
    from detection.intake.decode import DecodedImage

POISON = b"poison "


def decode(data: bytes, **told: Any) -> DecodedImage:
    """Decode an image; `poison die`, `poison hang`, … do what `misbehaving_decoder` says.

    `poison log-and-hang FILE` leaves a file before it hangs.
    """
    if data.startswith(POISON + b"log-and-hang "):
        Path(data.decode().rpartition(" ")[2]).touch()
        time.sleep(3600)
    if data.startswith(POISON):
        del told["limits"]
        return misbehaving_decoder.decode(data.removeprefix(POISON), **told)
    return intake.decode(data, **told)
