"""From an event in Redis to a row in Postgres, through the processes that production runs.

One bridge and one worker serve the whole module. The detector is a real one of random weights:
what is tested is everything around them.
"""

from __future__ import annotations

import io
import json
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image as PillowImage
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import select

from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.images.bad_files import LIMITS, refused
from tests.support.processes.worker_process import WorkerProcess
from tests.support.waiting import eventually
from worker.database.engine import build_engine
from worker.ingest.events import Ignored, own_event, parse
from worker.ledger.interface import State, Upload
from worker.ledger.postgres import PostgresLedger
from worker.ledger.tables import Image, VerdictRow
from worker.queue import names as queues
from worker.queue.app import build_app
from worker.queue.publisher import CeleryPublisher
from worker.settings import Settings
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from sqlalchemy import Row

    from worker.localstack import LocalStack
    from worker.storage.interface import ObjectFacts

#: Names of bad files that no event brings to the worker: the bridge knows by their claims.
STOPPED_BY_THE_BRIDGE = {
    "png sent as svg",
    "png called svg",
    "jpeg sent as html",
    "jpeg sent as pdf",
    "jpeg called mp4",
    "jpeg called html",
}
SIZES = ((64, 64), (97, 211), (256, 256), (512, 384), (640, 427), (1200, 800))


def picture(seed: int, size: tuple[int, int] = (128, 96), kind: str = "JPEG") -> bytes:
    """Return an image file that no other seed gives."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    PillowImage.fromarray(small).resize(size, PillowImage.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A platform with an upload button: it stores, tells of it, and looks at rows."""

    settings: Settings
    storage: S3Storage
    redis: Redis
    ledger: PostgresLedger
    publisher: CeleryPublisher
    query: Callable[[Any], list[Row[Any]]]
    worker: WorkerProcess

    @property
    def bucket(self) -> str:
        """The bucket that the service reads."""
        return self.settings.s3.buckets[0]

    def put(self, key: str, body: bytes, content_type: str = "image/jpeg") -> ObjectFacts:
        """Store an object."""
        return self.storage.put(self.bucket, key, body, content_type=content_type)

    def tell(self, *events: bytes) -> None:
        """Append events to the ingest list."""
        self.redis.rpush(f"{self.settings.redis.key_prefix}ingest", *events)

    def row(self, key: str) -> Row[Any] | None:
        """Return the row of a key, None before there is one."""
        found = self.query(select(Image.__table__).where(Image.key == key))
        return found[0] if found else None

    def rows(self, folder: str) -> list[Row[Any]]:
        """Return all rows of a folder."""
        return self.query(
            select(Image.__table__).where(Image.key.startswith(folder)).order_by(Image.key)
        )

    def verdicts(self, folder: str) -> list[Row[Any]]:
        """Return all verdicts of a folder's images."""
        return self.query(
            select(VerdictRow.__table__, Image.key)
            .join(Image, Image.id == VerdictRow.image_id)
            .where(Image.key.startswith(folder))
            .order_by(Image.key)
        )

    def ended(self, key: str) -> Row[Any]:
        """Wait for the end of the one upload of a key and return its row."""
        self.wait_until_ended([key])
        row = self.row(key)
        assert row is not None
        return row

    def wait_until_ended(self, keys: Collection[str], *, timeout_s: float = 90) -> None:
        """Wait until every key has a row in a terminal state."""
        ended = select(Image.key).where(Image.state != State.PENDING, Image.key.in_(keys))
        eventually(
            lambda: len(self.query(ended)) >= len(keys),
            timeout_s=timeout_s,
            what=f"the end of {len(keys)} uploads",
        )

    def wait_until_idle(self) -> None:
        """Wait until no entry and no message is left or under way."""
        prefix = self.settings.redis.key_prefix

        def idle() -> bool:
            lists = [f"{prefix}ingest", *self.redis.scan_iter(f"{prefix}ingest:processing:*")]
            lists += [f"{prefix}{name}" for name in queues.QUEUES]
            return not any(self.redis.llen(name) for name in lists) and not self.redis.hlen(
                f"{prefix}unacked"
            )

        eventually(idle, timeout_s=60, what="idle queues")


