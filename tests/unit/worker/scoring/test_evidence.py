"""Evidence is kept beside verdicts that accuse or doubt, and costs none of them anything."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from detection.errors import SettingsError
from detection.evidence import captions
from detection.score import TileLogit
from worker.ledger.interface import ImageFacts, Lease, Role, Upload, Verdict
from worker.ledger.memory import MemoryLedger
from worker.scoring.evidence import (
    EvidenceKeeper,
    evidence_keeper,
    load_evidence,
    remove_evidence,
)
from worker.settings import Settings
from worker.storage.interface import ObjectMissing, StorageUnavailable, purge_folder
from worker.storage.memory import MemoryStorage
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from worker.storage.interface import ObjectFacts

PIXELS = np.full((1800, 2400, 3), 90, np.uint8)
TILE = TileLogit(top=10, left=20, height=64, width=64, logit=1.5)


class Desk:
    """A keeper in memory, and one scored image."""

    def __init__(self, storage: MemoryStorage | None = None) -> None:
        self.storage = storage or MemoryStorage(["evidence"])
        self.ledger = MemoryLedger()
        self.metrics = Metrics()
        self.keeper = EvidenceKeeper(
            storage=self.storage, ledger=self.ledger, metrics=self.metrics, bucket="evidence"
        )

    def verdict(self, label: str, *, key: str = "a.png", decided_by: str = "lare") -> Verdict:
        """Register, lease and score an image."""
        upload = Upload(bucket="uploads", key=key, etag="e")
        image_id = self.ledger.register([upload])[0].image_id
        lease = self.ledger.lease(image_id, worker="w", duration=timedelta(minutes=1))
        assert isinstance(lease, Lease)
        made = Verdict(
            image_id=image_id,
            lease_id=lease.lease_id,
            facts=ImageFacts(sha256="0" * 64, size=1, format="PNG", width=2400, height=1800),
            model_version="m1",
            role=Role.CHAMPION,
            score=0.9,
            label=label,
            branches={"lare": 2.0, "aligned": 1.5},
            decided_by=decided_by,
            operating_point="fpr=0.01",
            prior=0.5,
            distance=-0.5,
            device="cpu",
            dtype="float32",
            error_map=np.arange(1024, dtype=np.float32).reshape(32, 32),
            tiles=(TILE,),
        )
        self.ledger.record([made])
        return made

    def uri(self, verdict: Verdict) -> str | None:
        """Return what the ledger knows of a verdict's evidence."""
        return self.ledger.verdicts[verdict.image_id, verdict.model_version].evidence_uri

    def files(self, verdict: Verdict) -> dict[str, bytes]:
        """Return the evidence that the ledger knows of."""
        uri = self.uri(verdict)
        assert uri is not None
        return load_evidence(self.storage, uri)

    def keys(self) -> list[str]:
        """List what the bucket holds."""
        return [found.key for found in self.storage.list("evidence")]

    def counted(self, outcome: str) -> float:
        """Return how often keeping evidence ended so."""
        return (
            self.metrics.registry.get_sample_value("unlatent_evidence_total", {"outcome": outcome})
            or 0.0
        )


@pytest.mark.parametrize("label", ["generated", "unsure"])
@pytest.mark.parametrize(
    ("decided_by", "more", "kind"),
    [("lare", ["error_map.png"], "error_map"), ("aligned", [], "tiles")],
)
def test_what_is_accused_or_doubted_gets_evidence(
    label: str, decided_by: str, more: list[str], kind: str
) -> None:
    """A folder holds the document that the verdict names, a small preview, and what decided."""
    desk = Desk()
    verdict = desk.verdict(label, decided_by=decided_by)
    desk.keeper.keep(verdict, PIXELS)
    folder = f"evidence/{verdict.image_id}/m1"
    assert desk.uri(verdict) == f"s3://evidence/{folder}/evidence.json"
    names = sorted([*more, "evidence.json", "preview.jpg"])
    assert desk.keys() == [f"{folder}/{name}" for name in names]
    files = desk.files(verdict)
    with Image.open(io.BytesIO(files["preview.jpg"])) as preview:
        assert preview.size == (1600, 1200)
    document = json.loads(files["evidence.json"])
    assert (document["label"], document["decided_by"]) == (label, decided_by)
    assert [layer["kind"] for layer in document["layers"]] == ["preview", kind]
    said = {"generated": '"generated": just beyond', "unsure": '"unsure": not surely beyond'}
    assert f"The detector says {said[label]} the point of accusation" in captions(files)[0]
    assert "(distance -0.5)" in captions(files)[0]
    assert desk.counted("kept") == 1


def test_evidence_says_why_an_image_could_not_be_judged() -> None:
    """Moderators read beside the picture what the detector found too little to go by."""
    desk = Desk()
    verdict = replace(desk.verdict("unsure"), outside="blank: nothing there", distance=None)
    desk.keeper.keep(verdict, PIXELS)
    assert captions(desk.files(verdict)) == [
        'The detector says "unsure".',
        "Nothing can be told of such a picture (blank: nothing there).",
    ]


