"""Files that are whole or not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from training.files import written_aside

if TYPE_CHECKING:
    from pathlib import Path


def cut_short(file: Path) -> None:
    """Write a part, and run out of room."""
    with written_aside(file) as aside:
        aside.write_bytes(b"sec")
        raise OSError("disk full")


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """A reader sees the old content until the new one is whole, and after a failure too."""
    file = tmp_path / "weights.bin"
    with written_aside(file) as aside:
        aside.write_bytes(b"first")
        assert not file.exists()
    assert file.read_bytes() == b"first"

    with pytest.raises(OSError, match="disk full"):
        cut_short(file)

    assert file.read_bytes() == b"first"
    with written_aside(file) as aside:
        aside.write_bytes(b"second")
    assert [one.name for one in tmp_path.iterdir()] == ["weights.bin"]
    assert file.read_bytes() == b"second"
