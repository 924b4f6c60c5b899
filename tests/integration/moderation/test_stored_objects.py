"""Removal acts on the object that a row stands for: never a successor, never what is held."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors

from worker.ledger.interface import Removal, Upload
from worker.ledger.postgres import PostgresLedger
from worker.moderation.retention import RetentionJob, UnderHold, request_erasure
from worker.settings import Retention, Settings
from worker.storage.interface import StorageUnavailable
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import Engine

DAYS = 90
#: Older than that.
LONG_AGO = "UPDATE app.images SET created_at = now() - interval '100 days' WHERE id = ANY(%s)"


class Platform:
    """Stores objects in a bucket and has them scored."""

    def __init__(
        self, client: Any, bucket: str, scored: Callable[..., UUID], superuser: psycopg.Connection
    ) -> None:
        self.client, self.bucket = client, bucket
        self._scored, self._superuser = scored, superuser

    def keep_versions(self) -> None:
        """Have the bucket keep every version from now on."""
        self.client.put_bucket_versioning(
            Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"}
        )

    def store(self, key: str, body: bytes) -> dict[str, str]:
        """Store bytes; return their names as an upload has them."""
        told = self.client.put_object(Bucket=self.bucket, Key=key, Body=body)
        names = {"etag": told["ETag"].strip('"')}
        return names | ({"version_id": told["VersionId"]} if "VersionId" in told else {})

    def scored(self, key: str, *, sha256: str = "cd" * 32, **names: str) -> UUID:
        """Announce an object, have it scored, and let its time pass."""
        image = self._scored(0.97, key=key, sha256=sha256, pdq=bytes(range(32)), **names)
        self.age(image)
        return image

    def age(self, *images: UUID) -> None:
        """Let the time of originals pass."""
        self._superuser.execute(LONG_AGO, [list(images)])

    def bodies(self) -> set[bytes]:
        """Return the bytes of all versions of all objects."""
        listed = self.client.list_object_versions(Bucket=self.bucket).get("Versions", ())
        found = set()
        for one in listed:
            version = {} if one["VersionId"] == "null" else {"VersionId": one["VersionId"]}
            told = self.client.get_object(Bucket=self.bucket, Key=one["Key"], **version)
            found.add(told["Body"].read())
        return found

    def state(self, image: UUID) -> tuple[Any, ...]:
        """Return state, whether the original is gone, and whether the row is erased."""
        row = self._superuser.execute(
            "SELECT state, object_removed_at IS NOT NULL, erased_at IS NOT NULL "
            "FROM app.images WHERE id = %s",
            [image],
        ).fetchone()
        assert row is not None
        return row

    def holds_text(self, text: str) -> list[str]:
        """Name the tables in which a text stands."""
        tables = self._superuser.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'app'"
        ).fetchall()
        return [
            table
            for (table,) in tables
            if self._superuser.execute(
                psycopg.sql.SQL("SELECT FROM {} t WHERE t::text LIKE %s LIMIT 1").format(
                    psycopg.sql.Identifier("app", table)
                ),
                [f"%{text}%"],
            ).fetchone()
            is not None
        ]


@pytest.fixture
def platform(
    s3_client: Any, bucket: str, scored: Callable[..., UUID], superuser: psycopg.Connection
) -> Platform:
    """A platform over this test's bucket."""
    return Platform(s3_client, bucket, scored, superuser)


@pytest.fixture
def storage(settings: Settings) -> S3Storage:
    """This test's object storage."""
    return S3Storage(settings.s3)


@pytest.fixture
def expire(engine: Engine, storage: S3Storage) -> Callable[[], Any]:
    """Run retention of originals."""
    return lambda: RetentionJob(engine, storage, Retention(originals_days=DAYS)).run()


@pytest.fixture
def erase(engine: Engine, storage: S3Storage) -> Callable[[UUID], Any]:
    """Have one image erased."""

    def run(image: UUID) -> Any:
        request_erasure(engine, image, reason="request")
        return RetentionJob(engine, storage, Retention()).run()

    return run


