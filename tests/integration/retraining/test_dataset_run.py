"""From moderators' decisions to an audited data set, over real Postgres and object storage."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import select, text

from tests.support.confirmed_decisions import Picture, confirm
from tests.support.processes.challenge_process import tiny_recipe
from training.data.alignment import AlignmentConfig
from training.data.selection import CollectPolicy, Split
from training.data.shaders import SHADERS, renderings, series
from training.data.shards import load_dataset, read_samples
from training.evaluation.shortcut_audit import AuditLimits
from training.retraining.run_state import RunPlan
from worker.ledger.tables_training import DatasetSnapshot, SnapshotItem, TrainingRun
from worker.models.bundle_store import BundleStore
from worker.models.registry import ModelsRegistry
from worker.retraining.bucket_state import AlignmentModels, BucketState, RunContext
from worker.retraining.bundle_access import BundleAccess
from worker.retraining.candidates import collect_policy
from worker.retraining.erasure import SnapshotShards
from worker.retraining.runs import Ending, Runs
from worker.retraining.snapshots import Snapshots
from worker.retraining.stage_runner import Progress, run_stages
from worker.retraining.stages import stages_of
from worker.retraining.triggers import due_slots

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from numpy.typing import NDArray
    from sqlalchemy import Engine

    from worker.retraining.stage_runner import Stage
    from worker.settings import Settings
    from worker.storage.s3 import S3Storage

PHOTOGRAPHS = 16
#: What may befall an image after it was taken.
REVOCATIONS = (
    "UPDATE app.images SET state = 'withdrawn', reason = 'removed' WHERE id = :image",
    """
    INSERT INTO app.appeals (appeal_id, image_id, event, actor)
    VALUES (gen_random_uuid(), :image, 'opened', 'web')
    """,
    """
    INSERT INTO app.decisions (image_id, moderator, decision, reason_code, why_reviewed)
    VALUES (:image, 'noa', 'generated', 'seen', 'flagged')
    """,
    """
    INSERT INTO app.regression_items (image_id, decision_id, label, group_key, pinned)
    SELECT image_id, id, 'real', 'g', true FROM app.decisions WHERE image_id = :image
    """,
)
POLICY = CollectPolicy(sources=frozenset({"web"}), evaluation=0.0, calibration=0.0)


class Imitator:
    """An aligner that lays a faint pattern over the picture, moved by some pixels."""

    def __init__(self, moved: int = 0) -> None:
        self.name = self.identity = "imitator"
        self._moved = moved

    def reconstruct(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Lay it over."""
        made = []
        for image in images:
            y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
            pattern = (1.5 * np.cos(np.pi * x / 2) * np.cos(np.pi * y / 2))[..., None]
            drawn = np.clip(image + pattern + 0.5, 0, 255).astype(np.uint8)
            made.append(np.roll(drawn, self._moved, axis=1))
        return made


def run_context(
    engine: Engine, storage: S3Storage, settings: Settings, aligner: Imitator
) -> RunContext:
    """The stages' surroundings with networks that cost nothing."""
    tools = AlignmentModels(
        aligners=[aligner],
        features=lambda images: np.array([image.mean((0, 1)) for image in images]),
        space="means",
    )
    bucket = settings.s3.buckets[0]
    return RunContext(
        engine=engine,
        storage=storage,
        bucket=bucket,
        policy=POLICY,
        max_bytes=2**20,
        load_models=lambda: tools,
        bundle_access=BundleAccess(
            registry=ModelsRegistry(engine),
            bundles=BundleStore(storage, bucket),
            default="small",
            cache=settings.observability.run_dir,
        ),
        work_dir=settings.observability.run_dir,
        plan=RunPlan(
            recipe=tiny_recipe(),
            device="cpu",
            data_licence="none",
            alignment=AlignmentConfig(shard_images=8),
            # So few pairs, in the order of their random ids, leave the probe's AUC a wide spread.
            audit_limits=AuditLimits(probe_auc=0.9),
        ),
    )


