"""`unlatent worker` with a real detector, its weights random, on real services."""

from __future__ import annotations

import io
import urllib.request
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from detection.bundle import write_manifest
from detection.detector import Detector
from tests.processes import WorkerProcess
from tests.site import Site, png
from tests.tinybundle import build_tiny_bundle
from tests.waiting import eventually
from worker.localstack.processes import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from detection.bundle import Bundle
    from worker.settings import Settings


def test_the_command_scores_as_the_detector_does(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    """The row carries the detector's own score, version and evidence; the metrics count it."""
    bundle = accusing(build_tiny_bundle(tmp_path / "bundle"))
    port = free_port()
    chosen = settings.model_copy(
        update={
            "scoring": settings.scoring.model_copy(update={"bundle": str(bundle.folder)}),
            "moderation": settings.moderation.model_copy(
                update={"evidence_bucket": settings.s3.buckets[0]}
            ),
            "observability": settings.observability.model_copy(update={"metrics_port": port}),
        }
    )
    site = Site(chosen, engine)
    image_id = site.upload("a.png", png(90, side=100, corner=(1, 2, 3)))
    with WorkerProcess(chosen, module="worker", arguments=["worker"]) as worker:
        worker.wait_until_ready()
        row = site.wait_for(image_id)
        # Drawn once the verdict stands.
        eventually(lambda: site.verdicts(image_id)[0].evidence_uri, what="the evidence")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        assert worker.stop() == 0
    (verdict,) = site.verdicts(image_id)
    detector = Detector.load(bundle.folder)
    assert verdict.model_version == detector.model_version
    assert set(verdict.branches) == {"lare", "aligned"}
    assert (row.width, verdict.device, verdict.dtype) == (100, "cpu", "float32")
    pixels = np.full((100, 100, 3), 90, np.uint8)
    pixels[0, 0] = (1, 2, 3)
    (score,) = detector.score([pixels])
    assert verdict.score == pytest.approx(score.probability, abs=1e-4)
    assert verdict.label == score.label
    assert f'model_version="{detector.model_version}",role="champion"}} 1.0' in metrics
    bucket, _, key = verdict.evidence_uri.removeprefix("s3://").partition("/")
    data = site.storage.fetch(bucket, key, max_bytes=10**7)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.info["Description"].startswith("generated: probability of generated")


def accusing(bundle: Bundle) -> Bundle:
    """Move a bundle's thresholds so far down that it calls everything generated."""
    points = tuple(
        point.model_copy(update={"threshold": -100.0}) for point in bundle.manifest.operating_points
    )
    changed = bundle.manifest.model_copy(update={"operating_points": points})
    return write_manifest(bundle.folder, changed)