@pytest.mark.parametrize("kept", [False, True], ids=["plain", "versions"])
@pytest.mark.parametrize("way", ["age", "request"])
def test_a_successor_under_the_same_key_stays(
    platform: Platform,
    desk: Callable[..., Any],
    expire: Callable[[], Any],
    erase: Callable[[UUID], Any],
    way: str,
    kept: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Only the row's own bytes go, in a bucket with versions for good; the held successor stays."""
    if kept:
        platform.keep_versions()
    first = platform.scored("k.jpg", **platform.store("k.jpg", b"first"))
    second = platform.scored("k.jpg", sha256="ab" * 32, **platform.store("k.jpg", b"second"))
    desk(lead=True).value("SELECT moderation.place_hold(%s, 'court order 7')", second)
    assert platform.bodies() == ({b"first", b"second"} if kept else {b"second"})
    done = expire() if way == "age" else erase(first)
    assert done.failed == 0
    assert platform.bodies() == {b"second"}
    assert platform.state(second) == ("scored", False, False)
    assert platform.state(first)[1:] == ((True, False) if way == "age" else (False, True))


def test_a_successor_that_nobody_has_announced_yet_stays(
    platform: Platform, expire: Callable[[], Any], storage: S3Storage
) -> None:
    """Also one that is stored between the look at the object and its removal."""
    platform.scored("k.jpg", **platform.store("k.jpg", b"first"))
    other = platform.scored("other.jpg", sha256="ab" * 32, **platform.store("other.jpg", b"1"))
    platform.store("other.jpg", b"2")
    listed, looked = storage.versions_of, []

    def look(bucket: str, key: str) -> Any:
        found = listed(bucket, key)
        if key == "k.jpg" and not looked:
            looked.append(key)
            platform.store(key, b"second")
        return found

    storage.versions_of = look  # type: ignore[method-assign]  # the moment in between
    assert expire().originals == 2
    assert platform.bodies() == {b"2", b"second"}
    assert platform.state(other)[1] is True


def test_erasure_finds_versions_that_no_row_names(
    platform: Platform, erase: Callable[[UUID], Any]
) -> None:
    """A row that a hook made has no version: hidden versions of its bytes go as well."""
    platform.keep_versions()
    names = platform.store("k.jpg", b"mine")
    platform.store("k.jpg", b"mine")
    platform.store("k.jpg", b"other")
    platform.client.delete_object(Bucket=platform.bucket, Key="k.jpg")
    image = platform.scored("k.jpg", etag=names["etag"])
    assert erase(image).erased == 1
    assert platform.bodies() == {b"other"}


@pytest.mark.parametrize("asked", [0, 1])
def test_a_version_that_another_row_names_is_another_upload(
    platform: Platform, erase: Callable[[UUID], Any], asked: int
) -> None:
    """The same bytes stored twice are two versions and two rows; one request takes one of them."""
    platform.keep_versions()
    names = [platform.store("k.jpg", b"same") for _ in range(2)]
    images = [platform.scored("k.jpg", **one) for one in names]
    assert images[0] != images[1]
    assert erase(images[asked]).erased == 1
    assert platform.state(images[1 - asked]) == ("scored", False, False)
    listed = platform.client.list_object_versions(Bucket=platform.bucket)["Versions"]
    assert [one["VersionId"] for one in listed] == [names[1 - asked]["version_id"]]
    assert erase(images[1 - asked]).erased == 1
    assert platform.bodies() == set()


def test_an_upload_of_the_bytes_of_a_removed_one_is_not_its_object(
    platform: Platform,
    engine: Engine,
    expire: Callable[[], Any],
    erase: Callable[[UUID], Any],
    superuser: psycopg.Connection,
) -> None:
    """What was removed and stored again belongs to the row that lives."""
    names = platform.store("k.jpg", b"same")
    first = platform.scored("k.jpg", **names)
    PostgresLedger(engine).withdraw([Removal(bucket=platform.bucket, key="k.jpg")])
    second = platform.scored("k.jpg", **platform.store("k.jpg", b"same"))
    superuser.execute("UPDATE app.images SET created_at = now() WHERE id = %s", [second])
    assert first != second
    expire()
    assert platform.state(first)[1] is True
    assert erase(first).erased == 1
    assert platform.bodies() == {b"same"}
    assert platform.state(second) == ("scored", False, False)


@pytest.fixture
def twins(platform: Platform, superuser: psycopg.Connection) -> tuple[UUID, UUID]:
    """Two rows of one object, as earlier releases made of a hook and a notification."""
    platform.keep_versions()
    names = platform.store("k.jpg", b"mine")
    hooked = platform.scored("k.jpg", etag="other", sha256="ef" * 32)
    named = platform.scored("k.jpg", sha256="ef" * 32, **names)
    superuser.execute("UPDATE app.images SET etag = %s WHERE id = %s", [names["etag"], hooked])
    return hooked, named


@pytest.mark.parametrize("asked", [0, 1])
def test_rows_of_one_object_are_erased_together(
    platform: Platform, twins: tuple[UUID, UUID], erase: Callable[[UUID], Any], asked: int
) -> None:
    """Whichever is asked for, both go, and the hash of the picture stands nowhere any more."""
    assert "images" in platform.holds_text("ef" * 32)
    assert erase(twins[asked]).erased == 2
    assert platform.bodies() == set()
    assert [platform.state(twin)[2] for twin in twins] == [True, True]
    assert platform.holds_text("ef" * 32) == []


@pytest.mark.parametrize("held", [0, 1])
def test_a_hold_on_one_row_keeps_the_object_of_both(
    platform: Platform,
    twins: tuple[UUID, UUID],
    engine: Engine,
    storage: S3Storage,
    desk: Callable[..., Any],
    expire: Callable[[], Any],
    held: int,
) -> None:
    """Neither age nor a request, made before the hold or after it, removes what is held."""
    free = twins[1 - held]
    request_erasure(engine, free, reason="before")
    lead = desk(lead=True)
    lead.value("SELECT moderation.place_hold(%s, 'court order 7')", twins[held])
    expire()
    assert platform.bodies() == {b"mine"}
    with pytest.raises(UnderHold):
        request_erasure(engine, free, reason="after")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="legal hold"):
        lead.value("SELECT moderation.request_erasure(%s, 'after')", free)
    lead.value("SELECT moderation.lift_hold(%s, 'court order 8')", twins[held])
    assert RetentionJob(engine, storage, Retention()).run().erased == 2
    assert platform.bodies() == set()


