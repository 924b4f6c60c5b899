"""`unlatent submit`, `reconcile`, `retry`, `rescore` and `bridge` over real services."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.support.ledger_contract import taken, verdict
from tests.support.waiting import eventually
from worker.ledger.interface import State
from worker.ledger.postgres import PostgresLedger
from worker.models.registry import ModelsRegistry, ModelVersion
from worker.queue import names as queues

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from redis import Redis
    from sqlalchemy import Engine

    from worker.settings import Settings


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """The environment of a process that works on this test's services."""
    key_id, secret = settings.s3.access_key_id, settings.s3.secret_access_key
    assert key_id is not None
    assert secret is not None
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "UNLATENT_POSTGRES__URL": settings.postgres.url.get_secret_value(),
        "UNLATENT_REDIS__URL": settings.redis.url.get_secret_value(),
        "UNLATENT_REDIS__KEY_PREFIX": settings.redis.key_prefix,
        "UNLATENT_S3__ENDPOINT_URL": settings.s3.endpoint_url or "",
        "UNLATENT_S3__ACCESS_KEY_ID": key_id.get_secret_value(),
        "UNLATENT_S3__SECRET_ACCESS_KEY": secret.get_secret_value(),
        "UNLATENT_S3__BUCKETS": f'["{settings.s3.buckets[0]}"]',
    }


def unlatent(environment: dict[str, str], *arguments: str) -> str:
    """Run a command that must succeed and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_from_file_to_message_and_back(
    environment: dict[str, str],
    settings: Settings,
    engine: Engine,
    redis_client: Redis,
    s3_client: Any,
    tmp_path: Path,
) -> None:
    """A file is stored, registered by its id, published by the bridge, and may be retried."""
    bucket, prefix = settings.s3.buckets[0], settings.redis.key_prefix
    picture = tmp_path / "a cat.jpg"
    picture.write_bytes(b"bytes")
    image_id = UUID(unlatent(environment, "submit", str(picture)))
    ledger = PostgresLedger(engine)
    lease = taken(ledger, image_id)
    body = s3_client.get_object(Bucket=bucket, Key=lease.upload.key)["Body"].read()
    assert body == b"bytes"

    bridge = subprocess.Popen([sys.executable, "-m", "worker", "bridge"], env=environment)
    try:
        eventually(lambda: redis_client.llen(prefix + queues.SCORE) == 1, what="a message")
    finally:
        bridge.send_signal(signal.SIGTERM)
        assert bridge.wait(timeout=30) == 0

    again = unlatent(environment, "submit", f"s3://{bucket}/{lease.upload.key}")
    assert UUID(again) == image_id
    ledger.end(lease, state=State.FAILED, reason="not_an_image", detail="")
    printed = unlatent(environment, "retry", "--reason", "not_an_image", "--since", "2020-01-01")
    assert printed == "reopened 1"
    assert redis_client.llen(prefix + queues.SCORE) == 2


def test_a_file_that_is_no_image_by_its_name_is_not_uploaded(
    environment: dict[str, str], settings: Settings, s3_client: Any, tmp_path: Path
) -> None:
    """`submit` refuses the name before anything is stored."""
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"bytes")
    done = subprocess.run(
        [sys.executable, "-m", "worker", "submit", str(clip)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "unlatent: 'clip.mp4' is not the name of an image (extension)\n"
    assert "Contents" not in s3_client.list_objects_v2(Bucket=settings.s3.buckets[0])


def test_what_the_bridge_refused_is_listed_with_its_reason(
    environment: dict[str, str], settings: Settings, redis_client: Redis
) -> None:
    """`rejected` shows the newest first, as many as are wanted."""
    ingest = settings.redis.key_prefix + settings.redis.ingest_key
    assert unlatent(environment, "rejected", "--format", "json") == "[]"
    redis_client.rpush(ingest, b"no event", b'{"v": 99}')
    bridge = subprocess.Popen([sys.executable, "-m", "worker", "bridge"], env=environment)
    try:
        eventually(lambda: redis_client.llen(f"{ingest}:rejected") == 2, what="two refusals")
    finally:
        bridge.send_signal(signal.SIGTERM)
        assert bridge.wait(timeout=30) == 0
    listed = json.loads(unlatent(environment, "rejected", "--format", "json"))
    assert [(row["reason"], row["entry"]) for row in listed] == [
        ("unknown_version", '{"v": 99}'),
        ("not_json", "no event"),
    ]
    table = unlatent(environment, "rejected", "--limit", "1").splitlines()
    assert len(table) == 2
    assert "unknown_version" in table[1]


def test_reconcile_and_rescore(
    environment: dict[str, str],
    settings: Settings,
    engine: Engine,
    redis_client: Redis,
    s3_client: Any,
) -> None:
    """What notifications lost is added; what another model has not judged is queued for it."""
    bucket, prefix = settings.s3.buckets[0], settings.redis.key_prefix
    s3_client.put_object(Bucket=bucket, Key="lost.jpg", Body=b"lost", ContentType="image/jpeg")
    for key in ("clip.mp4", "scan.pdf", "folder/"):
        s3_client.put_object(Bucket=bucket, Key=key, Body=b"other")
    arguments = ("reconcile", "--bucket", bucket, "--since", "2020-01-01")
    assert unlatent(environment, *arguments) == (
        "listed 4, added 1, known 0, ignored 3 (extension 2, folder 1), published 1"
    )
    ledger, registry = PostgresLedger(engine), ModelsRegistry(engine)
    message = redis_client.lrange(prefix + queues.SCORE, 0, -1)
    assert len(message) == 1
    image_id = UUID(unlatent(environment, "submit", f"s3://{bucket}/lost.jpg"))
    ledger.record([verdict(taken(ledger, image_id))])
    registry.register(ModelVersion(digest="model-2", name="two", uri="s3://training/models/small"))
    registry.promote("model-2", actor="t", reason="r", forced=True)
    assert unlatent(environment, "rescore") == "queued 1 for two"
    assert redis_client.llen(prefix + queues.BACKFILL) == 1
