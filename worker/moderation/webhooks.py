"""Signed webhooks out of the transactional outbox.

A message is written in the transaction that caused it, so it is sent if and only if that committed.
It is delivered at least once, in no promised order; the receiver knows repetitions by `webhook-id`.
Headers and signature are those of the Standard Webhooks specification (standardwebhooks.com):
`v1,` + base64 of HMAC-SHA256 over "<webhook-id>.<webhook-timestamp>.<body>".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import random
import time
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.request import HTTPRedirectHandler, Request, build_opener

import structlog
from sqlalchemy import case, func, select, update

from detection.errors import SettingsError
from worker.ledger.tables import OutboxMessage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Engine

    from worker.settings import Webhooks

_log = structlog.get_logger(__name__)

_SECRET_PREFIX = "whsec_"  # noqa: S105 - marks secrets, is none
#: How much of an answer is read; the status is all that counts.
_ANSWER_BYTES = 1024
_NOW = func.clock_timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxEntry:
    """One message of the outbox as people see it."""

    message_id: int
    topic: str
    payload: dict[str, Any]
    attempts: int
    created_at: datetime
    last_error: str | None


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would carry signed payloads to an address that nobody configured."""

    def redirect_request(self, *_arguments: object, **_named: object) -> None:
        return None


def sign(secret: str, *, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature of one delivery; `secret` is "whsec_" + base64.

    Raises `SettingsError` for a secret that is not base64.
    """
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error:
        message = "UNLATENT_WEBHOOKS__SECRET is not base64 (whsec_ + base64 of 24 to 64 bytes)"
        raise SettingsError(message) from None  # the cause could show the secret
    signed = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(signed.digest()).decode()


def verify_signature(
    secret: str, *, headers: dict[str, str], body: bytes, tolerance_s: float = 300.0
) -> bool:
    """Say whether a delivery is ours and fresh; for receivers, in constant time.

    `headers` have lower-case names. A receiver also refuses a `webhook-id` that it has seen.
    """
    try:
        timestamp = int(headers["webhook-timestamp"])
        message_id, given = headers["webhook-id"], headers["webhook-signature"]
    except (KeyError, ValueError):
        return False
    if abs(time.time() - timestamp) > tolerance_s:
        return False
    wanted = sign(secret, message_id=message_id, timestamp=timestamp, body=body)
    return any(hmac.compare_digest(wanted, one) for one in given.split(" "))


class Dispatcher:
    """Sends what is due. Any number may run at once; each message is one's at a time."""

    def __init__(self, engine: Engine, settings: Webhooks) -> None:
        if settings.url is None or settings.secret is None:
            raise SettingsError("UNLATENT_WEBHOOKS__URL and UNLATENT_WEBHOOKS__SECRET are not set")
        self._engine = engine
        self._settings = settings
        self._url = settings.url
        keys = (settings.secret, settings.previous_secret)
        self._secrets = [key.get_secret_value() for key in keys if key is not None]
        self._opener = build_opener(_NoRedirects)

    def send_due(self, *, limit: int = 100) -> int:
        """Try every message that is due, at most `limit`; return how many were delivered."""
        return sum(self._send(message) for message in self._take(limit))

    def _take(self, limit: int) -> Sequence[Any]:
        """Reserve due messages: another dispatcher sees them again only after our time-out."""
        due = (
            select(OutboxMessage.id)
            .where(_waiting(), OutboxMessage.next_attempt_at <= _NOW)
            .order_by(OutboxMessage.next_attempt_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        reserved = timedelta(seconds=(limit + 1) * self._settings.timeout_s)
        with self._engine.begin() as connection:
            return connection.execute(
                update(OutboxMessage)
                .where(OutboxMessage.id.in_(due.scalar_subquery()))
                .values(attempts=OutboxMessage.attempts + 1, next_attempt_at=_NOW + reserved)
                .returning(
                    OutboxMessage.id,
                    OutboxMessage.topic,
                    OutboxMessage.payload,
                    OutboxMessage.attempts,
                )
            ).all()

    def _send(self, message: Any) -> bool:
        error = self._post(message)
        values: dict[str, Any]
        if error is None:
            values = {"delivered_at": _NOW, "last_error": None}
        elif message.attempts >= self._settings.max_attempts:
            values = {"dead_at": _NOW, "last_error": error}
            _log.error("webhook_abandoned", message_id=message.id, topic=message.topic, error=error)
        else:
            delay_s = min(
                self._settings.backoff_s * 2 ** (message.attempts - 1),
                self._settings.backoff_max_s,
            ) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
            values = {
                "next_attempt_at": _NOW + timedelta(seconds=delay_s),
                "last_error": error,
            }
            _log.warning(
                "webhook_postponed",
                message_id=message.id,
                topic=message.topic,
                attempt=message.attempts,
                delay_s=delay_s,
                error=error,
            )
        with self._engine.begin() as connection:
            connection.execute(
                update(OutboxMessage).where(OutboxMessage.id == message.id).values(**values)
            )
        return error is None

    def _post(self, message: Any) -> str | None:
        """Deliver once; return what went wrong."""
        message_id = f"msg_{message.id}"
        timestamp = int(time.time())
        body = json.dumps(
            {"type": message.topic, "id": message_id, "data": message.payload},
            separators=(",", ":"),
            sort_keys=True,
        ).encode()
        signatures = [
            sign(secret, message_id=message_id, timestamp=timestamp, body=body)
            for secret in self._secrets
        ]
        request = Request(  # noqa: S310 - the settings allow http and https only
            self._url,
            data=body,
            method="POST",
            headers={
                "content-type": "application/json",
                "user-agent": "unlatent-webhooks/1",
                "webhook-id": message_id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": " ".join(signatures),
            },
        )
        try:
            with self._opener.open(request, timeout=self._settings.timeout_s) as answer:
                answer.read(_ANSWER_BYTES)
        # URLError, HTTPError and time-outs are OSErrors.
        except (OSError, HTTPException) as error:
            return f"{type(error).__name__}: {error}"[:500]
        return None


def dead_letters(engine: Engine, *, limit: int = 100) -> list[OutboxEntry]:
    """List messages that were given up, the latest first."""
    with engine.connect() as connection:
        rows = connection.execute(
            select(OutboxMessage.__table__)
            .where(OutboxMessage.dead_at.is_not(None))
            .order_by(OutboxMessage.dead_at.desc())
            .limit(limit)
        ).all()
    return [
        OutboxEntry(
            message_id=row.id,
            topic=row.topic,
            payload=row.payload,
            attempts=row.attempts,
            created_at=row.created_at,
            last_error=row.last_error,
        )
        for row in rows
    ]


def replay(
    engine: Engine,
    *,
    message_ids: Sequence[int] = (),
    since: datetime | None = None,
    dead: bool = False,
) -> int:
    """Send messages again under their old ids: named ones, all since a moment, or all dead ones.

    Return how many. With nothing chosen nothing is sent.
    """
    chosen: ColumnElement[bool] = OutboxMessage.id.in_(message_ids)
    if since is not None:
        chosen |= OutboxMessage.created_at >= since
    if dead:
        chosen |= OutboxMessage.dead_at.is_not(None)
    with engine.begin() as connection:
        replayed = connection.execute(
            update(OutboxMessage)
            .where(chosen)
            .values(
                attempts=0,
                next_attempt_at=_NOW,
                delivered_at=None,
                dead_at=None,
                last_error=None,
            )
        ).rowcount
        connection.execute(select(func.app.notify("unlatent_outbox", "")))
    return replayed


def outbox_counts(engine: Engine) -> dict[str, int]:
    """Count the outbox: waiting, delivered, dead."""
    state = case(
        (OutboxMessage.dead_at.is_not(None), "dead"),
        (OutboxMessage.delivered_at.is_not(None), "delivered"),
        else_="waiting",
    )
    with engine.connect() as connection:
        counted = connection.execute(select(state, func.count()).group_by(state)).all()
    return {"waiting": 0, "delivered": 0, "dead": 0} | {row[0]: row[1] for row in counted}


def _waiting() -> ColumnElement[bool]:
    return OutboxMessage.delivered_at.is_(None) & OutboxMessage.dead_at.is_(None)