def test_an_original_goes_when_the_last_of_its_rows_is_old_enough(
    platform: Platform,
    twins: tuple[UUID, UUID],
    expire: Callable[[], Any],
    superuser: psycopg.Connection,
) -> None:
    """The younger row keeps the object; then both are marked."""
    superuser.execute("UPDATE app.images SET created_at = now() WHERE id = %s", [twins[1]])
    expire()
    assert platform.bodies() == {b"mine"}
    platform.age(*twins)
    expire()
    assert platform.bodies() == set()
    assert [platform.state(twin) for twin in twins] == [("scored", True, False)] * 2


def test_what_was_stored_again_has_its_time_again(
    platform: Platform, engine: Engine, expire: Callable[[], Any]
) -> None:
    """A later event of the same bytes is a new storing: the object is not as old as its row."""
    names = platform.store("k.jpg", b"same")
    upload = Upload(bucket=platform.bucket, key="k.jpg", sequencer="10", **names)  # type: ignore[arg-type]  # names are text
    ledger = PostgresLedger(engine)
    image = ledger.register([upload])[0].image_id
    assert platform.scored("k.jpg", **names) == image
    ledger.register([upload])
    ledger.register(
        [Upload(bucket=platform.bucket, key="k.jpg", sequencer="20", etag=names["etag"])]
    )
    expire()
    assert platform.bodies() == {b"same"}


