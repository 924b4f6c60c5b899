"""Evidence is kept beside verdicts that accuse or doubt, and costs none of them anything."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from detection.errors import SettingsError
from worker.ledger.interface import ImageFacts, Lease, Role, Upload, Verdict
from worker.ledger.memory import MemoryLedger
from worker.scoring.evidence import MAX_SIDE, EvidenceKeeper, draw_evidence, evidence_keeper
from worker.settings import Settings
from worker.storage.interface import StorageUnavailable
from worker.storage.memory import MemoryStorage
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from worker.storage.interface import ObjectFacts

PIXELS = np.full((900, 1200, 3), 90, np.uint8)


class Desk:
    """A keeper in memory, and one scored image."""

    def __init__(self, storage: MemoryStorage | None = None) -> None:
        self.storage = storage or MemoryStorage(["evidence"])
        self.ledger = MemoryLedger()
        self.metrics = Metrics()
        self.keeper = EvidenceKeeper(
            storage=self.storage, ledger=self.ledger, metrics=self.metrics, bucket="evidence"
        )

    def verdict(self, label: str, *, key: str = "a.png", mapped: bool = True) -> Verdict:
        """Register, lease and score an image."""
        upload = Upload(bucket="uploads", key=key, etag="e")
        image_id = self.ledger.register([upload])[0].image_id
        lease = self.ledger.lease(image_id, worker="w", duration=timedelta(minutes=1))
        assert isinstance(lease, Lease)
        made = Verdict(
            image_id=image_id,
            lease_id=lease.lease_id,
            facts=ImageFacts(sha256="0" * 64, size=1, format="PNG", width=1200, height=900),
            model_version="m1",
            role=Role.CHAMPION,
            score=0.9,
            label=label,
            branches={"lare": 2.0},
            decided_by="lare",
            operating_point="fpr=0.01",
            prior=0.5,
            distance=-0.5,
            device="cpu",
            dtype="float32",
            error_map=np.arange(1024, dtype=np.float32).reshape(32, 32) if mapped else None,
        )
        self.ledger.record([made])
        return made

    def uri(self, verdict: Verdict) -> str | None:
        """Return what the ledger knows of a verdict's evidence."""
        return self.ledger.verdicts[verdict.image_id, verdict.model_version].evidence_uri

    def counted(self, outcome: str) -> float:
        """Return how often keeping evidence ended so."""
        return (
            self.metrics.registry.get_sample_value("unlatent_evidence_total", {"outcome": outcome})
            or 0.0
        )


@pytest.mark.parametrize("label", ["generated", "unsure"])
def test_what_is_accused_or_doubted_gets_a_picture(label: str) -> None:
    """The picture lies where the verdict says, is small, and carries its caption as text."""
    desk = Desk()
    verdict = desk.verdict(label)
    desk.keeper.keep(verdict, PIXELS)
    uri = desk.uri(verdict)
    assert uri == f"s3://evidence/evidence/{verdict.image_id}/m1.png"
    data = desk.storage.fetch("evidence", uri.removeprefix("s3://evidence/"), max_bytes=10**7)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"
        assert picture.width == MAX_SIDE
        said = {"generated": "generated: just beyond", "unsure": "unsure: not surely beyond"}
        assert picture.info["Description"].startswith(f"{said[label]}, -0.5 from the point of")
        # The map covers the centre square: its corners differ, the border is only darkened.
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels[5, 100] != pixels[570, 660]).any()
    assert (pixels[5, 5] == pixels[570, 760]).all()
    assert desk.counted("kept") == 1


def test_the_caption_says_why_an_image_could_not_be_judged() -> None:
    """Moderators read beside the map what the detector found too little to go by."""
    verdict = replace(Desk().verdict("unsure"), outside="nearly nothing to look at", distance=None)
    with Image.open(io.BytesIO(draw_evidence(verdict, PIXELS))) as picture:
        text = picture.info["Description"]
    assert text.startswith("unsure: not judged; label at")
    assert "thresholds hold for: nearly nothing to look at." in text


