"""Chooses the frames of an animation to judge: a bounded sample, weighed by display time.

Time is cut into equal slots, and each slot is judged by the frame that looks most like the slot on
average. So a frame that flashes by is never the one, wherever it stands, and neither chance nor the
file's bytes decide. As viewers do, a frame of 10 ms or less is shown for 100 ms, and the last frame
of an animation that does not repeat for ever stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from detection.intake.formats.survey import Timeline

#: Slots, and so frames, that an animation is judged by at most.
SLOTS = 5
# What browsers take for "as fast as possible", and how long they show such a frame.
_SHORTEST_MS, _INSTEAD_MS = 10.0, 100.0
_SAMPLED_SIDE, _LOOK_SIDE = 128, 16


@dataclass(frozen=True, slots=True, eq=False)
class ShownFrame:
    """A judged frame: its number, from 0, among the file's pictures; its share of the time.

    `pixels` is uint8 (height, width, 3). A still is one frame of share 1. A picture of an APNG that
    is not part of its animation is not counted.
    """

    number: int
    share: float
    pixels: NDArray[np.uint8]


def sample(
    timeline: Timeline, slots: int, look: Callable[[int], NDArray[np.float32]]
) -> list[tuple[int, float]]:
    """Choose frames; returns (number, share of the time) in order, the shares summing to 1.

    `look` gives a small picture of a frame (see `small_picture`); it is called for each number from
    0 on, and only when there are more frames than slots.
    """
    shown = _shown_ms(timeline)
    shares = shown / shown.sum()
    if len(shares) <= slots:
        return list(enumerate(shares.tolist()))
    looks = np.stack([look(number) for number in range(len(shares))])
    ends = np.cumsum(shares)
    chosen: dict[int, float] = {}
    for slot in range(slots):
        begin, end = slot / slots, (slot + 1) / slots
        inside = np.clip(np.minimum(ends, end) - np.maximum(ends - shares, begin), 0, None)
        numbers = np.flatnonzero(inside > 0)
        weights = inside[numbers] / inside.sum()
        average = np.tensordot(weights, looks[numbers], axes=1)
        distances = np.abs(looks[numbers] - average).mean(axis=(1, 2, 3))
        nearest = int(numbers[int(distances.argmin())])
        chosen[nearest] = chosen.get(nearest, 0.0) + 1 / slots
    return sorted(chosen.items())


def small_picture(image: Image.Image) -> NDArray[np.float32]:
    """Return a loaded image over white, reduced to 16 x 16 pixels, (16, 16, 3)."""
    # Every frame is looked at: far fewer pixels than it has are enough to tell it from others.
    some = image.resize((_SAMPLED_SIDE, _SAMPLED_SIDE), Image.Resampling.NEAREST)
    small = some.convert("RGBA").resize((_LOOK_SIDE, _LOOK_SIDE), Image.Resampling.BOX)
    levels = np.asarray(small, dtype=np.float32)
    alpha = levels[..., 3:] / 255
    return np.asarray(levels[..., :3] * alpha + 255 * (1 - alpha), np.float32)


def longest(frames: Sequence[ShownFrame]) -> ShownFrame:
    """Return the frame that is shown longest, the earliest of several."""
    return max(frames, key=lambda frame: (frame.share, -frame.number))


def _shown_ms(timeline: Timeline) -> NDArray[np.float64]:
    shown = np.array(timeline.durations_ms, dtype=np.float64)
    shown[shown <= _SHORTEST_MS] = _INSTEAD_MS
    if not timeline.repeats:
        # It is what remains to be seen; counted as long as all that comes before.
        shown[-1] = max(shown[-1], shown[:-1].sum())
    return shown