def test_an_image_is_not_called_erased_while_its_bytes_are_there(
    platform: Platform, storage: S3Storage, erase: Callable[[UUID], Any]
) -> None:
    """A store that keeps what it said it removed is found out, and the next image goes on."""
    platform.keep_versions()
    image = platform.scored("locked.jpg", **platform.store("locked.jpg", b"1"))
    other = platform.scored("k.jpg", sha256="ab" * 32, **platform.store("k.jpg", b"2"))
    remove = storage.delete

    def keep_locked(bucket: str, key: str, **version: Any) -> None:
        if key != "locked.jpg":
            remove(bucket, key, **version)

    storage.delete = keep_locked  # type: ignore[method-assign]  # a store's lock on objects
    assert erase(image).failed == 1
    assert platform.state(image)[2] is False
    done = erase(other)
    assert (done.erased, done.failed) == (1, 1)
    storage.delete = remove  # type: ignore[method-assign]
    assert erase(image).erased == 1
    assert platform.bodies() == set()


def test_an_object_that_storage_does_not_name_goes_while_its_key_has_no_other(
    platform: Platform, erase: Callable[[UUID], Any]
) -> None:
    """Where only the event told uploads apart, nothing tells an object from its successor."""
    for key in ("alone.jpg", "again.jpg"):
        platform.store(key, key.encode())
    alone = platform.scored("alone.jpg", etag="event:01")
    first = platform.scored("again.jpg", etag="event:01")
    platform.scored("again.jpg", etag="event:02")
    assert erase(alone).erased == 1
    done = erase(first)
    assert (done.erased, done.failed) == (0, 1)
    assert platform.bodies() == {b"again.jpg"}
    assert platform.state(first)[2] is False


def test_what_stands_in_for_an_etag_names_the_object(
    platform: Platform, erase: Callable[[UUID], Any]
) -> None:
    """A row that has the date and size of an object finds it, and spares a successor of its key."""
    names = []
    for key in ("k.jpg", "other.jpg"):
        platform.store(key, key.encode())
        told = platform.client.head_object(Bucket=platform.bucket, Key=key)
        seconds = int(told["LastModified"].timestamp())
        names.append(f"modified:{seconds}:{told['ContentLength']}")
    mine = platform.scored("k.jpg", etag=names[0])
    replaced = platform.scored("other.jpg", etag="modified:1:7")
    platform.scored("other.jpg", etag=names[1])
    assert (erase(mine).erased, erase(replaced).erased) == (1, 1)
    assert platform.bodies() == {b"other.jpg"}


def test_retention_is_not_taken_for_a_removal_by_the_platform(
    platform: Platform,
    engine: Engine,
    storage: S3Storage,
    expire: Callable[[], Any],
    desk: Callable[..., Any],
) -> None:
    """Its own removals come back as events: verdict, review and decision stay as they are.

    So after a run that died between the removal and its commit.
    """
    images = [platform.scored(key, **platform.store(key, b"x")) for key in ("a.jpg", "b.jpg")]
    ledger = PostgresLedger(engine)
    remove = storage.delete

    def die(bucket: str, key: str, **version: Any) -> None:
        remove(bucket, key, **version)
        raise KeyboardInterrupt

    storage.delete = die  # type: ignore[method-assign]  # the process ends here
    with pytest.raises(KeyboardInterrupt):
        expire()
    storage.delete = remove  # type: ignore[method-assign]
    gone = [Removal(bucket=platform.bucket, key=key, sequencer="99") for key in ("a.jpg", "b.jpg")]
    assert ledger.withdraw(gone) == 0
    assert expire().originals == 2
    assert ledger.withdraw(gone) == 0
    assert [platform.state(image) for image in images] == [("scored", True, False)] * 2
    clerk = desk()
    rows = clerk.rows(
        "SELECT label, original_removed_at IS NOT NULL, image_url FROM moderation.verdicts"
    )
    assert rows == [("generated", True, None)] * 2
    assert len(clerk.rows("SELECT FROM moderation.review_queue")) == 2
    clerk.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", images[0])
    # A late event of the removed object changes nothing, another upload is another row.
    late = Upload(bucket=platform.bucket, key="a.jpg", etag="e9", sequencer="10")
    assert not ledger.register([late])[0].created
    new = Upload(bucket=platform.bucket, key="a.jpg", etag="e9", sequencer="a0")
    assert ledger.register([new])[0].created


