"""Rejections of an upload before any model sees it: one class, one `reason` each."""

from __future__ import annotations

from typing import ClassVar

from detection.errors import PermanentError


class ImageRejected(PermanentError):
    """The bytes cannot be checked as an image; trying again would not help."""

    reason: ClassVar[str] = "refused"


class EmptyFile(ImageRejected):
    """The file holds no bytes."""

    reason: ClassVar[str] = "empty_file"


class TooManyBytes(ImageRejected):
    """The file is larger than the limit on bytes."""

    reason: ClassVar[str] = "too_many_bytes"


class ChecksumMismatch(ImageRejected):
    """The bytes do not have the sha256 that the producer gave."""

    reason: ClassVar[str] = "checksum_mismatch"


class NotAnImage(ImageRejected):
    """The bytes are not an image of any kind we know."""

    reason: ClassVar[str] = "not_an_image"


class UnsupportedFormat(ImageRejected):
    """The file is of a known kind that is not checked."""

    reason: ClassVar[str] = "unsupported_format"


class TypeMismatch(ImageRejected):
    """The file claims one type and its bytes are another."""

    reason: ClassVar[str] = "type_mismatch"


class Truncated(ImageRejected):
    """The file ends before its image does."""

    reason: ClassVar[str] = "truncated"


class Corrupt(ImageRejected):
    """The file starts as an image but its contents cannot be decoded."""

    reason: ClassVar[str] = "corrupt"


class TooManyPixels(ImageRejected):
    """The image has more pixels than the limit."""

    reason: ClassVar[str] = "too_many_pixels"


class TooSmall(ImageRejected):
    """The image is smaller than the detector's minimum side."""

    reason: ClassVar[str] = "too_small"


class DecompressionBomb(ImageRejected):
    """A small file would unpack to far more than any photograph of its size."""

    reason: ClassVar[str] = "decompression_bomb"


class TooManyFrames(ImageRejected):
    """The animation has more frames than the limit."""

    reason: ClassVar[str] = "too_many_frames"


class MetadataBomb(ImageRejected):
    """The file carries more metadata than the limit, or metadata that refers to itself."""

    reason: ClassVar[str] = "metadata_bomb"