def dataset_stages(context: RunContext) -> list[Stage]:
    """The stages up to a sealed data set: collect, align and audit."""
    return stages_of(context)[:3]


def confirmed(
    engine: Engine,
    owner: Engine,
    storage: S3Storage,
    settings: Settings,
    *pictures: NDArray[np.uint8],
    label: str = "real",
    audit_share: float | None = None,
) -> list[UUID]:
    """Upload pictures, score them and decide on them."""
    listed = [Picture(pixels=pixels, label=label, audit_share=audit_share) for pixels in pictures]
    return confirm(engine, owner, storage, settings.s3.buckets[0], listed)


@pytest.fixture
def images(engine: Engine, owner: Engine, storage: S3Storage, settings: Settings) -> list[UUID]:
    """Photographs that a moderator confirmed, drawn by the random audit one of four."""
    pictures = [pixels for _, pixels in renderings(PHOTOGRAPHS, side=96)]
    return confirmed(engine, owner, storage, settings, *pictures, audit_share=0.25)


def loop(bench_: RunContext, slot: str) -> Ending | None:
    """Run the stages in a slot of their own."""
    runs = Runs(bench_.engine, holder="trainer", lease=timedelta(minutes=5))
    run = runs.begin(slot, trigger="test")
    assert run is not None
    return run_stages(run, dataset_stages(bench_), runs)


def aligned(bench_: RunContext) -> Progress:
    """Choose the images and write the shards, in a run that goes on."""
    run = Runs(bench_.engine, holder="trainer", lease=timedelta(minutes=5)).begin("s", trigger="t")
    assert run is not None
    progress = Progress(run.id, None)
    collect, align, _ = dataset_stages(bench_)
    collect.run(progress)
    align.run(progress)
    return progress


def rows(engine: Engine, table: Any) -> list[Any]:
    """Every row of a table."""
    with engine.connect() as connection:
        return list(connection.execute(select(table.__table__)).all())


def test_decisions_become_a_sealed_data_set(
    engine: Engine,
    owner: Engine,
    storage: S3Storage,
    settings: Settings,
    images: list[UUID],
) -> None:
    """Confirmed images end in shards whose digest the snapshot carries; the next run finds none."""
    (fake,) = confirmed(
        engine, owner, storage, settings, np.full((80, 80, 3), 7, np.uint8), label="generated"
    )
    (lost,) = confirmed(engine, owner, storage, settings, np.full((80, 80, 3), 9, np.uint8))
    with owner.begin() as connection:
        key = connection.scalar(text("SELECT key FROM app.images WHERE id = :id"), {"id": lost})
    storage.delete(settings.s3.buckets[0], str(key))
    place = run_context(engine, storage, settings, Imitator())

    assert loop(place, "one") is Ending.FINISHED

    (run,) = rows(engine, TrainingRun)
    dataset = load_dataset(place.store(run.id))
    (snapshot,) = rows(engine, DatasetSnapshot)
    assert snapshot.digest == dataset.digest == run.stages["align"]["digest"]
    assert snapshot.report["pairs"]["pairs"] == PHOTOGRAPHS
    assert snapshot.report["sources"] == {
        "real": {"web": PHOTOGRAPHS},
        "generated": {"imitator": PHOTOGRAPHS},
    }
    assert {str(item.image_id) for item in rows(engine, SnapshotItem)} == {
        str(image) for image in (*images, fake, lost)
    }
    assert dataset.unreadable == [str(lost)]
    stored = {sample.key: sample for sample in read_samples(place.store(run.id), dataset)}
    assert stored.keys() == {str(image) for image in (*images, fake)}
    assert stored[str(fake)].label == "generated"
    assert {key: sample.weight for key, sample in stored.items()} == {
        **dict.fromkeys(map(str, images), 4.0),
        str(fake): 1.0,
    }
    assert stored[str(images[0])].reconstructions.keys() == {"imitator"}

    assert loop(place, "two") is Ending.EMPTY
    assert "0 new images" in rows(engine, TrainingRun)[1].reason


