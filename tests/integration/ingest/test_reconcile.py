"""Reconciling against real storage and a real ledger: versions, hooks and notifications."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from worker.ingest.events import parse
from worker.ingest.reconcile import Reconciled, reconcile
from worker.ledger.interface import Upload
from worker.ledger.postgres import PostgresLedger
from worker.queue.publisher import MemoryPublisher
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from worker.settings import Settings

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)

NOTIFICATION = """
{"Records": [{"eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
  "eventTime": "2026-01-02T03:04:05.000Z", "s3": {"bucket": {"name": "%s"}, "object":
  {"key": "%s", "size": 1, "eTag": "%s", "versionId": "%s", "sequencer": "0055AED6DCD90281E5"}}}]}
"""


def test_every_way_to_announce_a_version_is_one_upload(
    settings: Settings, engine: Engine, s3_client: Any, bucket: str
) -> None:
    """By hook, by notification, by both in either order, or not at all: one row an object."""
    s3_client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    ledger, storage = PostgresLedger(engine), S3Storage(settings.s3)
    ways = ("h", "n", "hn", "nh", "hnh", "")
    for way in ways:
        key = f"way-{way}.jpg"
        s3_client.put_object(Bucket=bucket, Key=key, Body=b"before")
        s3_client.delete_object(Bucket=bucket, Key=key)
        told = s3_client.put_object(Bucket=bucket, Key=key, Body=way.encode())
        etag = told["ETag"].strip('"')
        hook = Upload(bucket=bucket, key=key, etag=etag, source="web", uploader="u-1")
        (notified,) = parse(
            (NOTIFICATION % (bucket, key, etag, told["VersionId"])).encode(), buckets=(bucket,)
        )
        assert isinstance(notified, Upload)
        for name in way:
            ledger.register([hook if name == "h" else notified])
    known = len(ways) - 1
    publisher = MemoryPublisher(ledger)

    def run() -> Reconciled:
        return reconcile(
            bucket, since=LONG_AGO, storage=storage, ledger=ledger, publisher=publisher
        )

    assert run() == Reconciled(listed=known + 1, known=known, added=1, published=known + 1)
    assert run() == Reconciled(listed=known + 1, known=known + 1)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT key, source, version_id IS NOT NULL FROM app.images ORDER BY key"
        ).all()
    assert [tuple(row) for row in rows] == sorted(
        (f"way-{way}.jpg", "web" if "h" in way else "default", True) for way in ways
    )
