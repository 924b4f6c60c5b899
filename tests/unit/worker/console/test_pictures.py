"""Previews are bounded; layers are read from an evidence's document, and from no broken one."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

from detection.evidence import CONTRIBUTIONS, ERROR_MAP, MAX_SIDE, make_evidence, make_preview
from detection.score import Label, Score
from worker.console.pictures import Layers, Pictures
from worker.storage.interface import AccessDenied, ObjectMissing
from worker.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from worker.decoding.pool import DecodePool


@pytest.mark.parametrize("size", [(64, 64), (1600, 900), (1601, 3), (5000, 3333), (1, 9000)])
def test_a_preview_is_no_larger_than_its_limit(size: tuple[int, int]) -> None:
    """The longer side is bounded, small ones stay as they are, and the page tells them apart."""
    width, height = size
    pixels = np.full((height, width, 3), (200, 30, 90), np.uint8)
    picture = Image.open(io.BytesIO(make_preview(pixels)[1]))
    assert picture.format == "JPEG"
    assert max(picture.size) <= MAX_SIDE
    assert Layers(width=width, height=height).reduced == (picture.size != size)
    colour = np.asarray(picture.convert("RGB"))[0, 0]
    assert np.abs(colour.astype(int) - (200, 30, 90)).max() < 6


def _layers(document: bytes) -> Layers:
    storage = MemoryStorage(["b"])
    storage.put("b", "evidence/i/m/evidence.json", document, content_type="application/json")
    pictures = Pictures(storage, cast("DecodePool", None), max_bytes=1)
    uri = "s3://b/evidence/i/m/evidence.json"
    return pictures.layers_of({"width": 200, "height": 120, "evidence_uri": uri, "id": uuid4()})


def test_a_map_lies_where_the_document_says() -> None:
    """What a worker writes is what a page draws: the centre square of the shorter side."""
    score = Score(
        probability=0.97,
        label=Label.GENERATED,
        branches={"lare": 3.0},
        decided_by="lare",
        operating_point="fpr=0.01",
        prior=0.1,
        error_map=np.eye(8, dtype=np.float32),
    )
    files = make_evidence(np.zeros((120, 200, 3), np.uint8), score)
    layers = _layers(files["evidence.json"])
    assert (layers.width, layers.height) == (200, 120)
    assert layers.map_box == (40, 0, 120, 120)
    assert not layers.tiles
    assert len(layers.captions) == 1


class _WithoutList(MemoryStorage):
    """Storage whose key may not list: it calls a missing object forbidden, as AWS does."""

    def fetch(self, bucket: str, key: str, **options: Any) -> bytes:
        """Download one object; raises `AccessDenied` where there is none."""
        try:
            return super().fetch(bucket, key, **options)
        except ObjectMissing as error:
            raise AccessDenied(key) from error


@pytest.mark.parametrize(
    ("score", "name"),
    [
        ({"decided_by": "lare", "error_map": np.eye(8, dtype=np.float32)}, ERROR_MAP),
        ({"decided_by": "backbone", "contributions": np.eye(8, dtype=np.float32)}, CONTRIBUTIONS),
    ],
    ids=["lare", "backbone"],
)
def test_the_map_that_the_document_names_is_the_only_one_asked_for(
    score: dict[str, Any], name: str
) -> None:
    """A key that may read and not list gets the map of either branch."""
    told = Score(
        probability=0.97,
        label=Label.GENERATED,
        branches={score["decided_by"]: 3.0},
        operating_point="fpr=0.01",
        prior=0.1,
        **score,
    )
    storage = _WithoutList(["b"])
    files = make_evidence(np.zeros((120, 200, 3), np.uint8), told)
    for file, body in files.items():
        storage.put("b", f"evidence/i/m/{file}", body, content_type="image/png")
    pictures = Pictures(storage, cast("DecodePool", None), max_bytes=1)
    assert pictures.map("s3://b/evidence/i/m/evidence.json") == files[name]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        json.dumps({"picture": {"width": "x", "height": 1}, "layers": []}).encode(),
        json.dumps({"picture": {"width": 1, "height": 1}, "layers": [{"kind": "tiles"}]}).encode(),
    ],
)
def test_a_damaged_document_costs_the_layers_alone(document: bytes) -> None:
    """The page shows the picture without them."""
    assert _layers(document) == Layers(width=200, height=120)


def test_kinds_that_are_not_known_are_left_out() -> None:
    """A later release may add a kind of layer."""
    document = {"picture": {"width": 9, "height": 9}, "layers": [{"kind": "heat", "caption": "x"}]}
    assert _layers(json.dumps(document).encode()) == Layers(width=9, height=9)