def test_retention_goes_on_until_nothing_is_left(
    platform: Platform,
    storage: S3Storage,
    expire: Callable[[], Any],
    superuser: psycopg.Connection,
) -> None:
    """More than a batch in one run; one that cannot be removed is counted and holds nobody up."""
    names = platform.store("0.jpg", b"x")
    superuser.execute(
        "INSERT INTO app.images (bucket, key, etag, source, state, reason, created_at) "
        "SELECT %s, n || '.jpg', %s, 'web', 'failed', 'test', now() - interval '100 days' "
        "FROM generate_series(0, 599) n",
        [platform.bucket, names["etag"]],
    )
    for number in range(1, 20):
        platform.store(f"{number}.jpg", b"x")
    stuck, removed, lock = "7.jpg", storage.delete, threading.Lock()
    gone: list[str] = []

    def fail_one(bucket: str, key: str, **version: Any) -> None:
        if key == stuck:
            raise StorageUnavailable(key)
        removed(bucket, key, **version)
        with lock:
            gone.append(key)

    storage.delete = fail_one  # type: ignore[method-assign]  # an object that cannot be removed
    done = expire()
    assert (done.originals, done.failed) == (599, 1)
    assert sorted(gone) == sorted(f"{n}.jpg" for n in range(20) if n != 7)
    storage.delete = removed  # type: ignore[method-assign]
    assert expire().originals == 1
    assert expire().originals == 0
    assert platform.bodies() == set()


def test_a_group_of_pictures_survives_the_picture_it_is_named_after(
    platform: Platform,
    erase: Callable[[UUID], Any],
    superuser: psycopg.Connection,
    desk: Callable[..., Any],
) -> None:
    """The hash leaves the names of groups; who belongs together stays, and on which side."""
    names = ("a.jpg", "b.jpg")
    first, second = (
        platform.scored(key, sha256=f"{n}e" * 32, **platform.store(key, key.encode()))
        for n, key in enumerate(names)
    )
    lead, other = desk(lead=True), desk(lead=True)
    for image in (first, second):
        other.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", image)
        lead.value("SELECT moderation.overturn(%s, 'real', 'real_original')", image)
    superuser.execute(
        "INSERT INTO app.dataset_snapshots (uri, left_out, decisions_up_to) VALUES ('u', '{}', 0)"
    )
    superuser.execute(
        "INSERT INTO app.snapshot_items"
        " (snapshot_id, image_id, label, why, group_key, side, weight)"
        " SELECT s.id, %s, 'real', 'decision', 'picture:' || repeat('0e', 32), 'training', 1"
        " FROM app.dataset_snapshots s",
        [second],
    )
    groups = "SELECT DISTINCT group_key, pinned FROM app.regression_items"
    before = superuser.execute(groups).fetchall()
    assert before[0][0] == "0e" * 32
    assert set(platform.holds_text("0e" * 32)) == {"images", "regression_items", "snapshot_items"}
    erase(first)
    assert platform.holds_text("0e" * 32) == []
    assert superuser.execute(groups).fetchall() == [(f"erased/{first}", before[0][1])]
    third = platform.scored("c.jpg", sha256="2e" * 32, **platform.store("c.jpg", b"c"))
    other.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", third)
    lead.value("SELECT moderation.overturn(%s, 'real', 'real_original')", third)
    assert superuser.execute(groups).fetchall() == [(f"erased/{first}", before[0][1])]


def test_a_hook_that_comes_after_the_verdict_moves_the_review(
    engine: Engine, bucket: str, scored: Callable[..., UUID], desk: Callable[..., Any]
) -> None:
    """Moderators of the hook's source see the image in their queue; others no longer do."""
    image = scored(0.97, key="k.jpg", source="default", uploader=None)
    PostgresLedger(engine).register(
        [Upload(bucket=bucket, key="k.jpg", etag="e1", source="web", uploader="u-1")]
    )
    asked = "SELECT image_id, uploader FROM moderation.review_queue"
    assert desk("web").rows(asked) == [(image, "u-1")]
    assert desk("default").rows(asked) == []