def test_renderings_join_the_photographs(
    engine: Engine, storage: S3Storage, settings: Settings, images: list[UUID]
) -> None:
    """They are pairs of the training side that no snapshot lists and that no later run reads."""
    place = replace(run_context(engine, storage, settings, Imitator()), shaders=5)
    progress = aligned(place)
    drawn = {
        sample.key: sample
        for sample in read_samples(
            place.store(progress.run_id), load_dataset(place.store(progress.run_id))
        )
        if sample.source == SHADERS
    }
    assert drawn.keys() == {one.key for one in series(5, seed=progress.run_id)}
    assert {(one.label, one.split) for one in drawn.values()} == {("real", "training")}
    assert all(one.reconstructions.keys() == {"imitator"} for one in drawn.values())
    assert len(rows(engine, SnapshotItem)) == len(images)

    assert progress.snapshot_id is not None
    Snapshots(engine).seal(progress.snapshot_id, digest="d", report={})
    for reader, read in ((progress, drawn.keys()), (replace(progress, run_id=99), set())):
        taught = BucketState(place, reader).files(Split.TRAINING)
        assert {sample.key for sample in taught if sample.source == SHADERS} == read


def test_a_refused_data_set_is_not_sealed(
    engine: Engine, storage: S3Storage, settings: Settings, images: list[UUID]
) -> None:
    """An aligner that moves the picture is refused; its images are there for the next run."""
    assert loop(run_context(engine, storage, settings, Imitator(moved=1)), "one") is Ending.REFUSED

    (run,) = rows(engine, TrainingRun)
    assert "crop betrays the side" in run.reason
    assert rows(engine, DatasetSnapshot)[0].digest is None

    assert loop(run_context(engine, storage, settings, Imitator()), "two") is Ending.FINISHED
    assert len(rows(engine, SnapshotItem)) == 2 * len(images)


def test_an_appealed_image_stays_out(
    engine: Engine, owner: Engine, storage: S3Storage, settings: Settings, images: list[UUID]
) -> None:
    """While an appeal is open its image is not collected."""
    with owner.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO app.appeals (appeal_id, image_id, event, actor)"
                " VALUES (gen_random_uuid(), :image, 'opened', 'web')"
            ),
            {"image": images[0]},
        )
    runs = Runs(engine, holder="trainer", lease=timedelta(minutes=5))
    run = runs.begin("one", trigger="test")
    assert run is not None
    collect = dataset_stages(run_context(engine, storage, settings, Imitator()))[:1]
    assert run_stages(run, collect, runs) is Ending.FINISHED

    assert images[0] not in {item.image_id for item in rows(engine, SnapshotItem)}
    assert rows(engine, DatasetSnapshot)[0].left_out == {"under_appeal": 1}


def test_enough_confirmed_images_are_a_reason(
    engine: Engine, storage: S3Storage, settings: Settings, images: list[UUID]
) -> None:
    """As many as are asked for, of sources that may teach, start one run: not again afterwards."""

    def asked(count: int, source: str = "web") -> list[str]:
        changes = {"sources": (source,), "min_new_images": count}
        training = settings.training.model_copy(update=changes)
        return [one.trigger for one in due_slots(engine, training, collect_policy(training))]

    assert asked(len(images)) == ["confirmed_images"]
    assert asked(len(images) + 1) == asked(1, "feed") == []
    runs = Runs(engine, holder="trainer", lease=timedelta(minutes=5))
    run = runs.begin("one", trigger="test")
    assert run is not None
    run_stages(run, dataset_stages(run_context(engine, storage, settings, Imitator()))[:1], runs)
    assert asked(1) == []


