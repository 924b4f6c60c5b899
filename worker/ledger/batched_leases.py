"""Leases of several images with one statement, of those that need no more than a lease.

Suspects, images with an open lease, and images whose row somebody has locked are left out: each of
them is leased alone (`PostgresLedger.lease`), where its deaths are counted and its lock is waited
for. So a batch waits for nobody, cannot deadlock, and no row holds up the others.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import ARRAY, Uuid, bindparam, text

from worker.ledger.interface import Lease
from worker.ledger.statements import upload_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import Connection

#: `free` is read before its rows are locked. An image that ended or died meanwhile is read again
#: with its lock; a lease that was opened meanwhile is what the unique index refuses.
_OPEN = text("""
    WITH free AS (
        -- By name: a column that a later release adds must not change what a prepared plan returns.
        SELECT i.id, i.state_since, i.bucket, i.key, i.version_id, i.etag, i.sequencer,
            i.size_bytes, i.content_type, i.claimed_sha256, i.source, i.uploader, i.priority,
            i.uploaded_at
        FROM app.images i
        WHERE i.id = ANY (:images) AND i.state = 'pending' AND i.deaths = 0 AND NOT EXISTS (
            SELECT FROM app.leases l WHERE l.image_id = i.id AND l.closed_at IS NULL
        )
        ORDER BY i.id FOR NO KEY UPDATE OF i SKIP LOCKED
    ), taken AS (
        INSERT INTO app.leases (image_id, worker, purpose, since, until)
        SELECT id, :worker, 'score', clock_timestamp(), clock_timestamp() + :duration FROM free
        ON CONFLICT (image_id) WHERE closed_at IS NULL DO NOTHING
        RETURNING id, image_id, until
    )
    SELECT free.*, taken.id AS lease_id, taken.until, earlier.*
    FROM taken JOIN free ON free.id = taken.image_id CROSS JOIN LATERAL (
        SELECT count(*) AS leases,
            count(*) FILTER (
                WHERE l.since >= free.state_since AND l.outcome = 'unreadable'
            ) AS unreadable,
            clock_timestamp() - min(l.since) FILTER (
                WHERE l.since >= free.state_since AND l.outcome IN ('retry', 'unreadable')
            ) AS retried_for
        FROM app.leases l WHERE l.image_id = free.id
    ) earlier
""").bindparams(bindparam("images", type_=ARRAY(Uuid())))


def open_leases(
    connection: Connection, image_ids: Sequence[UUID], *, worker: str, duration: timedelta
) -> dict[UUID, Lease]:
    """Lease the pending images without deaths, open lease or row lock; returns leases by image."""
    rows = connection.execute(
        _OPEN, {"images": list(image_ids), "worker": worker, "duration": duration}
    )
    return {
        row.id: Lease(
            lease_id=row.lease_id,
            image_id=row.id,
            upload=upload_of(row),
            attempt=row.leases + 1,
            deaths=0,
            alone=False,
            until=row.until,
            unreadable=row.unreadable,
            retried_for=row.retried_for or timedelta(0),
        )
        for row in rows
    }
