"""What a stress run sends: when, how large, in which format, how often twice, how often broken."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from detection.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: (Pillow's name, suffix, content type)
FORMATS = (
    ("JPEG", "jpg", "image/jpeg"),
    ("PNG", "png", "image/png"),
    ("WEBP", "webp", "image/webp"),
)
#: Longer sides in pixels: thumbnails to photographs, most of them in between.
SIDES = (160, 640, 640, 1280, 1280, 2048)
#: How many different images are made ahead; bytes behind their end make uploads unique.
_POOL = 12


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of constant arrival rate."""

    rate_per_s: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One upload to send at `at_s` after the start; `copies` is how often its event is sent.

    A calm one is sent when those before it have ended: the time of the load begins again with it.
    """

    at_s: float
    name: str
    body: bytes
    content_type: str
    copies: int
    bad: bool
    priority: bool
    calm: bool


def parse_steps(text: str) -> tuple[Step, ...]:
    """Read `5x60,10x30` as 5 a second for 60 s, then 10 a second for 30 s."""
    try:
        pairs = [part.split("x") for part in text.split(",")]
        steps = tuple(Step(float(rate), float(duration)) for rate, duration in pairs)
    except ValueError as error:
        raise SettingsError(f"{text!r} is no load: RATExSECONDS,… for example 5x60") from error
    if not all(step.rate_per_s > 0 and step.duration_s > 0 for step in steps):
        raise SettingsError(f"{text!r} is no load: rates and durations are above 0")
    return steps


def items(
    steps: tuple[Step, ...],
    *,
    bad_share: float,
    duplicate_share: float,
    priority_share: float = 0.0,
    after: tuple[Step, ...] = (),
    seed: int,
) -> Iterator[Item]:
    """Return the uploads in the order of their times; the same seed gives the same ones.

    Those of `after` are calm ones.
    """
    chance = random.Random(seed)  # noqa: S311 - a load, not a secret
    # Made before the first is due, or the run would begin late.
    pool = [_image(chance) for _ in range(_POOL)]
    return _items(
        [*((step, False) for step in steps), *((step, True) for step in after)],
        pool,
        chance,
        bad_share=bad_share,
        duplicate_share=duplicate_share,
        priority_share=priority_share,
    )


def _items(
    steps: list[tuple[Step, bool]],
    pool: list[tuple[str, str, bytes]],
    chance: random.Random,
    *,
    bad_share: float,
    duplicate_share: float,
    priority_share: float,
) -> Iterator[Item]:
    number, begin_s = 0, 0.0
    for step, calm in steps:
        for index in range(round(step.rate_per_s * step.duration_s)):
            suffix, content_type, body = chance.choice(pool)
            bad = chance.random() < bad_share
            # Bytes after an image's end change its hash and not its pixels: no verdict is reused.
            body = body[: len(body) // 2] if bad else body
            yield Item(
                at_s=begin_s + index / step.rate_per_s,
                name=f"{number:08}.{suffix}",
                body=body + number.to_bytes(8, "big"),
                content_type=content_type,
                copies=2 if chance.random() < duplicate_share else 1,
                bad=bad,
                priority=chance.random() < priority_share,
                calm=calm,
            )
            number += 1
        begin_s += step.duration_s


def _image(chance: random.Random) -> tuple[str, str, bytes]:
    import numpy as np
    from PIL import Image

    side = chance.choice(SIDES)
    kind, suffix, content_type = chance.choice(FORMATS)
    noise = np.random.default_rng(chance.randrange(2**32))
    # Smooth areas with some grain compress about as photographs do.
    coarse = noise.integers(0, 256, (12, 16, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture).astype(np.int16) + noise.integers(-6, 7, (1, side, 1))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, kind)
    return suffix, content_type, file.getvalue()
