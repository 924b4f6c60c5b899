"""What the demo uploads: files on disk, each with what is known of it beforehand."""

from __future__ import annotations

import json
import mimetypes
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import quote_plus

import numpy as np
from PIL import Image

from detection.errors import SettingsError
from training.bundles.challenger import lare_of
from training.data.bundle_aligner import bundle_aligner
from training.data.diffusion_sampling import PartialNoise
from worker.demo.photographs import PHOTOGRAPHS, package_folder
from worker.scoring.file_scoring import find_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from detection.bundle import Bundle
    from training.data.aligners import Aligner
    from worker.storage.interface import ObjectFacts

#: Longest side of what the generator remakes, in pixels.
LONGEST_SIDE = 512
#: The step, of a thousand, that variants are noised to: much changes, the motif stays.
VARIANT_STEP = 250


class Kind(StrEnum):
    """What is known of an upload beforehand."""

    PHOTOGRAPH = "photograph"
    RECONSTRUCTION = "through the bundle's autoencoder"
    VARIANT = "noised and denoised by the bundle's generator"
    BROKEN = "broken file"
    OWN = "your picture"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoUpload:
    """One file to upload; `reason` is what it must fail with, None when it must get a verdict."""

    path: Path
    key: str
    kind: Kind
    says: str
    reason: str | None = None

    @property
    def content_type(self) -> str:
        """The media type that a browser would send."""
        return mimetypes.guess_type(self.path.name)[0] or "application/octet-stream"


def photographs() -> list[DemoUpload]:
    """Return the photographs of the wheels."""
    return [
        DemoUpload(
            path=one.path, key=f"photographs/{one.path.name}", kind=Kind.PHOTOGRAPH, says=one.says
        )
        for one in PHOTOGRAPHS
    ]


def remade(bundle: Bundle, folder: Path) -> Iterator[DemoUpload]:
    """Send the photographs through the bundle's generator, and store them as PNG in `folder`.

    In turn one goes through the autoencoder alone and one is noised and denoised besides, at most
    `LONGEST_SIDE` pixels a side. Raises `SettingsError` for a bundle without a generator.
    """
    lare = lare_of(bundle)
    if lare is None:
        raise SettingsError(f"bundle {bundle.manifest.name} holds no generator to make images with")
    ways: tuple[tuple[Kind, Aligner], ...] = (
        (Kind.RECONSTRUCTION, bundle_aligner(bundle)),
        (Kind.VARIANT, PartialNoise("variant", lare.generator, step=VARIANT_STEP)),
    )
    for number, photograph in enumerate(PHOTOGRAPHS):
        kind, aligner = ways[number % len(ways)]
        with Image.open(photograph.path) as opened:
            image = opened.convert("RGB")
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        (pixels,) = aligner.reconstruct([np.asarray(image)])
        what = kind.name.lower()
        path = folder / what / f"{photograph.path.stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        says = f"{what} of {photograph.says}"
        yield DemoUpload(path=path, key=f"{what}/{path.name}", kind=kind, says=says)


def broken(folder: Path) -> list[DemoUpload]:
    """Make three files that no detector can score, out of real bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    images = package_folder("sklearn") / "datasets" / "images"
    half = (images / "flower.jpg").read_bytes()
    contents = (
        ("half-a-flower.jpg", half[: len(half) // 2], "truncated", "an upload cut in the middle"),
        ("readme.jpg", (images / "README.txt").read_bytes(), "not_an_image", "text called .jpg"),
        (
            "tiny.gif",
            (package_folder("skimage") / "data" / "no_time_for_that_tiny.gif").read_bytes(),
            "too_small",
            "an animation of 14 x 25 pixels",
        ),
    )
    uploads = []
    for name, data, reason, says in contents:
        (folder / name).write_bytes(data)
        uploads.append(
            DemoUpload(
                path=folder / name,
                key=f"broken/{name}",
                kind=Kind.BROKEN,
                says=says,
                reason=reason,
            )
        )
    return uploads


def own(folder: Path) -> list[DemoUpload]:
    """Return the image files of a folder and its subfolders; raises `SettingsError` without any."""
    if not folder.is_dir():
        raise SettingsError(f"{folder} is no folder")
    uploads = [
        # Numbered keys: a file's name may be longer than a key, or no text at all.
        DemoUpload(path=path, key=f"own/{number:06d}{path.suffix.lower()}", kind=Kind.OWN, says="")
        for number, path in enumerate(find_files([folder]), 1)
    ]
    if not uploads:
        raise SettingsError(f"no image files in {folder}")
    return uploads


def hook_event(facts: ObjectFacts) -> bytes:
    """Write what MinIO pushes to its Redis target in the `access` format when an object appears."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = {
        "eventVersion": "2.0",
        "eventSource": "minio:s3",
        "eventTime": now,
        "eventName": "s3:ObjectCreated:Put",
        "s3": {
            "s3SchemaVersion": "1.0",
            "bucket": {"name": facts.bucket},
            "object": {
                "key": quote_plus(facts.key),
                "size": facts.size,
                "eTag": facts.etag,
                "contentType": facts.content_type,
                "versionId": facts.version_id,
            },
        },
    }
    return json.dumps([{"Event": [record], "EventTime": now}]).encode()
