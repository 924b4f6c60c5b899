"""Limits on a container's frames, metadata bytes and segments."""

from __future__ import annotations

from dataclasses import dataclass

from detection.intake.errors import MetadataBomb, TooManyFrames

# Enough for any real file of 64 MiB; more pieces are made to keep a parser busy.
_MAX_PIECES = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerLimits:
    """The limits that a walk over a container checks as it goes."""

    max_frames: int
    max_metadata_bytes: int
    max_pixels: int

    def check_referred(self, size: int, size_bytes: int) -> None:
        """Raise `MetadataBomb` when directories refer to more bytes than their file has.

        What is stored once costs no more than the file itself, so it is not limited.
        """
        if size > max(self.max_metadata_bytes, size_bytes):
            message = (
                f"The {size_bytes}-byte file's metadata refers to more than "
                f"{max(self.max_metadata_bytes, size_bytes)} bytes: it refers to some of them "
                "many times."
            )
            raise MetadataBomb(message)

    def check_frames(self, frames: int) -> None:
        """Raise `TooManyFrames` when `frames` are too many."""
        if frames > self.max_frames:
            message = f"The file has more than {self.max_frames} frames, the limit (max_frames)."
            raise TooManyFrames(message)

    def check_pieces(self, pieces: int) -> None:
        """Raise `MetadataBomb` when a container is cut into absurdly many pieces."""
        if pieces > _MAX_PIECES:
            message = f"The file is cut into more than {_MAX_PIECES} pieces."
            raise MetadataBomb(message)
