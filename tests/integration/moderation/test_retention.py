"""What is removed when: by age, on request, and never under a legal hold; provenance beside it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import exc, text

from detection.intake.metadata.c2pa_manifest import C2pa, ManifestState
from detection.intake.provenance import Exif, ProvenanceRecord
from detection.intake.version import INTAKE_VERSION
from detection.score import TileLogit
from tests.integration.moderation.conftest import verdict_of
from worker.ledger import provenance
from worker.ledger.interface import Lease
from worker.ledger.postgres import PostgresLedger
from worker.moderation.retention import Removed, RetentionJob, UnderHold, request_erasure
from worker.scoring.evidence import store_evidence
from worker.settings import Retention, Settings
from worker.storage.interface import StorageUnavailable
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import Engine

TILES = (TileLogit(top=0, left=0, height=128, width=128, logit=1.5),)
SIGNALS = ProvenanceRecord(
    exif=Exif(make="Canon", model="EOS R6", software="GIMP", taken_at="2026:01:31 12:00:00"),
    iptc_digital_source_type="trainedAlgorithmicMedia",
    iptc_asserts_ai=True,
    c2pa=C2pa(state=ManifestState.BROKEN, problems=("assertion.dataHash.mismatch",)),
)


class FakeShards:
    """Training shards that hold every image until asked to erase it."""

    def __init__(self) -> None:
        self.erased: list[UUID] = []

    def erase(self, image_id: UUID) -> bool:
        """Say that no shard holds the image any more."""
        self.erased.append(image_id)
        return True


def keys(s3_client: Any, bucket: str) -> set[str]:
    """List what the bucket holds."""
    return {found["Key"] for found in s3_client.list_objects_v2(Bucket=bucket).get("Contents", ())}


@pytest.fixture
def stored(scored: Callable[..., UUID], s3_client: Any, bucket: str) -> Callable[..., UUID]:
    """Upload an object with its evidence and score it."""

    def store(name: str, body: bytes = b"x") -> UUID:
        put = [
            s3_client.put_object(Bucket=bucket, Key=key, Body=body)
            for key in (f"{name}.jpg", f"evidence/{name}.png")
        ]
        return scored(
            0.97, key=f"{name}.jpg", evidence_uri=f"s3://{bucket}/evidence/{name}.png",
            pdq=bytes(range(32)), sha256="cd" * 32, etag=put[0]["ETag"].strip('"'),
            version_id=put[0].get("VersionId"),
        )  # fmt: skip

    return store


@pytest.fixture
def storage(settings: Settings) -> S3Storage:
    """This test's object storage."""
    return S3Storage(settings.s3)


