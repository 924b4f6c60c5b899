"""The ledger in one process' memory, for tests of what stands on it; nothing survives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from threading import RLock
from typing import TYPE_CHECKING

from worker.ledger.identity import Address, KnownUpload, place
from worker.ledger.interface import (
    KILLED_WORKER,
    NEVER_PUBLISHED_GRACE,
    REMOVED,
    AlreadyDone,
    Backlog,
    DeathPolicy,
    HeldElsewhere,
    ImageFacts,
    Lease,
    LeaseOutcome,
    Purpose,
    Registration,
    Removal,
    Role,
    State,
    UnknownImage,
    Upload,
    Verdict,
    removal_applies,
    truncate_detail,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from uuid import UUID


@dataclass(slots=True)
class MemoryImage:
    """The state of one upload in the ledger; tests may read it."""

    image_id: UUID
    upload: Upload
    created_at: datetime
    state_since: datetime
    state: State = State.PENDING
    reason: str | None = None
    detail: str | None = None
    facts: ImageFacts | None = None
    published_at: datetime | None = None
    deaths: int = 0

    def move(self, state: State, *, reason: str | None = None, detail: str | None = None) -> None:
        """Change the state and remember since when and why."""
        self.state, self.reason, self.detail = state, reason, detail
        self.state_since = _now()


@dataclass(slots=True)
class MemoryLease:
    """One attempt; `outcome` is None while it is open."""

    image_id: UUID
    since: datetime
    until: datetime
    outcome: LeaseOutcome | None = None

    @property
    def died(self) -> bool:
        """True when it was closed as a death or ran out unclosed."""
        return self.outcome is LeaseOutcome.DEATH or (self.outcome is None and self.until <= _now())

    @property
    def live(self) -> bool:
        """True while a worker may be at it."""
        return self.outcome is None and self.until > _now()


class _Rows:
    def __init__(self, *, deaths: DeathPolicy | None = None) -> None:
        self._deaths = deaths or DeathPolicy()
        self._lock = RLock()
        self._removals: list[Removal] = []
        self.images: dict[UUID, MemoryImage] = {}
        self.leases: dict[int, MemoryLease] = {}
        self.verdicts: dict[tuple[UUID, str], Verdict] = {}
        self.reviews: set[UUID] = set()

    def _close_lease(self, lease_id: int, outcome: LeaseOutcome) -> None:
        lease = self.leases[lease_id]
        if lease.outcome is LeaseOutcome.DEATH:
            image = self.images[lease.image_id]
            image.deaths = max(image.deaths - 1, 0)
        if lease.outcome in {None, LeaseOutcome.DEATH}:
            lease.outcome = outcome


class _Uploads(_Rows):
    """The methods for bridge, producers and sweeper: uploads, removals, publication."""

    def register(self, uploads: Sequence[Upload]) -> list[Registration]:
        """Insert what is new; the answers are in the order of `uploads`."""
        with self._lock:
            rows: dict[Address, list[KnownUpload]] = {(one.bucket, one.key): [] for one in uploads}
            for image in self.images.values():
                address = image.upload.bucket, image.upload.key
                if address in rows:
                    rows[address].append(_known(image))
            removals: dict[Address, list[Removal]] = {}
            for removal in self._removals:
                removals.setdefault((removal.bucket, removal.key), []).append(removal)
            answers = place(uploads, rows, removals)
            for row in chain.from_iterable(rows.values()):
                self._store(row)
            return answers

    def _store(self, row: KnownUpload) -> None:
        if row.new:
            now = _now()
            self.images[row.image_id] = MemoryImage(
                image_id=row.image_id, upload=row.upload, created_at=now, state_since=now
            )
        elif not row.changed:
            return
        image = self.images[row.image_id]
        image.upload = row.upload
        if row.hurried:
            image.published_at = None
        if not row.live:
            image.move(State.WITHDRAWN, reason=REMOVED)

    def withdraw(self, removals: Sequence[Removal]) -> int:
        """Move the rows of removed objects to `withdrawn`, and remember the removals."""
        with self._lock:
            self._removals.extend(removals)
            gone = [
                image
                for image in self.images.values()
                if image.state is not State.WITHDRAWN
                and any(
                    (removal.bucket, removal.key) == (image.upload.bucket, image.upload.key)
                    and removal_applies(
                        removal,
                        version_id=image.upload.version_id,
                        sequencer=image.upload.sequencer,
                    )
                    for removal in removals
                )
            ]
            for image in gone:
                image.move(State.WITHDRAWN, reason=REMOVED)
            return len(gone)

    def mark_published(self, image_ids: Sequence[UUID]) -> None:
        """Stamp the rows whose messages were just published."""
        with self._lock:
            for image_id in image_ids:
                self.images[image_id].published_at = _now()

    def stale(self, *, published_before: timedelta, limit: int) -> list[Registration]:
        """Return pending rows that wait too long for a message, the longest waiting first."""
        now = _now()
        grace = min(published_before, NEVER_PUBLISHED_GRACE)
        with self._lock:
            leased = {lease.image_id for lease in self.leases.values() if lease.live}
            waiting = [
                image
                for image in self.images.values()
                if image.state is State.PENDING
                and image.image_id not in leased
                and (
                    image.state_since < now - grace
                    if image.published_at is None
                    else image.published_at < now - published_before
                )
            ]
        waiting.sort(key=lambda image: image.published_at or datetime.min.replace(tzinfo=UTC))
        return _unpublished(waiting[:limit])

    def reopen(self, *, reason: str, since: datetime, limit: int) -> list[Registration]:
        """Return failed or quarantined rows of that reason to `pending`, deaths forgiven."""
        with self._lock:
            chosen = [
                image
                for image in self.images.values()
                if image.state in {State.FAILED, State.QUARANTINED}
                and image.reason == reason
                and image.state_since >= since
            ][:limit]
            for image in chosen:
                image.deaths, image.published_at = 0, None
                image.move(State.PENDING)
            return _unpublished(chosen)

    def rescorable(
        self, *, model_version: str, since: datetime | None, limit: int
    ) -> list[Registration]:
        """Return scored rows without a verdict of the model version, the newest first."""
        with self._lock:
            chosen = [
                image
                for image in self.images.values()
                if image.state is State.SCORED
                and (image.image_id, model_version) not in self.verdicts
                and (since is None or image.created_at >= since)
            ]
        chosen.sort(key=lambda image: image.created_at, reverse=True)
        return _unpublished(chosen[:limit])


class _Leases(_Rows):
    """The methods for a worker before it has a verdict, or when there will be none."""

    def lease(
        self, image_id: UUID, *, worker: str, duration: timedelta
    ) -> Lease | AlreadyDone | HeldElsewhere:
        """Take a pending image; quarantines one that killed its worker too often."""
        del worker
        with self._lock:
            image = self._image(image_id)
            if image.state is not State.PENDING:
                return AlreadyDone(image_id=image_id, state=image.state)
            self._record_deaths(image)
            if image.deaths >= self._deaths.max_deaths and not self._others_died_too(image_id):
                image.move(
                    State.QUARANTINED,
                    reason=KILLED_WORKER,
                    detail=f"{image.deaths} workers died while they held this image",
                )
                return AlreadyDone(image_id=image_id, state=State.QUARANTINED)
            return self._open_lease(image, duration)

    def lease_together(
        self, image_ids: Sequence[UUID], *, worker: str, duration: timedelta
    ) -> list[Lease | None]:
        """Lease the pending images without deaths or open lease; None for the others."""
        del worker
        with self._lock:
            return [self._lease_if_plain(image_id, duration) for image_id in image_ids]

    def _lease_if_plain(self, image_id: UUID, duration: timedelta) -> Lease | None:
        image = self.images.get(image_id)
        if image is None or image.state is not State.PENDING or image.deaths:
            return None
        answer = self._open_lease(image, duration)
        return answer if isinstance(answer, Lease) else None

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
        del worker, purpose
        with self._lock:
            image = self._image(image_id)
            if image.state is not State.SCORED or (image_id, model_version) in self.verdicts:
                return AlreadyDone(image_id=image_id, state=image.state)
            self._record_deaths(image)
            if image.deaths >= self._deaths.max_deaths:
                return AlreadyDone(image_id=image_id, state=State.SCORED)
            return self._open_lease(image, duration)

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
        with self._lock:
            image = self.images[lease.image_id]
            if image.state is State.PENDING:
                image.facts = facts or image.facts
                image.move(state, reason=reason, detail=truncate_detail(detail))
            self._close_lease(lease.lease_id, LeaseOutcome(state.value))

    def release(self, lease: Lease, *, outcome: LeaseOutcome, detail: str = "") -> None:
        """Close the lease without ending the image."""
        del detail
        with self._lock:
            self._close_lease(lease.lease_id, outcome)

    def backlog(self) -> Backlog:
        """Count what waits, what is in flight and what died lately."""
        now = _now()
        with self._lock:
            waits = [i.state_since for i in self.images.values() if i.state is State.PENDING]
            died = self._count_deaths(since=now - self._deaths.window, until=now)
            return Backlog(
                pending=len(waits),
                leased=sum(lease.live for lease in self.leases.values()),
                oldest_pending_age_s=(now - min(waits, default=now)).total_seconds(),
                recent_deaths=died,
                quarantine_paused=died > self._deaths.max_in_window,
            )

    def _image(self, image_id: UUID) -> MemoryImage:
        try:
            return self.images[image_id]
        except KeyError as error:
            raise UnknownImage(f"image {image_id} is not in the ledger") from error

    def _record_deaths(self, image: MemoryImage) -> None:
        for lease in self.leases.values():
            if lease.image_id == image.image_id and lease.outcome is None and lease.died:
                lease.outcome = LeaseOutcome.DEATH
                image.deaths += 1

    def _open_lease(self, image: MemoryImage, duration: timedelta) -> Lease | HeldElsewhere:
        mine = [lease for lease in self.leases.values() if lease.image_id == image.image_id]
        for lease in mine:
            if lease.outcome is None:
                return HeldElsewhere(image_id=image.image_id, until=lease.until)
        now = _now()
        until = now + duration
        tried = [lease for lease in mine if lease.since >= image.state_since]
        unreadable = [lease for lease in tried if lease.outcome is LeaseOutcome.UNREADABLE]
        retried = [lease.since for lease in tried if lease.outcome is LeaseOutcome.RETRY]
        retried += [lease.since for lease in unreadable]
        lease_id = len(self.leases) + 1
        self.leases[lease_id] = MemoryLease(image_id=image.image_id, since=now, until=until)
        return Lease(
            lease_id=lease_id,
            image_id=image.image_id,
            upload=image.upload,
            attempt=len(mine) + 1,
            deaths=image.deaths,
            alone=image.deaths > 0,
            until=until,
            unreadable=len(unreadable),
            retried_for=now - min(retried, default=now),
        )

    def _others_died_too(self, image_id: UUID) -> bool:
        ends = [e.until for e in self.leases.values() if e.image_id == image_id and e.died]
        window = self._deaths.window
        died = self._count_deaths(since=max(ends) - window, until=max(ends) + window)
        return died > self._deaths.max_in_window

    def _count_deaths(self, *, since: datetime, until: datetime) -> int:
        return len(
            {
                lease.image_id
                for lease in self.leases.values()
                if lease.died and since <= lease.until <= until
            }
        )


class _Verdicts(_Rows):
    """The methods for a worker with a verdict, or for one that the same bytes got before."""

    def reusable_verdicts(
        self, digests: Collection[str], *, model_version: str, intake_version: int
    ) -> dict[str, Verdict]:
        """Return by SHA-256 the verdicts of the same bytes, read and scored by these versions."""
        found: dict[str, Verdict] = {}
        with self._lock:
            for (image_id, version), verdict in self.verdicts.items():
                facts = self.images[image_id].facts
                same = (version, verdict.intake_version) == (model_version, intake_version)
                if facts and facts.sha256 in digests and same:
                    found.setdefault(facts.sha256, verdict)
        return found

    def record(self, verdicts: Sequence[Verdict]) -> None:
        """Store verdicts, end their images and close their leases."""
        with self._lock:
            for verdict in verdicts:
                key = verdict.image_id, verdict.model_version
                first = self.verdicts.setdefault(key, verdict)
                image = self.images[verdict.image_id]
                if verdict.role is Role.CHAMPION:
                    self.verdicts[key] = replace(first, role=Role.CHAMPION)
                    if image.state is State.PENDING:
                        image.facts = verdict.facts
                        image.move(State.SCORED)
                self._close_lease(verdict.lease_id, LeaseOutcome.SCORED)

    def attach_evidence(self, image_id: UUID, *, model_version: str, uri: str) -> bool:
        """Note where a verdict's evidence lies; nothing is ever erased here."""
        with self._lock:
            known = self.verdicts.get((image_id, model_version))
            if known is None:
                return False
            self.verdicts[image_id, model_version] = replace(known, evidence_uri=uri)
            return True

    def last_read(self) -> Upload | None:
        """Return the upload that was scored last."""
        with self._lock:
            scored = [image for image in self.images.values() if image.state is State.SCORED]
        if not scored:
            return None
        return max(scored, key=lambda image: image.state_since).upload

    def in_review(self, image_id: UUID) -> bool:
        """Say whether the image waits for a person; nobody but `reviews` says so here."""
        return image_id in self.reviews


class MemoryLedger(_Uploads, _Leases, _Verdicts):
    """`worker.ledger.interface.Ledger` for threads of one process."""


def _now() -> datetime:
    return datetime.now(UTC)


def _known(image: MemoryImage) -> KnownUpload:
    return KnownUpload(
        image_id=image.image_id,
        upload=image.upload,
        live=image.state is not State.WITHDRAWN,
        pending=image.state is State.PENDING,
        published=image.published_at is not None,
    )


def _unpublished(images: Iterable[MemoryImage]) -> list[Registration]:
    return [
        Registration(
            image_id=image.image_id,
            created=False,
            priority=image.upload.priority,
            unpublished=True,
        )
        for image in images
    ]
