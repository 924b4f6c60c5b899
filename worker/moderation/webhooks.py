"""Signed webhooks out of the transactional outbox.

A message is written in the transaction that caused it, so it is sent if and only if that committed:
a row for each endpoint, under one random id. It is delivered at least once, in no promised order;
the receiver knows repetitions by `webhook-id`. An endpoint that takes nothing for a stated time is
switched off, until a person switches it on.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.request import HTTPRedirectHandler, Request, build_opener
from uuid import UUID

import structlog
from sqlalchemy import all_, case, func, select, update
from sqlalchemy.dialects.postgresql import insert

from detection.errors import SettingsError
from worker.ledger.interface import State
from worker.ledger.tables import Image, OutboxMessage, WebhookEndpoint
from worker.ledger.tables_moderation import ConfigEntry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection, Engine

    from worker.settings import Webhooks

_log = structlog.get_logger(__name__)

#: The endpoint of UNLATENT_WEBHOOKS__URL.
MAIN = "main"
_SECRET_PREFIX = "whsec_"  # noqa: S105 - marks secrets, is none
#: How long the specification asks a secret to be, in bytes.
_SECRET_BYTES = range(24, 65)
#: How much of an answer is read; the status is all that counts.
_ANSWER_BYTES = 1024
_NOW = func.clock_timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxEntry:
    """One message of the outbox as people see it."""

    message_id: int
    endpoint: str
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
    """Return the signature of one delivery; `secret` is "whsec_" + base64 of 24 to 64 bytes.

    Raises `SettingsError` for a secret that is none.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.new(_key(secret), signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""  # the cause could show the secret
    if len(key) not in _SECRET_BYTES:
        raise SettingsError(
            "a secret of UNLATENT_WEBHOOKS__SECRET, __PREVIOUS_SECRET or __SECRETS is empty or not "
            "what the specification asks for: whsec_ + base64 of 24 to 64 random bytes"
        )
    return key


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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where messages go; every secret signs, so that a receiver may know either of two."""

    name: str
    url: str
    secrets: tuple[str, ...]


def endpoints(settings: Webhooks) -> list[Endpoint]:
    """Return every endpoint; raises `SettingsError` for one that has no secret to sign with."""
    found = []
    if settings.url is not None:
        kept = (settings.secret, settings.previous_secret)
        secrets = tuple(secret.get_secret_value() for secret in kept if secret is not None)
        found.append(Endpoint(MAIN, settings.url, secrets))
    for name, url in settings.endpoints.items():
        secret = settings.secrets.get(name)
        words = secret.get_secret_value().split() if secret is not None else []
        found.append(Endpoint(name, url, tuple(words)))
    if not found:
        raise SettingsError(
            "no endpoint is set: UNLATENT_WEBHOOKS__URL and UNLATENT_WEBHOOKS__SECRET name one"
        )
    for endpoint in found:
        if not endpoint.secrets:
            where = "SECRET" if endpoint.name == MAIN else f"SECRETS has none for {endpoint.name}"
            raise SettingsError(
                f"endpoint {endpoint.name} has no secret: UNLATENT_WEBHOOKS__{where}"
                + (" is not set" if endpoint.name == MAIN else "")
            )
        for word in endpoint.secrets:
            _key(word)
    return found


class Dispatcher:
    """Sends what is due. Any number may run at once; each message is one's at a time.

    Raises `SettingsError` for settings without an endpoint, or with a secret that is none.
    """

    def __init__(self, engine: Engine, settings: Webhooks) -> None:
        self._engine = engine
        self._settings = settings
        self.endpoints = {endpoint.name: endpoint for endpoint in endpoints(settings)}
        self._opener = build_opener(_NoRedirects)
        # Whatever one endpoint lets us wait, the others do not.
        self._pool = ThreadPoolExecutor(len(self.endpoints), thread_name_prefix="webhooks")
        self._draining: dict[str, Future[None]] = {}
        self._patience = timedelta(hours=settings.switch_off_hours)

    def wake(self) -> None:
        """Have every endpoint's due messages sent in the background, each endpoint by itself.

        Raises what ended the last sending.
        """
        for name in self.endpoints:
            last = self._draining.get(name)
            if last is not None and not last.done():
                continue  # it goes on until nothing is due
            if last is not None:
                last.result()
            self._draining[name] = self._pool.submit(self._drain, name)

    def _drain(self, endpoint: str) -> None:
        while self.send_due(endpoint=endpoint):
            pass

    def send_due(self, *, limit: int = 100, endpoint: str | None = None) -> int:
        """Try what is due, at most `limit` an endpoint; return how many were delivered."""
        names = list(self.endpoints) if endpoint is None else [endpoint]
        delivered = 0
        for name in names:
            for message in self._take(name, limit):
                if self._is_off(name):
                    break
                delivered += self._send(message)
        return delivered

    def _is_off(self, endpoint: str) -> bool:
        with self._engine.connect() as connection:
            return bool(connection.scalar(select(_switched_off(endpoint))))

    def give_up_unknown(self) -> int:
        """Give up what waits for endpoints that are in the settings no more; return how many.

        Whoever writes messages asks the database which endpoints there are, as `unlatent migrate`
        told it. This process may have older settings, or newer ones.
        """
        kept = func.string_to_array(
            func.coalesce(
                select(ConfigEntry.value)
                .where(ConfigEntry.name == "webhook_endpoints")
                .scalar_subquery(),
                MAIN,
            ),
            ",",
        )
        with self._engine.begin() as connection:
            return connection.execute(
                update(OutboxMessage)
                .where(_waiting(), OutboxMessage.endpoint != all_(kept))
                .values(dead_at=_NOW, last_error="this endpoint is not in the settings any more")
            ).rowcount

    def _take(self, endpoint: str, limit: int) -> Sequence[Any]:
        """Reserve due messages: another dispatcher sees them again only after our time-out."""
        due = (
            select(OutboxMessage.id)
            .where(
                _waiting(),
                OutboxMessage.next_attempt_at <= _NOW,
                OutboxMessage.endpoint == endpoint,
                ~_switched_off(endpoint),
            )
            .order_by(OutboxMessage.next_attempt_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        reserved = timedelta(seconds=(limit + 1) * self._settings.timeout_s)
        with self._engine.begin() as connection:
            taken = connection.execute(
                update(OutboxMessage)
                .where(OutboxMessage.id.in_(due.scalar_subquery()))
                .values(attempts=OutboxMessage.attempts + 1, next_attempt_at=_NOW + reserved)
                .returning(
                    OutboxMessage.id,
                    OutboxMessage.message_id,
                    OutboxMessage.endpoint,
                    OutboxMessage.topic,
                    OutboxMessage.payload,
                    OutboxMessage.attempts,
                )
            ).all()
            gone = _without_flag(connection, taken)
            connection.execute(
                update(OutboxMessage)
                .where(OutboxMessage.id.in_(gone))
                .values(dead_at=_NOW, last_error="its image is withdrawn, erased or failed by now")
            )
        return [message for message in taken if message.id not in gone]

    def _send(self, message: Any) -> bool:
        error = self._post(message)
        values: dict[str, Any]
        if error is None:
            # Somebody else may have given it up meanwhile.
            values = {"delivered_at": _NOW, "dead_at": None, "last_error": None}
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
                endpoint=message.endpoint,
                topic=message.topic,
                attempt=message.attempts,
                delay_s=delay_s,
                error=error,
            )
        with self._engine.begin() as connection:
            # The endpoint's row first: two that gave up its messages would wait for each other's.
            off = _judge(connection, message.endpoint, error, patience=self._patience)
            connection.execute(
                update(OutboxMessage).where(OutboxMessage.id == message.id).values(**values)
            )
            if off:
                connection.execute(
                    update(OutboxMessage)
                    .where(_waiting(), OutboxMessage.endpoint == message.endpoint)
                    .values(dead_at=_NOW, last_error=f"{message.endpoint} is switched off: {error}")
                )
        if off:
            _log.error("webhook_endpoint_switched_off", endpoint=message.endpoint, error=error)
        return error is None

    def _post(self, message: Any) -> str | None:
        """Deliver once; return what went wrong."""
        endpoint = self.endpoints[message.endpoint]
        # Rows that an earlier release wrote have no id of their own.
        message_id = message.message_id or f"msg_{message.id}"
        timestamp = int(time.time())
        body = json.dumps(
            {"type": message.topic, "id": message_id, "data": message.payload},
            separators=(",", ":"),
            sort_keys=True,
        ).encode()
        signatures = [
            sign(secret, message_id=message_id, timestamp=timestamp, body=body)
            for secret in endpoint.secrets
        ]
        request = Request(  # noqa: S310 - the settings allow http and https only
            endpoint.url,
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


def _judge(
    connection: Connection, endpoint: str, error: str | None, *, patience: timedelta
) -> bool:
    """Note whether an endpoint takes what it is sent; return whether it is switched off now.

    It is when it has failed for longer than `patience`, and not merely long ago: a quiet endpoint's
    first failure in half of that time begins another count.
    """
    if error is None:
        connection.execute(
            update(WebhookEndpoint)
            .where(WebhookEndpoint.name == endpoint, WebhookEndpoint.failing_since.is_not(None))
            .values(failing_since=None, failed_at=None, last_error=None)
        )
        return False
    failing = insert(WebhookEndpoint).values(
        name=endpoint, failing_since=_NOW, failed_at=_NOW, last_error=error
    )
    since = case(
        (WebhookEndpoint.failed_at > _NOW - patience / 2, WebhookEndpoint.failing_since),
        else_=_NOW,
    )
    connection.execute(
        failing.on_conflict_do_update(
            index_elements=["name"],
            set_={"failing_since": since, "failed_at": _NOW, "last_error": error},
        )
    )
    return bool(
        connection.execute(
            update(WebhookEndpoint)
            .where(
                WebhookEndpoint.name == endpoint,
                WebhookEndpoint.switched_off_at.is_(None),
                WebhookEndpoint.failing_since < _NOW - patience,
            )
            .values(switched_off_at=_NOW)
        ).rowcount
    )


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
            endpoint=row.endpoint,
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


def switch_on(engine: Engine, endpoint: str) -> bool:
    """Send to an endpoint again that was switched off; return False when it was not.

    What came meanwhile was given up, and is sent by `replay` with `dead`.
    """
    with engine.begin() as connection:
        return bool(
            connection.execute(
                update(WebhookEndpoint)
                .where(
                    WebhookEndpoint.name == endpoint, WebhookEndpoint.switched_off_at.is_not(None)
                )
                .values(switched_off_at=None, failing_since=None, failed_at=None, last_error=None)
            ).rowcount
        )


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


def _without_flag(connection: Connection, messages: Sequence[Any]) -> set[int]:
    """Return the ids of messages about a flag whose image nobody may act on any more."""
    flags = {
        message.id: UUID(message.payload["image_id"])
        for message in messages
        if message.topic == "verdict.flagged"
    }
    standing = set(
        connection.scalars(
            select(Image.id).where(
                Image.id.in_(flags.values()),
                Image.state.in_((State.SCORED, State.PENDING)),
                Image.erased_at.is_(None),
            )
        )
    )
    return {message for message, image in flags.items() if image not in standing}


def _switched_off(endpoint: str) -> ColumnElement[bool]:
    return (
        select(WebhookEndpoint.name)
        .where(WebhookEndpoint.name == endpoint, WebhookEndpoint.switched_off_at.is_not(None))
        .exists()
    )


def _waiting() -> ColumnElement[bool]:
    return OutboxMessage.delivered_at.is_(None) & OutboxMessage.dead_at.is_(None)
