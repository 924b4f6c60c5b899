"""`unlatent worker` with a real detector, its weights random, on real services."""

from __future__ import annotations

import io
import urllib.request
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import update

from detection.bundle import write_manifest
from detection.detector import Detector
from detection.errors import SettingsError
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.processes.worker_process import WorkerProcess
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.ledger.tables import VerdictRow
from worker.localstack.processes import free_port
from worker.models.evidence_on_demand import EvidenceUnavailable, render_evidence
from worker.storage.interface import parse_uri

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from sqlalchemy import Engine

    from detection.bundle import Bundle
    from worker.settings import Settings


@pytest.mark.timeout(300)
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
        drawn(site, image_id)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        twin_id = site.upload("twin.png", png(90, side=100, corner=(1, 2, 3)))
        site.wait_for(twin_id)
        drawn(site, twin_id)
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
    assert verdict.distance == score.distance
    assert f'model_version="{detector.model_version}",role="champion"}} 1.0' in metrics
    data = site.storage.fetch(*parse_uri(verdict.evidence_uri), max_bytes=10**7)
    with Image.open(io.BytesIO(data)) as picture:
        said = picture.info["Description"]
    # Its bundle accuses whatever can be judged; one grey cannot.
    assert said.startswith("unsure: not judged; label at fpr=")
    assert "nearly nothing to look at" in said
    (twins,) = site.verdicts(twin_id)
    assert twins.reused_from == image_id
    assert twins.evidence_uri != verdict.evidence_uri
    assert site.storage.fetch(*parse_uri(twins.evidence_uri), max_bytes=10**7) == data
    # Forgotten, and drawn again by a process that never saw the image.
    forget(twins.evidence_uri, site, engine)
    assert render_evidence(twin_id, settings=chosen, engine=engine, storage=site.storage) == (
        twins.evidence_uri
    )
    assert alike(site.storage.fetch(*parse_uri(twins.evidence_uri), max_bytes=10**7), data)
    # Where a picture lies, none is drawn: no model is asked for.
    other = chosen.model_copy(update={"scoring": settings.scoring})
    render_evidence(twin_id, settings=other, engine=engine, storage=site.storage)
    forget(twins.evidence_uri, site, engine)
    with pytest.raises(SettingsError, match=f"{detector.model_version} judged .* neither"):
        render_evidence(twin_id, settings=other, engine=engine, storage=site.storage)
    with pytest.raises(SettingsError, match="EVIDENCE_BUCKET"):
        render_evidence(twin_id, settings=settings, engine=engine, storage=site.storage)
    with pytest.raises(EvidenceUnavailable, match="no verdict"):
        render_evidence(uuid4(), settings=chosen, engine=engine, storage=site.storage)


def drawn(site: Site, image_id: UUID) -> None:
    """Wait until an image's verdict has its evidence."""
    what = f"the evidence of {image_id}"
    eventually(lambda: site.verdicts(image_id)[0].evidence_uri, timeout_s=90, what=what)


def forget(uri: str, site: Site, engine: Engine) -> None:
    """Take a picture out of its bucket and out of its row."""
    site.storage.delete(*parse_uri(uri))
    with engine.begin() as connection:
        connection.execute(
            update(VerdictRow).where(VerdictRow.evidence_uri == uri).values(evidence_uri=None)
        )


def alike(one: bytes, other: bytes) -> bool:
    """Say whether two pictures show the same; another number of threads may round otherwise."""
    pictures = [Image.open(io.BytesIO(data)) for data in (one, other)]
    captions = {picture.info["Description"].partition("\n")[0] for picture in pictures}
    pixels = [np.asarray(picture, np.int16) for picture in pictures]
    return len(captions) == 1 and bool(np.abs(pixels[0] - pixels[1]).max() <= 2)


def accusing(bundle: Bundle) -> Bundle:
    """Move a bundle's thresholds so far down that it calls everything generated."""
    points = tuple(
        point.model_copy(update={"threshold": -100.0}) for point in bundle.manifest.operating_points
    )
    changed = bundle.manifest.model_copy(update={"operating_points": points})
    return write_manifest(bundle.folder, changed)
