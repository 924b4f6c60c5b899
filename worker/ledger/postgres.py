"""The ledger over Postgres: every method is one transaction, every clock is Postgres'.

Rows of `images` are always locked in the order of their ids, so that overlapping batches wait for
each other and never deadlock; leases taken together skip what is locked. What adds or withdraws
rows of a key holds a lock on the key first: of two bridges, none misses what the other one does. An
open lease is a row with `closed_at IS NULL`; a unique index makes two open leases of one image
impossible, not merely unlikely.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy import ARRAY, Text, exists, func, literal, or_, select, true, update
from sqlalchemy.dialects.postgresql import insert

from worker.database.engine import LedgerUnavailable, transaction
from worker.ledger import provenance, statements
from worker.ledger.batched_leases import open_leases
from worker.ledger.identity import place
from worker.ledger.interface import (
    NEVER_PUBLISHED_GRACE,
    AlreadyDone,
    Backlog,
    DeathPolicy,
    HeldElsewhere,
    ImageFacts,
    Lease,
    LeaseOutcome,
    Purpose,
    Registration,
    Role,
    State,
    Verdict,
    removal_applies,
    truncate_detail,
)
from worker.ledger.statements import DIED, FACTS, LIVE, NOW
from worker.ledger.tables import Image, LeaseRow, VerdictRow
from worker.ledger.tables_moderation import Erasure, Review

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from sqlalchemy import Connection, Engine, Row, Select

    from worker.ledger.interface import Removal, Upload

    AnyRow = Row[*tuple[Any, ...]]

#: How often `register` looks again when a release that takes no locks inserted the same upload.
REGISTER_TRIES = 3


class _Connected:
    def __init__(self, engine: Engine, *, deaths: DeathPolicy | None = None) -> None:
        self._engine = engine
        self._deaths = deaths or DeathPolicy()


class _Uploads(_Connected):
    """The methods for bridge, producers and sweeper: uploads, removals, publication."""

    def register(self, uploads: Sequence[Upload]) -> list[Registration]:
        """Insert what is new; the answers are in the order of `uploads`."""
        if not uploads:
            return []
        addresses = {(upload.bucket, upload.key) for upload in uploads}
        with transaction(self._engine) as connection:
            statements.lock_addresses(connection, addresses)
            for _ in range(REGISTER_TRIES):
                rows = statements.find_uploads(connection, uploads)
                answers = place(uploads, rows, statements.find_removals(connection, addresses))
                if statements.store_uploads(connection, chain.from_iterable(rows.values())):
                    return answers
        raise LedgerUnavailable("others register the same uploads without a lock: try again")

    def withdraw(self, removals: Sequence[Removal]) -> int:
        """Move the rows of removed objects to `withdrawn`, and remember the removals."""
        if not removals:
            return 0
        addresses = {(removal.bucket, removal.key) for removal in removals}
        with transaction(self._engine) as connection:
            statements.lock_addresses(connection, addresses)
            statements.record_removals(connection, removals)
            rows = connection.execute(
                select(Image.id, Image.bucket, Image.key, Image.version_id, Image.sequencer)
                .where(statements.at(addresses), Image.state != State.WITHDRAWN)
                .order_by(Image.id)
                .with_for_update(key_share=True)
            )
            gone = [
                row.id
                for row in rows
                if any(
                    (row.bucket, row.key) == (removal.bucket, removal.key)
                    and removal_applies(removal, version_id=row.version_id, sequencer=row.sequencer)
                    for removal in removals
                )
            ]
            return statements.withdraw(connection, gone)

    def mark_published(self, image_ids: Sequence[UUID]) -> None:
        """Stamp the rows whose messages were just published."""
        with transaction(self._engine) as connection:
            statements.lock_images(connection, image_ids)
            connection.execute(
                update(Image).where(statements.among(Image.id, image_ids)).values(published_at=NOW)
            )

    def stale(self, *, published_before: timedelta, limit: int) -> list[Registration]:
        """Return pending rows that wait too long for a message, the longest waiting first."""
        waits = or_(
            Image.published_at < NOW - published_before,
            Image.published_at.is_(None)
            & (Image.state_since < NOW - min(published_before, NEVER_PUBLISHED_GRACE)),
        )
        leased = exists().where(LeaseRow.image_id == Image.id, LIVE)
        return self._registrations(
            select(Image)
            .where(Image.state == State.PENDING, waits, ~leased)
            .order_by(Image.published_at.asc().nulls_first())
            .limit(limit)
        )

    def rescorable(
        self, *, model_version: str, since: datetime | None, limit: int
    ) -> list[Registration]:
        """Return scored rows without a verdict of the model version, the newest first."""
        judged = exists().where(
            VerdictRow.image_id == Image.id, VerdictRow.model_version == model_version
        )
        recent = Image.created_at >= since if since else true()
        return self._registrations(
            select(Image)
            .where(Image.state == State.SCORED, recent, ~judged)
            .order_by(Image.created_at.desc())
            .limit(limit)
        )

    def reopen(self, *, reason: str, since: datetime, limit: int) -> list[Registration]:
        """Return failed or quarantined rows of that reason to `pending`, deaths forgiven."""
        with transaction(self._engine) as connection:
            chosen = connection.scalars(
                select(Image.id)
                .where(
                    Image.state.in_((State.FAILED, State.QUARANTINED)),
                    Image.reason == reason,
                    Image.state_since >= since,
                )
                .order_by(Image.id)
                .limit(limit)
                .with_for_update(skip_locked=True, key_share=True)
            ).all()
            rows = connection.execute(
                update(Image)
                .where(statements.among(Image.id, chosen))
                .values(
                    state=State.PENDING,
                    reason=None,
                    detail=None,
                    deaths=0,
                    published_at=None,
                    state_since=NOW,
                )
                .returning(Image.id, Image.priority)
            ).all()
        return [_unpublished(row) for row in rows]

    def _registrations(self, chosen: Select[Image]) -> list[Registration]:
        columns = chosen.with_only_columns(Image.id, Image.priority)
        with transaction(self._engine) as connection:
            return [_unpublished(row) for row in connection.execute(columns)]


class _Leases(_Connected):
    """The methods for a worker before it has a verdict, or when there will be none."""

    def lease(
        self, image_id: UUID, *, worker: str, duration: timedelta
    ) -> Lease | AlreadyDone | HeldElsewhere:
        """Take a pending image; quarantines one that killed its worker too often."""
        with transaction(self._engine) as connection:
            image = statements.lock_image(connection, image_id)
            if image.state != State.PENDING:
                return AlreadyDone(image_id=image_id, state=State(image.state))
            deaths = image.deaths + statements.record_deaths(connection, image_id)
            if deaths >= self._deaths.max_deaths and not self._others_died_too(
                connection, image_id
            ):
                statements.quarantine(connection, image_id, deaths)
                return AlreadyDone(image_id=image_id, state=State.QUARANTINED)
            return statements.open_lease(connection, image, deaths, worker, duration, Purpose.SCORE)

    def lease_together(
        self, image_ids: Sequence[UUID], *, worker: str, duration: timedelta
    ) -> list[Lease | None]:
        """Lease pending images without deaths, lease or lock by one statement; None for others."""
        with transaction(self._engine) as connection:
            taken = open_leases(connection, image_ids, worker=worker, duration=duration)
        return [taken.pop(image_id, None) for image_id in image_ids]

    def lease_for_rescore(
        self,
        image_id: UUID,
        *,
        model_version: str,
        worker: str,
        duration: timedelta,
        purpose: Purpose = Purpose.RESCORE,
    ) -> Lease | AlreadyDone | HeldElsewhere:
        """Take a scored image for another model version; one with too many deaths is refused."""
        with transaction(self._engine) as connection:
            image = statements.lock_image(connection, image_id)
            judged = connection.scalar(
                select(
                    exists().where(
                        VerdictRow.image_id == image_id, VerdictRow.model_version == model_version
                    )
                )
            )
            if image.state != State.SCORED or judged:
                return AlreadyDone(image_id=image_id, state=State(image.state))
            deaths = image.deaths + statements.record_deaths(connection, image_id)
            if deaths >= self._deaths.max_deaths:
                return AlreadyDone(image_id=image_id, state=State.SCORED)
            return statements.open_lease(
                connection, image, deaths, worker, duration, purpose, model_version
            )

    def release(self, lease: Lease, *, outcome: LeaseOutcome, detail: str = "") -> None:
        """Close the lease without ending the image."""
        with transaction(self._engine) as connection:
            statements.lock_images(connection, [lease.image_id])
            statements.close_lease(connection, [lease.lease_id], outcome, detail)

    def _others_died_too(self, connection: Connection, image_id: UUID) -> bool:
        """Say whether too many images died around this one's last death to blame it."""
        last = select(func.max(LeaseRow.until)).where(LeaseRow.image_id == image_id, DIED)
        moment = connection.scalar(last)
        if moment is None:
            return False
        window = self._deaths.window
        died = statements.count_deaths(
            connection, LeaseRow.until.between(moment - window, moment + window)
        )
        return died > self._deaths.max_in_window

    def end(
        self,
        lease: Lease,
        *,
        state: State,
        reason: str,
        detail: str,
        facts: ImageFacts | None = None,
    ) -> None:
        """End the image as failed or superseded with its reason, and close the lease."""
        learnt = statements.fact_columns(facts) if facts else {}
        with transaction(self._engine) as connection:
            statements.lock_images(connection, [lease.image_id])
            connection.execute(
                update(Image)
                .where(Image.id == lease.image_id, Image.state == State.PENDING)
                .values(
                    state=state,
                    reason=reason,
                    detail=truncate_detail(detail),
                    state_since=NOW,
                    **learnt,
                )
            )
            statements.close_lease(
                connection, [lease.lease_id], LeaseOutcome(state.value), f"{reason}: {detail}"
            )

    def backlog(self) -> Backlog:
        """Count what waits, what is in flight and what died lately."""
        pending = select(
            func.count(),
            func.coalesce(func.extract("epoch", NOW - func.min(Image.state_since)), 0.0),
        ).where(Image.state == State.PENDING)
        with transaction(self._engine) as connection:
            waiting, age_s = connection.execute(pending).one()
            leased = connection.scalar(select(func.count()).select_from(LeaseRow).where(LIVE))
            died = statements.count_deaths(connection, LeaseRow.until >= NOW - self._deaths.window)
        return Backlog(
            pending=waiting,
            leased=leased or 0,
            oldest_pending_age_s=float(age_s),
            recent_deaths=died,
            quarantine_paused=died > self._deaths.max_in_window,
        )