@pytest.mark.parametrize(("label", "mapped"), [("real", True), ("generated", False)])
def test_what_has_nothing_to_show_gets_none(label: str, mapped: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A photograph that is believed, and a verdict without a map, leave no object."""
    desk = Desk()
    verdict = desk.verdict(label, mapped=mapped)
    desk.keeper.keep(verdict, PIXELS)
    assert desk.uri(verdict) is None
    assert list(desk.storage.list("evidence")) == []


def test_a_photograph_that_waits_for_a_person_gets_a_picture() -> None:
    """Whoever audits what the detector believed sees what the detector saw."""
    desk = Desk()
    verdict = desk.verdict("real")
    desk.ledger.reviews.add(verdict.image_id)
    desk.keeper.keep(verdict, PIXELS)
    assert desk.uri(verdict) == f"s3://evidence/evidence/{verdict.image_id}/m1.png"
    assert desk.counted("kept") == 1


def test_a_verdict_taken_over_gets_a_picture_of_its_own() -> None:
    """The copy is the same picture, stays when the original goes, and is not made of nothing."""
    desk = Desk()
    first, second, third = (desk.verdict("generated", key=key) for key in ("a", "b", "c"))
    desk.keeper.copy(second, first)
    assert desk.uri(second) is None
    desk.keeper.keep(first, PIXELS)
    known = desk.ledger.verdicts[first.image_id, "m1"]
    picture = desk.storage.fetch("evidence", f"evidence/{first.image_id}/m1.png", max_bytes=10**7)
    desk.keeper.copy(second, known)
    desk.storage.delete("evidence", f"evidence/{first.image_id}/m1.png")
    assert desk.uri(second) == f"s3://evidence/evidence/{second.image_id}/m1.png"
    copied = desk.storage.fetch("evidence", f"evidence/{second.image_id}/m1.png", max_bytes=10**7)
    assert copied == picture
    desk.keeper.copy(third, known)
    assert (desk.uri(third), desk.counted("failed")) == (None, 1)


def test_a_bucket_that_is_away_costs_the_verdict_nothing() -> None:
    """The failure is counted and the verdict stands without its picture."""

    class Away(MemoryStorage):
        """Storage that takes nothing."""

        def put(self, bucket: str, key: str, body: bytes, *, content_type: str) -> ObjectFacts:
            """Refuse."""
            raise StorageUnavailable(f"{bucket}/{key} {len(body)} {content_type}")

    desk = Desk(Away(["evidence"]))
    verdict = desk.verdict("generated")
    desk.keeper.keep(verdict, PIXELS)
    assert (desk.counted("failed"), desk.uri(verdict)) == (1, None)


def test_evidence_of_an_image_to_be_erased_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the ledger takes no evidence any more, the object goes again."""
    desk = Desk()
    verdict = desk.verdict("generated")
    monkeypatch.setattr(desk.ledger, "attach_evidence", lambda *_, **__: False)
    desk.keeper.keep(verdict, PIXELS)
    assert list(desk.storage.list("evidence")) == []
    assert desk.counted("erased") == 1


def test_the_bucket_must_be_one_of_those_that_may_be_used() -> None:
    """A bucket that the settings do not list is refused at the start, by the setting's name."""
    parts = {"storage": MemoryStorage([]), "ledger": MemoryLedger(), "metrics": Metrics()}
    wrong = Settings.model_validate({"moderation": {"evidence_bucket": "elsewhere"}})
    with pytest.raises(SettingsError, match="UNLATENT_MODERATION__EVIDENCE_BUCKET"):
        evidence_keeper(wrong, **parts)  # type: ignore[arg-type]  # parts are of three types
    right = {"moderation": {"evidence_bucket": "e"}, "s3": {"buckets": ["uploads", "e"]}}
    assert evidence_keeper(Settings.model_validate(right), **parts) is not None  # type: ignore[arg-type]  # as above
    assert evidence_keeper(Settings(), **parts) is None  # type: ignore[arg-type]  # as above
