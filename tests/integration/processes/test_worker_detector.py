"""`unlatent worker` with a real detector, its weights random, on real services."""

from __future__ import annotations

import io
import json
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
from detection.evidence import captions
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.processes.worker_process import WorkerProcess
from tests.support.upload_site import Site
from tests.support.waiting import eventually
from worker.ledger.tables import VerdictRow
from worker.localstack.processes import free_port
from worker.models.evidence_on_demand import EvidenceUnavailable, render_evidence
from worker.scoring.evidence import load_evidence, remove_evidence

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from numpy.typing import NDArray
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
    pixels = np.random.default_rng(7).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    image_id = site.upload("a.png", encoded(pixels))
    with WorkerProcess(chosen, module="worker", arguments=["worker"]) as worker:
        worker.wait_until_ready()
        row = site.wait_for(image_id)
        # Drawn once the verdict stands.
        drawn(site, image_id)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        twin_id = site.upload("twin.png", encoded(pixels))
        site.wait_for(twin_id)
        drawn(site, twin_id)
        assert worker.stop() == 0
    (verdict,) = site.verdicts(image_id)
    detector = Detector.load(bundle.folder)
    assert verdict.model_version == detector.model_version
    assert set(verdict.branches) == {"lare", "aligned"}
    assert (row.width, verdict.device, verdict.dtype) == (130, "cpu", "float32")
    (score,) = detector.score([pixels])
    assert verdict.score == pytest.approx(score.probability, abs=1e-4)
    assert verdict.label == score.label
    assert verdict.distance == score.distance
    assert f'model_version="{detector.model_version}",role="champion"}} 1.0' in metrics
    assert verdict.tiles == [
        {**tile.as_dict(), "logit": pytest.approx(tile.logit, abs=1e-3)} for tile in score.tiles
    ]
    files = load_evidence(site.storage, verdict.evidence_uri)
    assert set(files) == {"evidence.json", "preview.jpg", "error_map.png"}
    document = json.loads(files["evidence.json"])
    assert document["picture"] == {"width": 130, "height": 100, "frame": 0}
    assert document["decided_by"] == verdict.decided_by == "lare"
    (twins,) = site.verdicts(twin_id)
    assert twins.reused_from == image_id
    assert twins.tiles == verdict.tiles
    assert twins.evidence_uri != verdict.evidence_uri
    assert load_evidence(site.storage, twins.evidence_uri) == files
    # Forgotten, and made again by a process that never saw the image.
    forget(twins.evidence_uri, site, engine)
    assert render_evidence(twin_id, settings=chosen, engine=engine, storage=site.storage) == (
        twins.evidence_uri
    )
    assert alike(load_evidence(site.storage, twins.evidence_uri), files)
    # Where evidence lies, none is made: no model is asked for.
    other = chosen.model_copy(update={"scoring": settings.scoring})
    render_evidence(twin_id, settings=other, engine=engine, storage=site.storage)
    forget(twins.evidence_uri, site, engine)
    with pytest.raises(SettingsError, match=f"{detector.model_version} judged .* neither"):
        render_evidence(twin_id, settings=other, engine=engine, storage=site.storage)
    with pytest.raises(SettingsError, match="EVIDENCE_BUCKET"):
        render_evidence(twin_id, settings=settings, engine=engine, storage=site.storage)
    with pytest.raises(EvidenceUnavailable, match="no verdict"):
        render_evidence(uuid4(), settings=chosen, engine=engine, storage=site.storage)


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    """Return a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def drawn(site: Site, image_id: UUID) -> None:
    """Wait until an image's verdict has its evidence."""
    what = f"the evidence of {image_id}"
    eventually(lambda: site.verdicts(image_id)[0].evidence_uri, timeout_s=90, what=what)


def forget(uri: str, site: Site, engine: Engine) -> None:
    """Take evidence out of its bucket and out of its row."""
    remove_evidence(site.storage, uri)
    with engine.begin() as connection:
        connection.execute(
            update(VerdictRow).where(VerdictRow.evidence_uri == uri).values(evidence_uri=None)
        )


def alike(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    """Say whether evidence shows the same; another number of threads may round otherwise."""
    maps = [np.asarray(Image.open(io.BytesIO(f["error_map.png"])), np.int16) for f in (one, other)]
    return (
        one.keys() == other.keys()
        and one["preview.jpg"] == other["preview.jpg"]
        and captions(one) == captions(other)
        and bool(np.abs(maps[0] - maps[1]).max() <= 2)
    )


def accusing(bundle: Bundle) -> Bundle:
    """Have a bundle call everything generated, and its lare branch decide that."""
    points = tuple(
        point.model_copy(update={"threshold": -100.0}) for point in bundle.manifest.operating_points
    )
    fusion = bundle.manifest.fusion.model_copy(update={"centres": {"lare": -100.0, "aligned": 0.0}})
    changed = bundle.manifest.model_copy(update={"operating_points": points, "fusion": fusion})
    return write_manifest(bundle.folder, changed)
