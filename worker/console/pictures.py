"""Pictures for the browser: always pixels that we encoded, never an uploader's bytes.

Where a worker kept evidence (docs/evidence.md), its preview and its layers are served; else a
preview is made here, from pixels of the decode pool.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import structlog

from detection.errors import PermanentError, TransientError
from detection.evidence import DOCUMENT, MAX_SIDE, PREVIEW, make_preview
from worker.console.desk import Refused
from worker.decoding.pool import DecodePool
from worker.storage.interface import ObjectMissing, parse_uri
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.settings import Settings
    from worker.storage.interface import Storage

_log = structlog.get_logger(__name__)

#: Larger than any file of evidence.
_MAX_EVIDENCE_BYTES = 8 * 2**20
#: How long a picture may wait for a decoding process, in seconds.
_WAIT_S = 10.0
#: The kinds of layers that are a map of one pixel a cell; each is the PNG of its name.
_MAPS = ("error_map", "contributions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A square that the aligned branch read: place in pixels of the original, and logit."""

    left: float
    top: float
    width: float
    height: float
    logit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What can be laid over a preview; sizes and places are in pixels of the upright original.

    `map_box` is left, top, width, height of the map, if any; `captions` say what each layer shows.
    """

    width: int
    height: int
    map_box: tuple[float, float, float, float] | None = None
    tiles: tuple[Tile, ...] = ()
    captions: tuple[str, ...] = ()

    @property
    def reduced(self) -> bool:
        """Whether the preview has fewer pixels than the original, so that zooming shows no more."""
        return max(self.width, self.height) > MAX_SIDE


class Pictures:
    """Reads storage and decodes; close it at the end."""

    def __init__(self, storage: Storage, pool: DecodePool, *, max_bytes: int) -> None:
        self._storage = storage
        self._pool = pool
        self._max_bytes = max_bytes

    @classmethod
    def open(cls, settings: Settings) -> Pictures:
        """Return the pictures of a deployment; decoding processes start with the first."""
        return cls(
            S3Storage(settings.s3),
            DecodePool(settings.intake),
            max_bytes=settings.intake.max_bytes,
        )

    def close(self) -> None:
        """End the decoding processes."""
        self._pool.close()

    def layers_of(self, facts: Mapping[str, Any]) -> Layers:
        """Return the layers that are kept for an image; none where they cannot be read."""
        plain = Layers(width=facts["width"] or 1, height=facts["height"] or 1)
        uri = facts["evidence_uri"]
        if uri is None or not uri.endswith(f"/{DOCUMENT}"):
            return plain
        try:
            return _layers(plain, json.loads(self._evidence(uri, DOCUMENT)))
        except (PermanentError, TransientError, LookupError, TypeError, ValueError) as error:
            _log.warning("evidence_unread", uri=uri, error=f"{type(error).__name__}: {error}")
            return plain

    def map(self, uri: str | None) -> bytes:
        """Return the map of stored evidence, a PNG; raises `Refused` where there is none.

        Which map there is stands in the document: storage may call a missing object forbidden.
        """
        if uri is not None and uri.endswith(f"/{DOCUMENT}"):
            with suppress(ObjectMissing, LookupError, TypeError, ValueError):
                kinds = {
                    layer["kind"] for layer in json.loads(self._evidence(uri, DOCUMENT))["layers"]
                }
                for kind in kinds.intersection(_MAPS):
                    return self._evidence(uri, f"{kind}.png")
        raise Refused("There is no map of this image.", status=404)

    def preview(self, opened: Mapping[str, Any]) -> bytes:
        """Return the picture of what `moderation.open_image` opened, a JPEG without metadata.

        Raises `Refused` for a picture that is gone, and what storage and the pool raise.
        """
        uri = opened["evidence_uri"]
        if uri is not None and uri.endswith(f"/{DOCUMENT}"):
            try:
                return self._evidence(uri, PREVIEW)
            except ObjectMissing:
                _log.info("evidence_missing", uri=uri)  # it expires before the original does
        if opened["key"] is None:
            raise Refused("The picture was removed from storage.", status=410)
        try:
            data = self._storage.fetch(
                opened["bucket"],
                opened["key"],
                version_id=opened["version_id"],
                etag=opened["etag"],
                max_bytes=self._max_bytes,
            )
        except ObjectMissing as error:
            raise Refused("The picture is no longer in storage.", status=410) from error
        with self._pool.decode(data, key=opened["key"], wait_s=_WAIT_S) as decoded:
            return make_preview(decoded.pixels)[1]

    def _evidence(self, uri: str, name: str) -> bytes:
        bucket, key = parse_uri(uri)
        folder = key.rpartition("/")[0]
        return self._storage.fetch(bucket, f"{folder}/{name}", max_bytes=_MAX_EVIDENCE_BYTES)


def _layers(plain: Layers, document: Mapping[str, Any]) -> Layers:
    picture = document["picture"]
    layers = replace(plain, width=int(picture["width"]), height=int(picture["height"]))
    for layer in document["layers"]:
        if layer["kind"] in _MAPS:
            left, top, width, height = map(float, layer["box"])
            layers = replace(layers, map_box=(left, top, width, height))
        elif layer["kind"] == "tiles":
            layers = replace(layers, tiles=tuple(map(_tile, layer["tiles"])))
        else:
            continue
        layers = replace(layers, captions=(*layers.captions, str(layer["caption"])))
    return layers


def _tile(told: Mapping[str, Any]) -> Tile:
    left, top, width, height = map(float, told["box"])
    return Tile(left=left, top=top, width=width, height=height, logit=float(told["logit"]))
