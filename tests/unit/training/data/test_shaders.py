"""Procedural images."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.shaders import KINDS, render, renderings


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_rendering_is_a_function_of_its_seed(kind: str) -> None:
    """One seed gives one picture of the asked size, another seed another, and neither is flat."""
    first = render(kind, 5, height=72, width=96)

    assert first.shape == (72, 96, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, render(kind, 5, height=72, width=96))
    assert not np.array_equal(first, render(kind, 6, height=72, width=96))
    assert first.std() > 10


def test_renderings_take_the_kinds_in_turn() -> None:
    """A run of renderings covers every kind under names of its own."""
    names = [name for name, _ in renderings(10, side=64)]

    assert len(set(names)) == 10
    assert {name.split("-")[1] for name in names} == set(KINDS)