@pytest.fixture(scope="module")
def platform(
    session_stack: LocalStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """Return a platform with a database, a bucket and a prefix of this module's own."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as exits:
        patch.setenv("OMP_NUM_THREADS", "1")  # more threads than cores only wait for each other
        name = f"test_{uuid4().hex}"
        session_stack.database.clone("unlatent", name)
        exits.callback(session_stack.database.drop, name)
        bucket = f"test-{uuid4().hex}"
        session_stack.s3.make_buckets([bucket])
        folder = tmp_path_factory.mktemp("end-to-end")
        build_tiny_bundle(folder / "bundle")
        settings = Settings.model_validate(
            {
                "postgres": {"url": session_stack.addresses.database_url(name)},
                "redis": {"url": session_stack.redis.url, "key_prefix": f"test-{uuid4().hex}:"},
                "s3": {
                    "endpoint_url": session_stack.s3.endpoint_url,
                    "access_key_id": session_stack.s3.access_key_id,
                    "secret_access_key": session_stack.s3.secret_access_key,
                    "buckets": (bucket, "a-bucket-that-is-not-there"),
                },
                "intake": {
                    "max_bytes": LIMITS.max_bytes,
                    "max_pixels": LIMITS.max_pixels,
                    "max_frames": LIMITS.max_frames,
                    "max_metadata_bytes": LIMITS.max_metadata_bytes,
                },
                "scoring": {"device": "cpu", "bundle": str(folder / "bundle")},
                "observability": {"run_dir": folder / "run"},
            }
        )
        bridge = exits.enter_context(WorkerProcess(settings, module="worker", arguments=["bridge"]))
        worker = exits.enter_context(WorkerProcess(settings, module="worker", arguments=["worker"]))
        engine = build_engine(settings.postgres)
        exits.callback(engine.dispose)
        redis = exits.enter_context(Redis.from_url(settings.redis.url.get_secret_value()))
        ledger = PostgresLedger(engine)

        def query(wanted: Any) -> list[Row[Any]]:
            with engine.begin() as connection:
                return list(connection.execute(wanted))

        yield Platform(
            settings=settings,
            storage=S3Storage(settings.s3),
            redis=redis,
            ledger=ledger,
            publisher=CeleryPublisher(build_app(settings), ledger),
            query=query,
            worker=worker.wait_until_ready(),
        )
        assert worker.stop() == 0
        assert bridge.stop() == 0
        # Both write to one log.
        steps = {event["step"] for event in worker.events("start_step_ended")}
        assert steps == {"imports", "services", "decoders", "model", "tasks"}


def own_shape(facts: ObjectFacts) -> bytes:
    """Tell of an object in our own shape."""
    return json.dumps(
        {"v": 1, "bucket": facts.bucket, "key": facts.key, "etag": facts.etag}
    ).encode()


def s3_record(facts: ObjectFacts) -> dict[str, Any]:
    """Tell of an object as S3 does: the key is URL-encoded, the etag unquoted."""
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventTime": datetime.now(UTC).isoformat(),
        "eventName": "ObjectCreated:Put",
        "s3": {
            "bucket": {"name": facts.bucket},
            "object": {"key": quote_plus(facts.key), "eTag": facts.etag, "size": facts.size},
        },
    }


def s3_shape(facts: ObjectFacts) -> bytes:
    """Tell of an object as an S3 notification."""
    return json.dumps({"Records": [s3_record(facts)]}).encode()


def minio_shape(facts: ObjectFacts) -> bytes:
    """Tell of an object as MinIO's `access` format does."""
    record = s3_record(facts) | {"eventName": "s3:ObjectCreated:Put"}
    return json.dumps([{"Event": [record], "EventTime": record["eventTime"]}]).encode()


@pytest.mark.parametrize("shape", [own_shape, s3_shape, minio_shape])
def test_an_upload_becomes_a_verdict(
    platform: Platform, shape: Callable[[ObjectFacts], bytes]
) -> None:
    """An event of any shape ends as one row with its facts and one verdict of the bundle."""
    key = f"one/{shape.__name__} ä+b.jpg"
    facts = platform.put(key, picture(len(shape.__name__)))
    platform.tell(shape(facts))
    row = platform.ended(key)
    assert (row.state, row.reason) == (State.SCORED, None)
    assert (row.width, row.height, row.format, row.etag) == (128, 96, "JPEG", facts.etag)
    (verdict,) = platform.verdicts(key)
    assert 0 < verdict.score < 1
    assert set(verdict.branches) == {"lare", "aligned"}
    manifest = Path(platform.settings.scoring.bundle, "bundle.json").read_bytes()
    assert verdict.model_version == sha256(manifest).hexdigest()


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.full)])
def test_every_upload_of_a_batch_ends_once(platform: Platform, count: int) -> None:
    """N uploads give N rows and N - failures verdicts; every event twice more changes nothing."""
    folder = f"batch-{count}/"
    broken = {f"{folder}{number:03d}.jpg" for number in range(7, count, 20)}
    events = {}
    for number in range(count):
        key = f"{folder}{number:03d}.jpg"
        body = picture(1000 * count + number, SIZES[number % len(SIZES)])
        facts = platform.put(key, body[: len(body) // 2] if key in broken else body)
        events[key] = s3_shape(facts)
    platform.tell(*events.values())
    platform.wait_until_ended(events, timeout_s=150)
    platform.wait_until_idle()
    rows, verdicts = platform.rows(folder), platform.verdicts(folder)
    assert [row.key for row in rows] == sorted(events)
    assert {row.key for row in rows if row.state == State.FAILED} == broken
    assert {row.state for row in rows} == {State.FAILED, State.SCORED}
    assert [verdict.key for verdict in verdicts] == sorted(events.keys() - broken)
    platform.tell(*events.values(), *events.values())
    platform.wait_until_idle()
    # Messages come twice as well, when a broker repeats them.
    for task in [str(row.id) for row in rows] * 2:
        platform.publisher._app.send_task(queues.SCORE_TASK, args=[task])
    platform.wait_until_idle()
    assert platform.rows(folder) == rows
    assert platform.verdicts(folder) == verdicts


def test_every_bad_file_fails_with_its_reason(platform: Platform) -> None:
    """Whatever is wrong with an upload's bytes or claims, its row says it, and the worker lives."""
    expected = {}
    for number, (name, bad) in enumerate(refused().items()):
        key = f"bad/{number}/{bad.key or 'upload'}"
        facts = platform.put(key, bad.data, bad.declared_type or "application/octet-stream")
        upload = Upload(
            bucket=platform.bucket,
            key=key,
            etag=facts.etag,
            content_type=bad.declared_type,
            sha256=bad.sha256,
        )
        event = own_event(upload)
        stopped = isinstance(parse(event, buckets=[platform.bucket])[0], Ignored)
        assert stopped == (name in STOPPED_BY_THE_BRIDGE)
        if stopped:
            platform.publisher.publish(platform.ledger.register([upload]))
        else:
            platform.tell(event)
        expected[key] = (name, bad.reason)
    platform.wait_until_ended(expected, timeout_s=150)
    rows = platform.rows("bad/")
    found = {expected[row.key][0]: (row.state, row.reason) for row in rows}
    assert found == {name: (State.FAILED, reason) for name, reason in expected.values()}
    assert all(row.detail and row.deaths == 0 for row in rows)
    assert platform.verdicts("bad/") == []
    platform.tell(own_shape(platform.put("bad/then/sound.jpg", picture(5))))
    assert platform.ended("bad/then/sound.jpg").state == State.SCORED


def test_an_object_that_is_gone_fails(platform: Platform) -> None:
    """An upload whose object is not there any more fails as missing."""
    facts = platform.put("gone/a.jpg", picture(1))
    platform.storage.delete(platform.bucket, "gone/a.jpg")
    platform.tell(own_shape(facts))
    row = platform.ended("gone/a.jpg")
    assert (row.state, row.reason) == (State.FAILED, "object_missing")


def test_an_object_replaced_since_its_event_is_superseded(platform: Platform) -> None:
    """The first upload of a key ends as superseded; the one that took its place is scored."""
    first = platform.put("replaced/a.jpg", picture(2))
    second = platform.put("replaced/a.jpg", picture(3))
    platform.tell(own_shape(first), own_shape(second))

    def states() -> dict[str, tuple[str, str | None]]:
        return {row.etag: (row.state, row.reason) for row in platform.rows("replaced/")}

    wanted = {
        first.etag: (State.SUPERSEDED, "object_replaced"),
        second.etag: (State.SCORED, None),
    }
    eventually(lambda: states() == wanted, what="both ends")
    (verdict,) = platform.verdicts("replaced/")
    assert verdict.reused_from is None


def test_a_denied_object_beside_readable_ones_fails(platform: Platform) -> None:
    """A denial that is the object's own, here of a whole bucket, fails only that upload."""
    platform.tell(own_shape(platform.put("denied/readable.jpg", picture(4))))
    assert platform.ended("denied/readable.jpg").state == State.SCORED
    denied = Upload(bucket="a-bucket-that-is-not-there", key="denied/a.jpg", etag="0" * 32)
    platform.tell(own_event(denied))
    row = platform.ended("denied/a.jpg")
    assert (row.state, row.reason) == (State.FAILED, "access_denied")


def test_an_unknown_key_id_is_denied(settings: Settings) -> None:
    """A worker whose key id the store does not know fails its image once tries are used up."""
    stranger = settings.s3.model_copy(update={"access_key_id": SecretStr("nobody")})
    facts = S3Storage(settings.s3).put(
        settings.s3.buckets[0], "a.jpg", picture(6), content_type="image/jpeg"
    )
    engine = build_engine(settings.postgres)
    ledger = PostgresLedger(engine)
    registered = ledger.register([Upload(bucket=facts.bucket, key="a.jpg", etag=facts.etag)])
    CeleryPublisher(build_app(settings), ledger).publish(registered)
    denied = settings.model_copy(update={"s3": stranger})
    wanted = select(Image.state, Image.reason)

    def end() -> tuple[str, str | None]:
        with engine.begin() as connection:
            return tuple(connection.execute(wanted).one())

    # Nothing is scored here: the in-memory scorer spares seconds.
    with WorkerProcess(denied) as worker:
        worker.wait_until_ready()
        eventually(lambda: end()[0] != State.PENDING, timeout_s=60, what="the end of the image")
        assert worker.stop() == 0
    assert end() == (State.FAILED, "access_denied")
    engine.dispose()


def test_identical_bytes_reuse_the_verdict(platform: Platform) -> None:
    """The same bytes under another key get the first one's verdict without a forward pass."""
    body = picture(7)
    for key in ("same/first.jpg", "same/second.jpg"):
        platform.tell(own_shape(platform.put(key, body)))
        assert platform.ended(key).state == State.SCORED
    first, second = platform.verdicts("same/")
    assert second.score == first.score
    assert (first.reused_from, second.reused_from) == (None, first.image_id)
    assert "forward" not in second.timings_ms
