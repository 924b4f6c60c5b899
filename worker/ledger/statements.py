"""The statements that `worker.ledger.postgres` composes into transactions, and its rows' values.

Each takes an open connection and leaves the transaction to its caller.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg.errors import UniqueViolation
from sqlalchemy import (
    ARRAY,
    Text,
    any_,
    bindparam,
    exc,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from detection.score import TileLogit
from worker.ledger.identity import KnownUpload
from worker.ledger.interface import (
    KILLED_WORKER,
    REMOVED,
    HeldElsewhere,
    ImageFacts,
    Lease,
    LeaseOutcome,
    Purpose,
    Removal,
    Role,
    State,
    UnknownImage,
    Upload,
    Verdict,
    sequencer_rank,
    truncate_detail,
)
from worker.ledger.tables import Image, LeaseRow, ObjectRemoval

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import (
        ColumnElement,
        Connection,
        Row,
        SQLColumnExpression,
        TableValuedAlias,
    )
    from sqlalchemy.orm import InstrumentedAttribute

    from worker.ledger.identity import Address

    AnyRow = Row[*tuple[Any, ...]]

_T = TypeVar("_T")

#: The moment of the statement: `now()` is the transaction's start, which may lie before a wait.
NOW = func.clock_timestamp()

#: The columns of `images` that decoding fills.
FACTS = (
    Image.sha256,
    Image.size_bytes,
    Image.format,
    Image.width,
    Image.height,
    Image.pdq,
    Image.pdq_quality,
)

#: Rows of one statement; a row of `images` has 14 parameters.
CHUNK = 1000

RETRIED = (LeaseOutcome.RETRY, LeaseOutcome.UNREADABLE)
#: The columns of `images` that an event fills.
_UPLOAD = (
    Image.bucket,
    Image.key,
    Image.version_id,
    Image.etag,
    Image.sequencer,
    Image.size_bytes,
    Image.content_type,
    Image.claimed_sha256,
    Image.source,
    Image.uploader,
    Image.priority,
    Image.uploaded_at,
)
#: Those that a later event of the same upload may change; decoding owns the size.
_LEARNT = tuple(
    column.key for column in _UPLOAD if column.key not in {"bucket", "key", "size_bytes"}
)

#: Locks that all keys share, in a space of their own: no transaction holds more of them.
_ADDRESS_LOCKS = 256
_ADDRESS_LOCK_SPACE = 1_970_170_977

LIVE = (LeaseRow.closed_at.is_(None)) & (LeaseRow.until > NOW)
DIED = or_(
    LeaseRow.outcome == LeaseOutcome.DEATH, LeaseRow.closed_at.is_(None) & (LeaseRow.until <= NOW)
)


def in_chunks(values: Iterable[_T]) -> Iterator[list[_T]]:
    """Cut what one statement would have too many parameters for; Postgres takes 65,535."""
    listed = list(values)
    for begin in range(0, len(listed), CHUNK):
        yield listed[begin : begin + CHUNK]


def among(column: InstrumentedAttribute[_T], values: Collection[_T]) -> ColumnElement[bool]:
    """Say that a column has one of these values: one parameter, however many they are."""
    return column == any_(literal(list(values), ARRAY(column.type)))


def as_table(
    columns: Sequence[InstrumentedAttribute[Any]], rows: Sequence[Mapping[str, Any]]
) -> TableValuedAlias:
    """Make a table of rows by column name, one parameter a column, however many rows there are."""
    arrays = (literal([row[one.key] for row in rows], ARRAY(one.type)) for one in columns)
    table = func.unnest(*arrays).table_valued(*(one.key for one in columns), name="given")
    return table.render_derived()


# Statements of register and withdraw --------------------------------------------------------------


def at(addresses: Collection[Address], table: type[Image | ObjectRemoval] = Image) -> Any:
    """Match rows of these buckets and keys, however many there are: two parameters in all."""
    buckets, keys = zip(*addresses, strict=True)
    wanted = select(func.unnest(_texts(buckets)), func.unnest(_texts(keys)))
    return tuple_(table.bucket, table.key).in_(wanted)


def _texts(values: Iterable[str]) -> ColumnElement[Any]:
    return bindparam(None, list(values), ARRAY(Text))


def lock_addresses(connection: Connection, addresses: Collection[Address]) -> None:
    """Keep other transactions that register or withdraw these keys waiting until this one's end.

    Keys share a fixed number of locks: a batch must not fill the server's table of locks.
    """
    parts = {zlib.crc32(f"{bucket}/{key}".encode()) % _ADDRESS_LOCKS for bucket, key in addresses}
    # In their order, so that two batches never wait for each other.
    connection.execute(
        text("SELECT pg_advisory_xact_lock(:space, part) FROM unnest(CAST(:parts AS int[])) part"),
        {"space": _ADDRESS_LOCK_SPACE, "parts": sorted(parts)},
    )


def find_uploads(
    connection: Connection, uploads: Sequence[Upload]
) -> dict[Address, list[KnownUpload]]:
    """Read the rows that may be these uploads, withdrawn ones too, by key, the oldest first."""
    found: dict[Address, list[KnownUpload]] = {(one.bucket, one.key): [] for one in uploads}
    etags = {upload.etag for upload in uploads if upload.etag}
    versions = {upload.version_id for upload in uploads if upload.version_id}
    rows = connection.execute(
        select(*_UPLOAD, Image.id, Image.state, Image.published_at)
        .where(
            at(found),
            or_(Image.etag == any_(_texts(etags)), Image.version_id == any_(_texts(versions))),
        )
        .order_by(Image.created_at, Image.id)
    )
    for row in rows:
        found[row.bucket, row.key].append(
            KnownUpload(
                image_id=row.id,
                upload=upload_of(row),
                live=row.state != State.WITHDRAWN,
                pending=row.state == State.PENDING,
                published=row.published_at is not None,
            )
        )
    return found


def find_removals(
    connection: Connection, addresses: Collection[Address]
) -> dict[Address, list[Removal]]:
    """Read what was removed under these keys."""
    found: dict[Address, list[Removal]] = {}
    for row in connection.execute(
        select(ObjectRemoval.__table__).where(at(addresses, ObjectRemoval))
    ):
        found.setdefault((row.bucket, row.key), []).append(
            Removal(
                bucket=row.bucket,
                key=row.key,
                version_id=row.version_id,
                sequencer=row.sequencer,
            )
        )
    return found


def store_uploads(connection: Connection, rows: Iterable[KnownUpload]) -> bool:
    """Write what registration added and changed; False, and nothing, when an upload is there."""
    rows = list(rows)
    added = [row for row in rows if row.new]
    changed = sorted((r for r in rows if r.changed and not r.new), key=lambda row: row.image_id)
    try:
        with connection.begin_nested():
            if added:
                columns = (Image.id, *_UPLOAD, Image.state, Image.reason)
                given = as_table(columns, [_new_row(row) for row in added])
                names = [column.key for column in columns]
                connection.execute(insert(Image).from_select(names, select(given)))
            if changed:
                connection.execute(
                    update(Image)
                    .where(Image.id == bindparam("image_id"))
                    .values({name: bindparam(f"new_{name}") for name in _LEARNT}),
                    [_learnt(row) for row in changed],
                )
    except exc.IntegrityError as error:
        if isinstance(error.orig, UniqueViolation):
            return False
        raise
    gone = [row.image_id for row in changed if not row.live]
    if gone:
        withdraw(connection, gone)
    hurried = [row.image_id for row in changed if row.hurried]
    if hurried:
        connection.execute(
            update(Image)
            .where(among(Image.id, hurried), Image.state == State.PENDING)
            .values(published_at=None)
        )
    restored = [row.image_id for row in changed if row.restored]
    if restored:
        # Not to the time of the event: a wrong clock would keep the object indefinitely.
        connection.execute(
            update(Image)
            .where(among(Image.id, restored))
            .values(restored_at=NOW, expiring_at=None, object_removed_at=None)
        )
    return True


def withdraw(connection: Connection, image_ids: Collection[UUID]) -> int:
    """End images whose objects were removed; not those whose time retention had ended before."""
    withdrawn = connection.execute(
        update(Image)
        .where(
            among(Image.id, image_ids),
            Image.state != State.WITHDRAWN,
            Image.expiring_at.is_(None),
        )
        .values(state=State.WITHDRAWN, reason=REMOVED, detail=None, state_since=NOW)
    )
    return withdrawn.rowcount


def record_removals(connection: Connection, removals: Sequence[Removal]) -> None:
    """Keep the latest removal of each object."""
    latest: dict[tuple[str, str, str], Removal] = {}
    for removal in removals:
        known = latest.setdefault((removal.bucket, removal.key, removal.version_id or ""), removal)
        if sequencer_rank(removal.sequencer or "") > sequencer_rank(known.sequencer or ""):
            latest[removal.bucket, removal.key, removal.version_id or ""] = removal
    for some in in_chunks(sorted(latest)):
        rows = [asdict(latest[known]) for known in some]
        for row in rows:
            del row["raw_key"]
        added = insert(ObjectRemoval).values(rows)
        connection.execute(
            added.on_conflict_do_update(
                index_elements=["bucket", "key", "version_id"],
                set_={"sequencer": added.excluded.sequencer, "removed_at": NOW},
                where=_rank(added.excluded.sequencer) > _rank(ObjectRemoval.sequencer),
            )
        )


def _rank(column: SQLColumnExpression[str | None]) -> ColumnElement[str]:
    """`sequencer_rank` in SQL."""
    return func.rpad(func.upper(func.coalesce(column, "")), 64, "0").collate("C")


# Statements of leases -----------------------------------------------------------------------------


def lock_images(connection: Connection, image_ids: Collection[UUID]) -> set[UUID]:
    """Lock rows of images in the order of their ids; return those that were not erased."""
    rows = connection.execute(
        select(Image.id, Image.erased_at)
        .where(among(Image.id, image_ids))
        .order_by(Image.id)
        .with_for_update(key_share=True)
    )
    return {row.id for row in rows if row.erased_at is None}


def lock_image(connection: Connection, image_id: UUID) -> AnyRow:
    """Read and lock one image; raises `UnknownImage`."""
    row = connection.execute(
        select(Image.__table__).where(Image.id == image_id).with_for_update(key_share=True)
    ).one_or_none()
    if row is None:
        raise UnknownImage(f"image {image_id} is not in the ledger")
    return row


def record_deaths(connection: Connection, image_id: UUID) -> int:
    """Close an open lease that ran out, as a death of the image; return how many there were."""
    died = connection.execute(
        update(LeaseRow)
        .where(LeaseRow.image_id == image_id, LeaseRow.closed_at.is_(None), LeaseRow.until <= NOW)
        .values(closed_at=NOW, outcome=LeaseOutcome.DEATH)
    ).rowcount
    if died:
        connection.execute(
            update(Image).where(Image.id == image_id).values(deaths=Image.deaths + died)
        )
    return died


def quarantine(connection: Connection, image_id: UUID, deaths: int) -> None:
    """End an image that killed too many workers."""
    connection.execute(
        update(Image)
        .where(Image.id == image_id)
        .values(
            state=State.QUARANTINED,
            reason=KILLED_WORKER,
            detail=f"{deaths} workers died while they held this image",
            state_since=NOW,
        )
    )


def open_lease(
    connection: Connection,
    image: AnyRow,
    deaths: int,
    worker: str,
    duration: timedelta,
    purpose: Purpose,
    model_version: str | None = None,
) -> Lease | HeldElsewhere:
    """Open a lease unless one is open; the row of the image must be locked."""
    held = connection.scalar(
        select(LeaseRow.until).where(LeaseRow.image_id == image.id, LeaseRow.closed_at.is_(None))
    )
    if held is not None:
        return HeldElsewhere(image_id=image.id, until=held)
    tried = LeaseRow.since >= image.state_since
    earlier = connection.execute(
        select(
            func.count().label("leases"),
            func.count()
            .filter(tried, LeaseRow.outcome == LeaseOutcome.UNREADABLE)
            .label("unreadable"),
            (NOW - func.min(LeaseRow.since).filter(tried, LeaseRow.outcome.in_(RETRIED))).label(
                "retried_for"
            ),
        ).where(LeaseRow.image_id == image.id)
    ).one()
    taken = connection.execute(
        insert(LeaseRow)
        .values(
            image_id=image.id,
            worker=worker,
            purpose=purpose,
            model_version=model_version,
            since=NOW,
            until=NOW + duration,
        )
        .returning(LeaseRow.id, LeaseRow.until)
    ).one()
    return Lease(
        lease_id=taken.id,
        image_id=image.id,
        upload=upload_of(image),
        attempt=earlier.leases + 1,
        deaths=deaths,
        alone=deaths > 0,
        until=taken.until,
        unreadable=earlier.unreadable,
        retried_for=earlier.retried_for or timedelta(0),
    )


def close_lease(
    connection: Connection, lease_ids: Collection[int], outcome: LeaseOutcome, detail: str = ""
) -> None:
    """Close leases. One that was taken for dead and speaks after all was no death."""
    closed = {"closed_at": NOW, "outcome": outcome, "detail": truncate_detail(detail) or None}
    ours = among(LeaseRow.id, lease_ids)
    was_open = connection.execute(
        update(LeaseRow).where(ours, LeaseRow.closed_at.is_(None)).values(**closed)
    ).rowcount
    if was_open == len(lease_ids):
        return
    mistaken = connection.scalars(
        update(LeaseRow)
        .where(ours, LeaseRow.outcome == LeaseOutcome.DEATH)
        .values(**closed)
        .returning(LeaseRow.image_id)
    ).all()
    if mistaken:
        connection.execute(
            update(Image)
            .where(Image.id.in_(mistaken))
            .values(deaths=func.greatest(Image.deaths - 1, 0))
        )


def end_as_scored(connection: Connection, learnt: Mapping[UUID, ImageFacts]) -> None:
    """End pending images whose rows are locked, with what decoding learnt of them."""
    facts = as_table(
        (Image.id, *FACTS),
        [{"id": image_id, **fact_columns(facts)} for image_id, facts in learnt.items()],
    )
    connection.execute(
        update(Image)
        .where(Image.id == facts.c.id, Image.state == State.PENDING)
        .values(
            state=State.SCORED,
            state_since=NOW,
            **{column.key: facts.c[column.key] for column in FACTS},
        )
    )


def count_deaths(connection: Connection, when: ColumnElement[bool]) -> int:
    """Count the distinct images with a death whose lease ran out then."""
    counted = connection.scalar(select(func.count(LeaseRow.image_id.distinct())).where(DIED, when))
    return counted or 0


# Rows and values ----------------------------------------------------------------------------------


def _upload_columns(upload: Upload) -> dict[str, Any]:
    columns = asdict(upload)
    del columns["traceparent"], columns["raw_key"]
    columns["size_bytes"] = columns.pop("size")
    columns["claimed_sha256"] = columns.pop("sha256")
    return columns


def _new_row(row: KnownUpload) -> dict[str, Any]:
    return _upload_columns(row.upload) | {
        "id": row.image_id,
        "state": State.PENDING if row.live else State.WITHDRAWN,
        "reason": None if row.live else REMOVED,
    }


def _learnt(row: KnownUpload) -> dict[str, Any]:
    columns = _upload_columns(row.upload)
    return {"image_id": row.image_id} | {f"new_{name}": columns[name] for name in _LEARNT}


def upload_of(image: AnyRow) -> Upload:
    """Build an upload from its row."""
    return Upload(
        bucket=image.bucket,
        key=image.key,
        version_id=image.version_id,
        etag=image.etag,
        sequencer=image.sequencer,
        size=image.size_bytes,
        content_type=image.content_type,
        sha256=image.claimed_sha256,
        source=image.source,
        uploader=image.uploader,
        priority=image.priority,
        uploaded_at=image.uploaded_at,
    )


def fact_columns(facts: ImageFacts) -> dict[str, Any]:
    """Name the values of facts as columns of `images`; provenance has a table of its own."""
    columns = asdict(facts)
    columns["size_bytes"] = columns.pop("size")
    del columns["provenance"]
    return columns


#: Fields of a verdict that its row does not keep, or keeps under another name.
_NO_COLUMNS = {"facts", "error_map", "contributions", "outside", "tiles"}


def verdict_values(verdict: Verdict) -> dict[str, Any]:
    """Name the values of a verdict as columns of `verdicts`."""
    # Field by field, because asdict copies the mappings deeply and chokes on read-only ones.
    columns = {
        field.name: getattr(verdict, field.name)
        for field in fields(verdict)
        if field.name not in _NO_COLUMNS
    }
    columns["branches"] = dict(verdict.branches)
    columns["timings_ms"] = dict(verdict.timings_ms)
    columns["inapplicable_reason"] = verdict.outside
    columns["tiles"] = [tile.as_dict() for tile in verdict.tiles]
    return columns


def verdict_of(row: AnyRow) -> Verdict:
    """Build a verdict from its row joined with the facts of its image."""
    facts = ImageFacts(
        sha256=row.sha256,
        size=row.size_bytes,
        format=row.format,
        width=row.width,
        height=row.height,
        pdq=row.pdq,
        pdq_quality=row.pdq_quality,
    )
    columns = {
        field.name: getattr(row, field.name)
        for field in fields(Verdict)
        if field.name not in _NO_COLUMNS
    }
    told = {
        "facts": facts,
        "role": Role(row.role),
        "outside": row.inapplicable_reason,
        "tiles": tuple(TileLogit.from_dict(tile) for tile in row.tiles or ()),
    }
    return Verdict(**(columns | told))
