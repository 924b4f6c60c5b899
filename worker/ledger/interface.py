"""The ledger seam: what the service asks of the table of uploads, and the values that cross it.

The ledger is the source of truth. From the commit of `register` on, every upload ends in exactly
one terminal state; queues only carry ids and may lose or repeat them. `worker.ledger.postgres` is
the real thing, `worker.ledger.memory` the shipped in-memory twin that unit tests use; one contract
test suite runs against both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Protocol

from detection.errors import PermanentError
from detection.intake.version import INTAKE_VERSION

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    import numpy as np
    from numpy.typing import NDArray

    from detection.intake.provenance import ProvenanceRecord
    from detection.score import TileLogit


class UnknownImage(PermanentError):
    """No row of the ledger has this id; acknowledge the message, there is nothing to end."""

    reason: ClassVar[str] = "unknown_image"


class State(StrEnum):
    """Where an upload stands; all but `PENDING` are terminal."""

    PENDING = "pending"
    SCORED = "scored"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"


class LeaseOutcome(StrEnum):
    """The outcome of a lease; the ledger itself closes an expired one as a `DEATH`.

    `UNREADABLE` is a retry because storage failed with this object while it gives others.
    """

    SCORED = "scored"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    RETRY = "retry"
    RELEASED = "released"
    UNREADABLE = "unreadable"
    DEATH = "death"


class Purpose(StrEnum):
    """The purpose of a lease."""

    SCORE = "score"
    RESCORE = "rescore"
    SHADOW = "shadow"


class Role(StrEnum):
    """The role of the model when it scored."""

    CHAMPION = "champion"
    SHADOW = "shadow"
    RESCORE = "rescore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One object that a producer says was stored; `worker.ledger.identity` says which are the same.

    `etag` is unquoted; at least one of `version_id` and `etag` is set before an upload is
    registered (the bridge completes it by HEAD). `sequencer` is S3's hexadecimal order of events
    for one key. `sha256` is the checksum the producer claims, hex, to be verified after the fetch.
    `traceparent` is the producer's trace, if it has one. `raw_key` is the key as the event writes
    it, where decoding changed it and the producer may not encode keys at all. The ledger keeps
    neither.
    """

    bucket: str
    key: str
    version_id: str | None = None
    etag: str | None = None
    sequencer: str | None = None
    size: int | None = None
    content_type: str | None = None
    sha256: str | None = None
    source: str = "default"
    uploader: str | None = None
    priority: bool = False
    uploaded_at: datetime | None = None
    traceparent: str | None = None
    raw_key: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """The result of one registration; `created` is False for duplicates and stale events.

    `unpublished` is True when the row is pending and no message was ever sent for it: the caller
    publishes it and then calls `mark_published`. `traceparent` is the trace that its message goes
    on with; the ledger does not know it.
    """

    image_id: UUID
    created: bool
    priority: bool = False
    unpublished: bool = False
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """An object that a producer says was removed; withdraws the rows it orders after.

    `raw_key` is as in `Upload`.
    """

    bucket: str
    key: str
    version_id: str | None = None
    sequencer: str | None = None
    raw_key: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right of one worker to work on one image until `until` (Postgres' clock).

    `alone` is True when the image has a death on record: it is decoded and run by itself, so that
    the next crash has one suspect. Every lease that a process holds when it dies counts as a death,
    so a worker that is handed such a lease while it holds others releases it, lets the others
    finish, and takes it again with nothing else in flight.

    Of the leases before it since the image became what it is (pending, when it is not rescored),
    `unreadable` were closed as such, and the first to be closed for another try was taken
    `retried_for` ago.
    """

    lease_id: int
    image_id: UUID
    upload: Upload
    attempt: int
    deaths: int
    alone: bool
    until: datetime
    unreadable: int = 0
    retried_for: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlreadyDone:
    """The answer to a lease request for an image that needs no work: acknowledge the message."""

    image_id: UUID
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldElsewhere:
    """The answer to a lease request for an image that another worker holds until `until`."""

    image_id: UUID
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """The facts that decoding found about an image; they go into its row beside the outcome.

    `provenance` is what the file says about its own origin, None where it could not be read; the
    ledger stores it with a verdict, beside it and apart from the image's row.
    """

    sha256: str
    size: int
    format: str
    width: int
    height: int
    pdq: bytes | None = None
    pdq_quality: int | None = None
    provenance: ProvenanceRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One row of `verdicts`: what one model version said of one image, and how it was computed.

    `intake_version` says how its bytes became pixels (`detection.intake.version`), and
    `thresholds_hold` whether the model's thresholds were measured on files read so.
    `outside` says why the image cannot be judged (see `detection.score.Score`), the row's
    `inapplicable_reason`, and `distance` how far the score is from the point of accusation, also
    None in rows of earlier releases. `frame` is the number of the frame that decided. `tiles` are
    what the aligned branch read, without any in rows of earlier releases. `error_map` and
    `contributions`, float32 (h, w), are what evidence is made from right after scoring; no row
    keeps them.
    """

    image_id: UUID
    lease_id: int
    facts: ImageFacts
    model_version: str
    role: Role
    score: float
    label: str
    branches: Mapping[str, float]
    decided_by: str
    operating_point: str
    prior: float
    device: str
    dtype: str
    intake_version: int = INTAKE_VERSION
    thresholds_hold: bool = True
    evidence_uri: str | None = None
    reused_from: UUID | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    error_map: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    contributions: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    outside: str | None = None
    frame: int = 0
    distance: float | None = None
    tiles: tuple[TileLogit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The images that wait or are in flight, for metrics, autoscaling, back-pressure and alerts.

    `recent_deaths` counts distinct images with a death in the last window; `quarantine_paused` is
    True while there are too many of them to blame the images: nothing is quarantined then.
    """

    pending: int
    leased: int
    oldest_pending_age_s: float
    recent_deaths: int = 0
    quarantine_paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeathPolicy:
    """When deaths quarantine an image, and when they are the worker's fault instead.

    An image with `max_deaths` deaths is quarantined unless more than `max_in_window` distinct
    images died within `window` of its last death.
    """

    max_deaths: int = 3
    window: timedelta = timedelta(minutes=5)
    max_in_window: int = 10


#: The `reason` of quarantined rows.
KILLED_WORKER = "killed_worker"

#: The `reason` of withdrawn rows.
REMOVED = "removed"

#: How long a pending row may wait for its first message before the sweeper sends one: longer than
#: a bridge takes from commit to publication.
NEVER_PUBLISHED_GRACE = timedelta(seconds=30)

#: Longest `detail` that a row keeps, in characters.
MAX_DETAIL = 2000


def truncate_detail(detail: str) -> str:
    """Shorten a detail to what a row keeps, without the one character that Postgres refuses."""
    return detail.replace("\0", "\N{REPLACEMENT CHARACTER}")[:MAX_DETAIL]


def sequencer_rank(sequencer: str) -> str:
    """Make S3 sequencers comparable: hexadecimal, padded with zeros on the right.

    So Amazon's guide has them compared: "Event message structure" in the S3 User Guide.
    """
    return sequencer.upper().ljust(64, "0")


def removal_applies(removal: Removal, *, version_id: str | None, sequencer: str | None) -> bool:
    """Say whether the removal takes away an object already in the ledger.

    Without a version it removes every version that is not known to be newer.
    """
    if removal.version_id not in (None, version_id):
        return False
    if removal.sequencer is None or sequencer is None:
        return True
    return sequencer_rank(sequencer) <= sequencer_rank(removal.sequencer)


def is_stale(upload: Upload, removal: Removal) -> bool:
    """Say whether a created event is known to be older than a removal that came before it.

    A version never comes back. Without one, only sequencers tell a late event from a new upload of
    the same key, so an event that has none counts as new.
    """
    if removal.version_id is not None:
        return removal.version_id == upload.version_id
    if removal.sequencer is None or upload.sequencer is None:
        return False
    return sequencer_rank(upload.sequencer) <= sequencer_rank(removal.sequencer)


class Ledger(Protocol):
    """Every method is one transaction; all raise `TransientError` when the database is away."""

    def register(self, uploads: Sequence[Upload]) -> list[Registration]:
        """Insert what is new, in one transaction; stale events change nothing.

        A duplicate only adds what its row lacks (`worker.ledger.identity`).
        """

    def withdraw(self, removals: Sequence[Removal]) -> int:
        """Move the rows of removed objects to `withdrawn`; return how many moved.

        Rows whose original retention removed stay as they are: their verdicts go on counting.
        """

    def mark_published(self, image_ids: Sequence[UUID]) -> None:
        """Stamp the rows whose messages were just published."""

    def lease(
        self, image_id: UUID, *, worker: str, duration: timedelta
    ) -> Lease | AlreadyDone | HeldElsewhere:
        """Take the image, counting unclosed expired leases as deaths.

        Quarantines (and returns `AlreadyDone`) at the third death, unless quarantining is paused
        because too many distinct images died in the window. Raises `UnknownImage`.
        """

    def lease_together(
        self, image_ids: Sequence[UUID], *, worker: str, duration: timedelta
    ) -> list[Lease | None]:
        """Lease the pending images without deaths, open lease or row lock, in the order given.

        For any other image, and for an id that was named before, the answer is None, and `lease`
        says why. Waits for nobody.
        """

    def lease_for_rescore(
        self,
        image_id: UUID,
        *,
        model_version: str,
        worker: str,
        duration: timedelta,
        purpose: Purpose = Purpose.RESCORE,
    ) -> Lease | AlreadyDone | HeldElsewhere:
        """Take a scored image that has no verdict of `model_version` yet."""

    def reusable_verdicts(
        self, digests: Collection[str], *, model_version: str, intake_version: int
    ) -> dict[str, Verdict]:
        """Return by SHA-256 the verdicts of the same bytes, read and scored by these versions."""

    def record(self, verdicts: Sequence[Verdict]) -> None:
        """Upsert verdicts, end their images and close their leases, in one transaction.

        A verdict whose image ended meanwhile (withdrawn, superseded) is stored, no state changes.
        """

    def attach_evidence(self, image_id: UUID, *, model_version: str, uri: str) -> bool:
        """Note where a verdict's evidence lies; False when the image is to be erased."""

    def last_read(self) -> Upload | None:
        """Return the upload that was scored last and, as far as is known, is still stored."""

    def in_review(self, image_id: UUID) -> bool:
        """Say whether the image waits for a person to look at it."""

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

    def release(self, lease: Lease, *, outcome: LeaseOutcome, detail: str = "") -> None:
        """Close the lease without ending the image (retry, shutdown, suspended worker)."""

    def stale(self, *, published_before: timedelta, limit: int) -> list[Registration]:
        """Return pending rows without a live lease whose last publication is older than that.

        A row that was never published (the queue was full, a bridge died) comes back much sooner.
        """

    def reopen(self, *, reason: str, since: datetime, limit: int) -> list[Registration]:
        """Return failed or quarantined rows of that reason to `pending`, deaths forgiven."""

    def rescorable(
        self, *, model_version: str, since: datetime | None, limit: int
    ) -> list[Registration]:
        """Return scored rows, uploaded since then, that have no verdict of `model_version`."""

    def backlog(self) -> Backlog:
        """Count what waits and what is in flight."""