def _store(connection: Connection, verdicts: Sequence[Verdict]) -> None:
    """Store verdicts of images whose rows are locked, and end those that were pending."""
    stored = insert(VerdictRow).values([statements.verdict_values(v) for v in verdicts])
    connection.execute(
        stored.on_conflict_do_update(
            index_elements=["image_id", "model_version"],
            # The first verdict of a model stands; only what a shadow said becomes the champion's
            # word when the shadow has become champion.
            set_={"role": Role.CHAMPION},
            where=(stored.excluded.role == Role.CHAMPION) & (VerdictRow.role != Role.CHAMPION),
        )
    )
    if ending := [v for v in verdicts if v.role is Role.CHAMPION]:
        statements.end_as_scored(connection, {v.image_id: v.facts for v in ending})
    stated = {v.image_id: v.facts.provenance for v in verdicts}
    provenance.store_provenance(
        connection, {image_id: one for image_id, one in stated.items() if one}
    )


class _Verdicts(_Connected):
    """The methods for a worker with a verdict, or for one that the same bytes got before."""

    def reusable_verdicts(
        self, digests: Collection[str], *, model_version: str, intake_version: int
    ) -> dict[str, Verdict]:
        """Return by SHA-256 the verdicts of the same bytes, read and scored by these versions."""
        listed = func.unnest(literal(sorted(digests), ARRAY(Text())))
        wanted = listed.table_valued("sha256", name="wanted").render_derived()
        # One after another, each ends at its first row: some bytes are uploaded very often.
        first = (
            select(VerdictRow.__table__, *FACTS)
            .join(Image, Image.id == VerdictRow.image_id)
            .where(
                Image.sha256 == wanted.c.sha256,
                VerdictRow.model_version == model_version,
                VerdictRow.intake_version == intake_version,
            )
            .limit(1)
            .lateral("first")
        )
        with transaction(self._engine) as connection:
            rows = connection.execute(select(first).select_from(wanted.join(first, true()))).all()
        return {row.sha256: statements.verdict_of(row) for row in rows}

    def record(self, verdicts: Sequence[Verdict]) -> None:
        """Store verdicts, end their images and close their leases; twins in a batch count once."""
        if not verdicts:
            return
        unique = {(v.image_id, v.model_version): v for v in reversed(verdicts)}
        ordered = sorted(unique.values(), key=lambda verdict: verdict.image_id)
        with transaction(self._engine) as connection:
            kept = statements.lock_images(connection, [verdict.image_id for verdict in ordered])
            # Of an erased image nothing more is stored.
            ordered = [verdict for verdict in ordered if verdict.image_id in kept]
            if ordered:
                _store(connection, ordered)
            statements.close_lease(
                connection, {verdict.lease_id for verdict in verdicts}, LeaseOutcome.SCORED
            )

    def attach_evidence(self, image_id: UUID, *, model_version: str, uri: str) -> bool:
        """Note where a verdict's evidence lies; False when the image is to be erased."""
        with transaction(self._engine) as connection:
            attached = connection.execute(
                update(VerdictRow)
                .where(
                    VerdictRow.image_id == image_id,
                    VerdictRow.model_version == model_version,
                    ~exists().where(Erasure.image_id == image_id),
                )
                .values(evidence_uri=uri)
            )
        return attached.rowcount == 1

    def last_read(self) -> Upload | None:
        """Return the upload that was scored last and, as far as is known, is still stored."""
        with transaction(self._engine) as connection:
            row = connection.execute(
                select(Image.__table__)
                .join(VerdictRow, VerdictRow.image_id == Image.id)
                .where(
                    VerdictRow.role == Role.CHAMPION,
                    Image.state == State.SCORED,
                    Image.object_removed_at.is_(None),
                    Image.erased_at.is_(None),
                )
                .order_by(VerdictRow.scored_at.desc(), VerdictRow.id.desc())
                .limit(1)
            ).one_or_none()
        return None if row is None else statements.upload_of(row)

    def in_review(self, image_id: UUID) -> bool:
        """Say whether the image waits for a person to look at it."""
        open_review = exists().where(Review.image_id == image_id, Review.closed_at.is_(None))
        with transaction(self._engine) as connection:
            return bool(connection.scalar(select(open_review)))


class PostgresLedger(_Uploads, _Leases, _Verdicts):
    """`worker.ledger.interface.Ledger` over an engine of `worker.database.engine`."""


def _unpublished(row: AnyRow) -> Registration:
    return Registration(image_id=row.id, created=False, priority=row.priority, unpublished=True)