def test_an_erasure_leaves_nothing_that_identifies_and_keeps_the_audit(
    stored: Callable[..., UUID],
    engine: Engine,
    storage: S3Storage,
    s3_client: Any,
    bucket: str,
    desk: Callable[..., Any],
    superuser: psycopg.Connection,
) -> None:
    """Objects, hashes, key, uploader and file facts go everywhere; who decided what stays."""
    image, other = stored("anna-at-the-beach"), stored("other")
    with engine.begin() as connection:
        provenance.store_provenance(connection, {image: SIGNALS})
    lead = desk(lead=True)
    lead.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", image)
    ledger = PostgresLedger(engine)
    lease = ledger.lease_for_rescore(
        image, model_version="model-2", worker="w", duration=timedelta(minutes=2)
    )
    assert isinstance(lease, Lease)
    lead.value("SELECT moderation.request_erasure(%s, 'her request')", image)
    shards = FakeShards()
    # The picture of a worker that was killed before the row knew of it.
    s3_client.put_object(Bucket=bucket, Key=f"evidence/{image}/model-1.png", Body=b"x")
    job = RetentionJob(engine, storage, Retention(), shards=shards, evidence_bucket=bucket)
    assert job.run() == Removed(originals=0, evidence=0, erased=1)
    assert job.run() == Removed(originals=0, evidence=0, erased=0)
    # A worker was still at it.
    late = verdict_of(
        lease, 0.9, "generated", None, bytes(range(32)), None, model_version="model-2"
    )
    facts = replace(late.facts, provenance=SIGNALS)
    ledger.record([replace(late, facts=facts, tiles=TILES)])
    models = superuser.execute(
        "SELECT model_version FROM app.verdicts WHERE image_id = %s", [image]
    )
    assert models.fetchall() == [("model-1",)]
    open_leases = superuser.execute("SELECT count(*) FROM app.leases WHERE closed_at IS NULL")
    assert open_leases.fetchone() == (0,)
    assert keys(s3_client, bucket) == {"other.jpg", "evidence/other.png"}
    assert shards.erased == [image]
    tables = [
        row[0]
        for row in superuser.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'app'"
        ).fetchall()
    ]
    secrets = ("anna", "Canon", bytes(range(32)).hex())
    for table in tables:
        dump = superuser.execute(
            psycopg.sql.SQL(
                "SELECT string_agg(t::text, ' ') FROM {} t WHERE t::text LIKE %s"
            ).format(psycopg.sql.Identifier("app", table)),
            [f"%{image}%"],
        ).fetchone()
        for secret in secrets:
            assert secret not in ((dump and dump[0]) or ""), (table, secret)
    events = [
        row[0]
        for row in lead.rows(
            "SELECT event FROM moderation.image_history WHERE image_id = %s", image
        )
    ]
    assert {"upload", "verdict", "decision", "erasure requested"} <= set(events)
    actions = {row[0] for row in lead.rows("SELECT action FROM moderation.audit_trail")}
    assert {"decide", "request_erasure", "erased"} <= actions
    assert (
        lead.value("SELECT state FROM moderation.verdicts WHERE image_id = %s", image)
        == "withdrawn"
    )
    assert (
        lead.value("SELECT sha256 FROM moderation.verdicts WHERE image_id = %s", other) == "cd" * 32
    )


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("how", ["age", "erasure"])
def test_evidence_goes_with_all_its_layers(
    scored: Callable[..., UUID],
    engine: Engine,
    storage: S3Storage,
    s3_client: Any,
    bucket: str,
    superuser: psycopg.Connection,
    how: str,
    versioned: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Every version of every file is removed, by time or on request; another image's stay."""
    if versioned:
        s3_client.put_bucket_versioning(
            Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
        )
    names, uris = ("evidence.json", "preview.jpg", "error_map.png"), {}
    gone, stays = scored(sha256="ab" * 32, tiles=TILES), scored(sha256="cd" * 32, tiles=TILES)
    ledger = PostgresLedger(engine)
    for image, sha256 in ((gone, "ab" * 32), (stays, "cd" * 32)):
        verdict = ledger.reusable_verdicts(
            [sha256], model_version="model-1", intake_version=INTAKE_VERSION
        )[sha256]
        for body in (b"earlier", b"later"):
            files = dict.fromkeys(names, body)
            uris[image] = store_evidence(
                files, verdict, storage=storage, ledger=ledger, bucket=bucket
            )
    assert uris[gone] == f"s3://{bucket}/evidence/{gone}/model-1/evidence.json"
    kept = f"evidence/{stays}/model-1/"
    if how == "age":
        superuser.execute(
            "UPDATE app.verdicts SET scored_at = now() - interval '9 days' WHERE image_id = %s",
            [gone],
        )
    else:
        request_erasure(engine, gone, reason="request")
        s3_client.put_object(Bucket=bucket, Key=f"evidence/{gone}/model-2/preview.jpg", Body=b"x")
    done = RetentionJob(engine, storage, Retention(evidence_days=1), evidence_bucket=bucket).run()
    assert (done.evidence, done.erased, done.failed) == ((1, 0, 0) if how == "age" else (0, 1, 0))
    listed = s3_client.list_object_versions(Bucket=bucket).get("Versions", ())
    assert {found["Key"] for found in listed} == {f"{kept}{name}" for name in names}
    assert superuser.execute(
        "SELECT image_id, evidence_uri, tiles IS NULL FROM app.verdicts "
        "ORDER BY image_id = %s DESC",
        [gone],
    ).fetchall() == [(gone, None, how == "erasure"), (stays, uris[stays], False)]


def test_no_evidence_is_attached_to_what_is_to_be_erased(
    stored: Callable[..., UUID], engine: Engine
) -> None:
    """Evidence that comes after the request is refused, so that its maker takes it back."""
    image = stored("late")
    request_erasure(engine, image, reason="asked by the person shown")
    with engine.connect() as connection:
        version = connection.scalar(
            text("SELECT model_version FROM app.verdicts WHERE image_id = :image"),
            {"image": image},
        )
    attached = PostgresLedger(engine).attach_evidence(
        image, model_version=version, uri="s3://uploads/evidence/late.png"
    )
    assert attached is False


def test_an_erasure_that_was_cut_short_is_finished(
    stored: Callable[..., UUID],
    engine: Engine,
    storage: S3Storage,
    s3_client: Any,
    bucket: str,
    superuser: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the store is away the rows still say where the objects are; the next run ends it."""
    image = stored("half")
    request_erasure(engine, image, reason="request")
    with monkeypatch.context() as away:

        def refuse(_bucket: str, key: str, **_: object) -> None:
            raise StorageUnavailable(key)

        away.setattr(storage, "delete", refuse)
        with pytest.raises(StorageUnavailable):
            RetentionJob(engine, storage, Retention()).run()
    assert superuser.execute("SELECT key FROM app.images").fetchone() == ("half.jpg",)
    RetentionJob(engine, storage, Retention()).run()
    assert keys(s3_client, bucket) == set()
    waiting = superuser.execute("SELECT rows_done_at, shards_done_at FROM app.erasures").fetchone()
    assert waiting is not None
    assert waiting[0] is not None
    assert waiting[1] is None, "training has not yet said that its shards are clean"


def test_age_removes_evidence_and_originals_but_not_what_is_held(
    stored: Callable[..., UUID],
    engine: Engine,
    storage: S3Storage,
    s3_client: Any,
    bucket: str,
    desk: Callable[..., Any],
    superuser: psycopg.Connection,
) -> None:
    """Each has its own time; a hold outlasts both and refuses an erasure until it is lifted."""
    held, old, young = stored("held"), stored("old"), stored("young")
    lead = desk(lead=True)
    lead.value("SELECT moderation.place_hold(%s, 'court order 7')", held)
    for image, days in ((held, 100), (old, 100), (young, 20)):
        superuser.execute(
            "UPDATE app.images SET created_at = now() - make_interval(days => %s) WHERE id = %s",
            [days, image],
        )
        superuser.execute(
            "UPDATE app.verdicts SET scored_at = now() - make_interval(days => %s) "
            "WHERE image_id = %s",
            [days, image],
        )
    assert RetentionJob(engine, storage, Retention()).run() == Removed(
        originals=0, evidence=0, erased=0
    )
    job = RetentionJob(engine, storage, Retention(originals_days=90, evidence_days=10))
    assert job.run() == Removed(originals=1, evidence=2, erased=0)
    assert keys(s3_client, bucket) == {"held.jpg", "evidence/held.png", "young.jpg"}
    with pytest.raises(UnderHold):
        request_erasure(engine, held, reason="request")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="legal hold"):
        lead.value("SELECT moderation.request_erasure(%s, 'request')", held)
    with pytest.raises(errors.InsufficientPrivilege):
        desk().value("SELECT moderation.lift_hold(%s, 'mine')", held)
    assert lead.value("SELECT moderation.lift_hold(%s, 'court order 8')", held) is True
    assert job.run() == Removed(originals=1, evidence=1, erased=0)


def test_a_hold_stops_an_erasure_that_was_asked_for_before(
    stored: Callable[..., UUID],
    engine: Engine,
    storage: S3Storage,
    s3_client: Any,
    bucket: str,
    desk: Callable[..., Any],
) -> None:
    """Neither the job nor the function behind it touches what is held meanwhile."""
    image, lead = stored("held"), desk(lead=True)
    request_erasure(engine, image, reason="request")
    lead.value("SELECT moderation.place_hold(%s, 'court order 7')", image)
    assert RetentionJob(engine, storage, Retention()).run().erased == 0
    assert keys(s3_client, bucket) == {"held.jpg", "evidence/held.png"}
    refused = pytest.raises(exc.OperationalError, match="legal hold")
    with refused, engine.begin() as connection:
        connection.execute(text("SELECT app.erase_rows(:image)"), {"image": image})


def test_a_hold_that_comes_while_others_are_deleted_still_counts(
    stored: Callable[..., UUID],
    engine: Engine,
    storage: S3Storage,
    s3_client: Any,
    bucket: str,
    desk: Callable[..., Any],
    superuser: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was chosen for deletion is looked at again, one by one, right before it goes."""
    images = {name: stored(name) for name in ("old-1", "old-2", "asked-1", "asked-2")}
    superuser.execute("UPDATE app.verdicts SET scored_at = now() - interval '9 days'")
    for name, image in images.items():
        if name.startswith("asked"):
            request_erasure(engine, image, reason="request")
    lead, delete, held = desk(lead=True), storage.delete, []

    def hold_its_twin(bucket: str, key: str, **version: Any) -> None:
        name = key.removeprefix("evidence/").partition(".")[0]
        twin = name[:-1] + {"1": "2", "2": "1"}[name[-1]]
        if twin not in held and name not in held:
            lead.value("SELECT moderation.place_hold(%s, 'court order 7')", images[twin])
            held.append(twin)
        delete(bucket, key, **version)

    monkeypatch.setattr(storage, "delete", hold_its_twin)
    done = RetentionJob(engine, storage, Retention(evidence_days=1)).run()
    assert done == Removed(originals=0, evidence=1, erased=1)
    assert len(held) == 2
    for name in held:
        assert {f"{name}.jpg", f"evidence/{name}.png"} <= keys(s3_client, bucket)


def test_provenance_stands_beside_the_verdict_and_changes_nothing(
    scored: Callable[..., UUID], engine: Engine, desk: Callable[..., Any]
) -> None:
    """Signals are shown as the file's claims; the score, the label and the tier stay."""
    image = scored(0.2)
    for found in ({image: SIGNALS}, {image: ProvenanceRecord()}, {}):
        with engine.begin() as connection:
            provenance.store_provenance(connection, found)
    seen = desk().rows(
        "SELECT exif_make, exif_software, iptc_asserts_ai, c2pa_state, label, tier "
        "FROM moderation.verdicts WHERE image_id = %s",
        image,
    )
    assert seen == [("Canon", "GIMP", True, "broken", "real", "allow")]