def test_a_photograph_that_is_believed_gets_none() -> None:
    """What nobody will look at leaves no object."""
    desk = Desk()
    verdict = desk.verdict("real")
    desk.keeper.keep(verdict, PIXELS)
    assert desk.uri(verdict) is None
    assert desk.keys() == []


def test_a_photograph_that_waits_for_a_person_gets_evidence() -> None:
    """Whoever audits what the detector believed sees what the detector saw."""
    desk = Desk()
    verdict = desk.verdict("real")
    desk.ledger.reviews.add(verdict.image_id)
    desk.keeper.keep(verdict, PIXELS)
    assert set(desk.files(verdict)) == {"evidence.json", "preview.jpg", "error_map.png"}
    assert desk.counted("kept") == 1


def test_a_verdict_taken_over_gets_evidence_of_its_own() -> None:
    """The copy is the same, stays when the original goes, and is not made of nothing."""
    desk = Desk()
    first, second, third = (desk.verdict("generated", key=key) for key in ("a", "b", "c"))
    desk.keeper.copy(second, first)
    assert desk.uri(second) is None
    desk.keeper.keep(first, PIXELS)
    known = desk.ledger.verdicts[first.image_id, "m1"]
    files = desk.files(first)
    desk.keeper.copy(second, known)
    remove_evidence(desk.storage, str(desk.uri(first)))
    assert desk.uri(second) == f"s3://evidence/evidence/{second.image_id}/m1/evidence.json"
    assert desk.files(second) == files
    desk.keeper.copy(third, known)
    assert (desk.uri(third), desk.counted("failed")) == (None, 1)
    with pytest.raises(ObjectMissing):
        desk.files(first)


def test_evidence_of_an_earlier_release_is_copied_and_removed() -> None:
    """Its one flat picture is all there is; the copy goes with its image, too."""
    desk = Desk()
    first, second = (desk.verdict("generated", key=key) for key in ("a", "b"))
    old = f"evidence/{first.image_id}/m1.png"
    for key in (old, f"evidence/{first.image_id}/m1.png.other"):
        desk.storage.put("evidence", key, b"flat", content_type="image/png")
    desk.ledger.attach_evidence(first.image_id, model_version="m1", uri=f"s3://evidence/{old}")
    desk.keeper.copy(second, desk.ledger.verdicts[first.image_id, "m1"])
    assert desk.files(first) == desk.files(second) == {"evidence.png": b"flat"}
    for verdict in (first, second):
        remove_evidence(desk.storage, str(desk.uri(verdict)))
    assert desk.keys() == [f"{old}.other"]


@pytest.mark.parametrize("versioned", [False, True])
def test_all_of_it_is_removed_and_nothing_of_its_neighbours(versioned: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Every file and version goes, whatever lies in the folder; other models' evidence stays."""
    desk = Desk(MemoryStorage(["evidence"], versioned=["evidence"] if versioned else []))
    verdict = desk.verdict("generated")
    for _ in range(2):
        desk.keeper.keep(verdict, PIXELS)
    folder = f"evidence/{verdict.image_id}/m1"
    for key in (f"{folder}/occlusion.png", f"{folder}0/evidence.json", f"{folder}.png"):
        desk.storage.put("evidence", key, b"x", content_type="image/png")
    remove_evidence(desk.storage, str(desk.uri(verdict)))
    left = [found.key for found in desk.storage.versions("evidence")]
    assert left == [f"{folder}.png", f"{folder}0/evidence.json"]


@pytest.mark.parametrize(
    "key", ["evidence.json", "/evidence.json", "a/evidence.json", "x/y/z/evidence.json"]
)
def test_an_address_of_another_form_costs_one_object(key: str) -> None:
    """Only a folder of this service's own is removed as a whole."""
    storage = MemoryStorage(["evidence"])
    for one in (key, "evidence/i/m/preview.jpg", f"{key.rpartition('/')[0]}/neighbour"):
        storage.put("evidence", one, b"x", content_type="image/jpeg")
    remove_evidence(storage, f"s3://evidence/{key}")
    assert len(list(storage.list("evidence"))) == 2
    with pytest.raises(ValueError, match="no folder"):
        purge_folder(storage, "evidence", "")


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


def test_a_part_is_no_evidence() -> None:
    """The document comes last; when storage fails at it, what came before goes again."""
    before: list[str] = []

    class Full(MemoryStorage):
        """Storage that takes no document."""

        def put(self, bucket: str, key: str, body: bytes, *, content_type: str) -> ObjectFacts:
            """Refuse what the others are found by."""
            if content_type == "application/json":
                before.extend(found.key.rpartition("/")[2] for found in self.list(bucket))
                raise StorageUnavailable(key)
            return super().put(bucket, key, body, content_type=content_type)

    desk = Desk(Full(["evidence"]))
    verdict = desk.verdict("generated")
    desk.keeper.keep(verdict, PIXELS)
    assert before == ["error_map.png", "preview.jpg"]
    assert (desk.counted("failed"), desk.uri(verdict), desk.keys()) == (1, None, [])


def test_evidence_of_an_image_to_be_erased_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the ledger takes no evidence any more, the objects go again."""
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