def test_what_was_revoked_teaches_no_more(
    engine: Engine,
    owner: Engine,
    storage: S3Storage,
    settings: Settings,
    images: list[UUID],
) -> None:
    """Withdrawn, appealed, called generated, pinned: no later run reads it from the shards."""
    place = run_context(engine, storage, settings, Imitator())
    progress = aligned(place)
    assert progress.snapshot_id is not None
    Snapshots(engine).seal(progress.snapshot_id, digest="d", report={})
    with owner.begin() as connection:
        for number, change in enumerate(REVOCATIONS):
            connection.execute(text(change), {"image": images[number]})

    files = BucketState(place, progress).files(Split.TRAINING)

    kept = {str(image) for image in images[len(REVOCATIONS) :]}
    assert {sample.key for sample in files} == kept


def test_photographs_say_whether_the_audit_drew_them(
    engine: Engine, owner: Engine, storage: S3Storage, settings: Settings
) -> None:
    """On the calibration side those of a trusted source are told from those that were drawn."""
    pictures = [
        Picture(pixels=pixels, label="real", audit_share=1.0)
        if number % 2
        else Picture(pixels=pixels, label=None, source="camera")
        for number, (_, pixels) in enumerate(renderings(12, side=64))
    ]
    confirm(engine, owner, storage, settings.s3.buckets[0], pictures)
    both = frozenset({"web", "camera"})
    trusting = CollectPolicy(
        sources=both, trusted_sources=frozenset({"camera"}), evaluation=0.0, calibration=1.0
    )
    place = replace(run_context(engine, storage, settings, Imitator()), policy=trusting)
    store = place.store(aligned(place).run_id)

    drawn = [(file.source, file.audited) for file in read_samples(store, load_dataset(store))]
    assert sorted(drawn) == [("camera", False)] * 6 + [("web", True)] * 6


@pytest.mark.parametrize("versioning", ["Suspended", "Enabled"])
def test_an_erased_image_leaves_the_data_sets(
    engine: Engine,
    storage: S3Storage,
    settings: Settings,
    images: list[UUID],
    s3_client: Any,
    versioning: str,
) -> None:
    """Erasing waits for a run that writes; then the image is in no shard, under a tombstone.

    A bucket with versions keeps no earlier shard of it.
    """
    (bucket,) = settings.s3.buckets
    s3_client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": versioning})
    place = run_context(engine, storage, settings, Imitator())
    shards = SnapshotShards(engine, storage, place.bucket)
    runs = Runs(engine, holder="trainer", lease=timedelta(minutes=5))
    run = runs.begin("one", trigger="test")
    assert run is not None
    collect, align, _ = dataset_stages(place)
    progress = Progress(run.id, None)
    collect.run(progress)
    assert not shards.erase(images[0])
    align.run(progress)

    assert shards.erase(images[0])

    assert all(one.latest for one in storage.versions(place.bucket, prefix=place.prefix(run.id)))
    dataset = load_dataset(place.store(run.id))
    assert [stone.key for stone in dataset.tombstones] == [str(images[0])]
    kept = {sample.key for sample in read_samples(place.store(run.id), dataset)}
    assert kept == {str(image) for image in images[1:]}


def test_the_rest_of_a_dead_run_is_erased(
    engine: Engine, storage: S3Storage, settings: Settings, images: list[UUID], s3_client: Any
) -> None:
    """Shards of a run that failed before its data set was whole go when an image in it goes."""
    (bucket,) = settings.s3.buckets
    s3_client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    place = run_context(engine, storage, settings, Imitator())
    runs = Runs(engine, holder="trainer", lease=timedelta(minutes=5))
    run = runs.begin("one", trigger="test")
    assert run is not None
    collect, _, _ = dataset_stages(place)
    collect.run(Progress(run.id, None))
    place.store(run.id).write("shard-00000.tar", b"half a data set")
    runs.end(run.id, Ending.FAILED, "disk full")

    assert SnapshotShards(engine, storage, place.bucket).erase(images[0])
    assert list(storage.versions(place.bucket, prefix=place.prefix(run.id))) == []
