"""The ledger behind HTTP: uploads in, where they stand out, and what people say of them.

A source sees its own uploads only. An upload is its bucket, key and version or etag, so what names
all of these may be sent again. Where storage is asked which object is meant, an `Idempotency-Key`
makes a repeated request the same image also when the object was replaced meanwhile.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import exc, select, text

from detection.score import distance_words
from worker.database.engine import LedgerUnavailable, transaction
from worker.database.refusals import read_refusal
from worker.ingest.completion import identified
from worker.ingest.events import EventFieldInvalid, Ignored, parse
from worker.ingest.shapes import fields
from worker.ledger.interface import Removal, Role, State, UnknownImage, Upload
from worker.ledger.tables import Image, VerdictRow
from worker.queue.publisher import QueueUnavailable
from worker.serving.problems import RequestRefused

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Engine

    from worker.ledger.interface import Ledger
    from worker.queue.publisher import Publisher
    from worker.storage.interface import Storage

_UNKNOWN = "This source has no image with this id."
#: What the database refuses for the image that is asked for; the rest would be a fault of ours.
_PASSED_ON = (404, 409)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The image that an upload is, and its state."""

    image_id: UUID
    state: str


class Uploads:
    """Every method raises `LedgerUnavailable` when Postgres is away; none is for an event loop."""

    def __init__(
        self,
        *,
        engine: Engine,
        ledger: Ledger,
        publisher: Publisher,
        storage: Storage,
        buckets: Collection[str],
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._publisher = publisher
        self._storage = storage
        self._buckets = buckets

    def add(
        self, told: Mapping[str, Any], *, source: str | None, idempotency_key: str | None = None
    ) -> Accepted:
        """Take one upload into the ledger; it ends in a terminal state from then on.

        `told` has the fields of our own event. Raises `EventError` for an upload that the bridge
        would refuse, `RequestRefused` for a key of another source or another request, and what
        storage raises when it must say which object is meant.
        """
        upload = self.read(told, source=source)
        if idempotency_key is not None:
            known = self._note(idempotency_key, told, source=upload.source)
            if known is not None:
                return self._accepted([known])[0]
        if not upload.etag and not upload.version_id:
            upload = self._identified(upload)
        accepted = self.register([upload])[0]
        if isinstance(accepted, RequestRefused):
            raise accepted
        if idempotency_key is not None:
            self._note_image(idempotency_key, accepted.image_id, source=upload.source)
        return accepted

    def read(self, told: Mapping[str, Any], *, source: str | None) -> Upload:
        """Return the upload that a body tells of; raises `EventError` or `RequestRefused`."""
        named = fields.text(dict(told), "source")
        if source is not None and named not in {None, source}:
            raise RequestRefused(
                f"The key is of source {source!r}, the upload names another.",
                status=403,
                reason="other_source",
            )
        values = {**told, "v": 1, "source": source or named or "default"}
        raw = json.dumps({name: value for name, value in values.items() if value is not None})
        (event,) = parse(raw.encode(), buckets=self._buckets)
        if isinstance(event, Ignored):
            raise EventFieldInvalid(f"this is not the name of an image ({event.reason})")
        if isinstance(event, Removal):
            raise EventFieldInvalid("a removal is no upload")
        return event

    def register(self, uploads: Sequence[Upload]) -> list[Accepted | RequestRefused]:
        """Commit uploads with an etag or a version, and send their messages.

        An object that another source has announced before is refused: it is that source's image.
        """
        registered = self._ledger.register(uploads)
        fresh = {
            one.image_id: replace(one, traceparent=upload.traceparent)
            for one, upload in zip(registered, uploads, strict=True)
            if one.unpublished
        }
        # Without the broker the rows are committed all the same: the sweeper publishes them.
        with suppress(QueueUnavailable):
            if fresh:
                self._publisher.publish(list(fresh.values()))
        rows = self._rows([one.image_id for one in registered if not one.created])
        answers: list[Accepted | RequestRefused] = []
        for one, upload in zip(registered, uploads, strict=True):
            state, source = rows.get(one.image_id, (State.PENDING, upload.source))
            if source == upload.source:
                answers.append(Accepted(image_id=one.image_id, state=state))
            else:
                answers.append(
                    RequestRefused(
                        "Another source has announced this object.",
                        status=409,
                        reason="other_source",
                    )
                )
        return answers

    def find(self, image_id: UUID, *, source: str | None) -> dict[str, Any]:
        """Return where an image stands, with its latest verdict; raises `UnknownImage`."""
        with transaction(self._engine) as connection:
            image = connection.execute(
                select(Image.state, Image.reason, Image.detail).where(*_seen(image_id, source))
            ).one_or_none()
            if image is None:
                raise UnknownImage(_UNKNOWN)
            latest = (
                select(VerdictRow.__table__)
                .where(VerdictRow.image_id == image_id, VerdictRow.role == Role.CHAMPION)
                .order_by(VerdictRow.scored_at.desc())
                .limit(1)
            )
            verdict = connection.execute(latest).mappings().one_or_none()
        return {
            "id": str(image_id),
            "state": image.state,
            "reason": image.reason,
            "detail": image.detail,
            "verdict": None if verdict is None else _written(dict(verdict)),
        }

    def appeal(self, image_id: UUID, note: str | None, *, source: str | None) -> UUID:
        """Open an appeal; raises `UnknownImage`, and `RequestRefused` while one is open."""
        return cast("UUID", self._say("app.appeal_by_source", image_id, note, source))

    def report(self, image_id: UUID, note: str | None, *, source: str | None) -> None:
        """Have a person look at an image that somebody reported; raises `UnknownImage`."""
        self._say("app.report_by_source", image_id, note, source)

    def _say(self, function: str, image_id: UUID, note: str | None, source: str | None) -> object:
        call = text(f"SELECT {function}(:image, :source, :note)")
        with _refusing(), transaction(self._engine) as connection:
            found = select(Image.source).where(*_seen(image_id, source))
            named = connection.execute(found).scalar()
            if named is None:
                raise UnknownImage(_UNKNOWN)
            values = {"image": image_id, "source": named, "note": note}
            return connection.execute(call, values).scalar()

    def _note(self, key: str, told: Mapping[str, Any], *, source: str) -> UUID | None:
        """Note a request under its key; return what the same request became before.

        Raises `RequestRefused` if another request has the key.
        """
        wanted = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()
        note = text("SELECT sha256, image_id FROM app.note_request(:source, :key, :sha256)")
        with transaction(self._engine) as connection:
            values = {"source": source, "key": key, "sha256": wanted}
            known = connection.execute(note, values).one()
        if known.sha256 != wanted:
            raise RequestRefused(
                "This Idempotency-Key was used for a different request.",
                status=422,
                reason="idempotency_key_reused",
            )
        return cast("UUID | None", known.image_id)

    def _note_image(self, key: str, image_id: UUID, *, source: str) -> None:
        note = text("SELECT app.note_request_image(:source, :key, :image)")
        with transaction(self._engine) as connection:
            connection.execute(note, {"source": source, "key": key, "image": image_id})

    def _identified(self, upload: Upload) -> Upload:
        """Ask storage which object of that key is meant."""
        facts = self._storage.head(upload.bucket, upload.key)
        moment = facts.modified_at.isoformat() if facts.modified_at else str(facts.size)
        return identified(upload, facts, moment=moment)

    def _accepted(self, images: Sequence[UUID]) -> list[Accepted]:
        rows = self._rows(images)
        return [Accepted(image_id=one, state=rows[one][0]) for one in images]

    def _rows(self, images: Sequence[UUID]) -> dict[UUID, tuple[str, str]]:
        """Return state and source of images."""
        if not images:
            return {}
        with transaction(self._engine) as connection:
            asked = select(Image.id, Image.state, Image.source).where(Image.id.in_(images))
            return {row.id: (row.state, row.source) for row in connection.execute(asked)}


def _seen(image_id: UUID, source: str | None) -> list[Any]:
    conditions = [Image.id == image_id, Image.erased_at.is_(None)]
    return conditions if source is None else [*conditions, Image.source == source]


def _written(verdict: Mapping[str, Any]) -> dict[str, Any]:
    outside = verdict["inapplicable_reason"]
    return {
        "score": verdict["score"],
        "label": verdict["label"],
        "distance": verdict["distance"],
        "distance_words": distance_words(verdict["label"], verdict["distance"], outside),
        "tier": verdict["tier"],
        "model_version": verdict["model_version"],
        "branches": verdict["branches"],
        "decided_by": verdict["decided_by"],
        "operating_point": verdict["operating_point"],
        "prior": verdict["prior"],
        "outside": outside,
        "frame": verdict["frame"],
        "scored_at": verdict["scored_at"].isoformat(),
    }


@contextmanager
def _refusing() -> Iterator[None]:
    """Translate what our functions refuse."""
    try:
        yield
    except (exc.DBAPIError, LedgerUnavailable) as error:
        refusal = read_refusal(error)
        if refusal is None or refusal.status not in _PASSED_ON:
            raise
        reason = "conflict" if refusal.status == 409 else UnknownImage.reason
        raise RequestRefused(refusal.message, status=refusal.status, reason=reason) from error
