"""Names and types rule out what is certainly no image; of everything else the bytes decide."""

from __future__ import annotations

import pytest

from detection.intake.declared_type import check_declared_type, foreign_claim
from detection.intake.errors import TypeMismatch

EXTENSIONS = (
    "jpg", "JPG", "jpeg", "jif", "jfif", "jpe", "pjpeg", "pjp", "png", "apng", "gif", "webp", "bmp",
    "dib", "tif", "tiff", "avif", "avifs", "heic", "heics", "heif", "heifs", "hif", "jxl", "jp2",
    "psd", "ico", "nef", "jpg_large", "jpg:large", "jpg~orig", "jpeg-1", "tmp", "bin", "dat", "v2",
    "webp_",
)  # fmt: skip


@pytest.mark.parametrize(
    "key",
    [
        *(f"cat.{extension}" for extension in EXTENSIONS),
        "2024.01.05",
        "dir.mp4/name",
        "no-extension",
        "photo.jpg ",
        ".jpg",
    ],
)
@pytest.mark.parametrize("declared_type", [None, "", "application/octet-stream", "text/plain"])
def test_images_and_unknown_names_pass(key: str, declared_type: str | None) -> None:
    """Whatever the type that says nothing."""
    assert foreign_claim(declared_type=declared_type, key=key) is None


@pytest.mark.parametrize(
    ("declared_type", "key", "claim"),
    [
        (None, "clip.mp4", "extension"),
        (None, "clip.MOV", "extension"),
        ("application/octet-stream", "scan.pdf", "extension"),
        ("text/plain", "notes.txt", "extension"),
        (None, "logo.svg", "extension"),
        (None, "all.tar.gz", "extension"),
        ("video/mp4", "clip", "content_type"),
        ("VIDEO/x-anything; codecs=h264", "clip.dat", "content_type"),
        ("audio/mpeg", "song", "content_type"),
        ("application/pdf", "scan", "content_type"),
        ("image/svg+xml", "logo", "content_type"),
        ("text/html; charset=utf-8", "index", "content_type"),
        # One of the two says image: the bytes decide.
        ("image/jpeg", "clip.mp4", None),
        ("IMAGE/HEIC", "a.pdf", None),
        ("video/quicktime", "IMG_0001.HEIC", None),
        ("text/html", "photo.jpg", None),
        ("jpeg", "photo", None),
        ("application/x-who-knows", "photo", None),
        ("multipart/form-data; boundary=x", "photo", None),
    ],
)
def test_what_is_certainly_something_else(
    declared_type: str | None, key: str, claim: str | None
) -> None:
    """A claim to be an image outweighs the other claim."""
    assert foreign_claim(declared_type=declared_type, key=key) == claim


@pytest.mark.parametrize(
    ("kind", "declared_type", "key"),
    [
        ("JPEG", "text/plain", "photo.jpg"),
        ("JPEG", "text/plain; charset=UTF-8", "photo"),
        ("JPEG", "jpeg", "photo.jpg"),
        ("JPEG", "application/x-who-knows", "photo.jif"),
        ("HEIF", "video/quicktime", "IMG_0001.HEIC"),
        ("PNG", None, "2024.01.05"),
        ("PNG", "image/x-citrix-png", "photo.png"),
        ("PNG", "image/jpeg", "photo.png"),
        ("WEBP", "image/jpeg", "photo.jpg"),
        ("HEIF", "image/jpeg", "IMG_0001.jpeg"),
        ("JPEG", "image/vnd.adobe.photoshop", "photo.psd"),
    ],
)
def test_what_says_nothing_contradicts_nothing(
    kind: str, declared_type: str | None, key: str
) -> None:
    """Such a file is judged by its bytes."""
    check_declared_type(kind, declared_type=declared_type, key=key)


@pytest.mark.parametrize(
    ("kind", "declared_type", "key"),
    [
        ("JPEG", "image/jpeg", "clip.mp4"),
        ("JPEG", "video/mp4", "photo"),
        ("JPEG", "text/html", "photo.jpg"),
        ("JPEG", "image/svg+xml", "photo.jpg"),
        ("PNG", "image/png", "logo.svg"),
    ],
)
def test_a_false_claim_is_refused(kind: str, declared_type: str | None, key: str) -> None:
    """What a viewer would run, lay out or play is not shown as the picture that it is."""
    with pytest.raises(TypeMismatch):
        check_declared_type(kind, declared_type=declared_type, key=key)
