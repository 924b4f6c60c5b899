"""A bridge that takes its entries from a queue of SQS instead of the ingest list.

A message is deleted only after its uploads are committed and published, so a bridge that dies in
between leaves it to the next one, and doing it again changes nothing. What cannot be used is kept
in the same list of refused entries and deleted as well.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import structlog
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from redis.exceptions import RedisError

from detection.errors import SettingsError, TransientError
from worker.backoff import backoff_s
from worker.ingest.bridge import Bridge
from worker.ingest.waiting import WaitingEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.ingest.entries import Entry
    from worker.settings import Sqs

_log = structlog.get_logger(__name__)

#: SQS hands out no more at once.
BATCH = 10
#: How long a request waits for a message; a stop is noticed after it at the latest.
WAIT_S = 10
#: How long a message that must wait is hidden: this after its first try, twice that after its
#: second, and so on.
FIRST_DELAY_S = 15
LONGEST_DELAY_S = 900

_AMAZON = re.compile(r"(?:[\w-]+\.)?sqs(?:-fips)?\.([a-z0-9-]+)\.(?:vpce\.)?(?:amazonaws|api)\..+")


class QueueUnavailable(TransientError):
    """SQS did not answer or refused."""


class SqsBridge(Bridge):
    """One bridge on one queue; several may share it."""

    def __init__(self, *, queue_url: str, client: Any, **parts: Any) -> None:
        super().__init__(**parts)
        self._queue_url = queue_url
        self._client = client

    def step(self, *, wait_s: int = WAIT_S) -> int:
        """Work on one batch, waiting for its first message; return how many were done."""
        return self.intake(wait_s)

    def intake(self, wait_s: int = WAIT_S) -> int:
        """Work on one batch, waiting for its first message; return how many were done.

        A message that storage has to complete is asked for at once: until it is, it stays in the
        queue. Raises `TransientError` or `RedisError` when a service is away; nothing is lost by
        that.
        """
        answer = self._ask(
            lambda: self._client.receive_message(
                QueueUrl=self._queue_url,
                MaxNumberOfMessages=BATCH,
                WaitTimeSeconds=wait_s,
                MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
            )
        )
        messages = answer.get("Messages", [])
        if not messages:
            return 0
        bodies = [message["Body"].encode(errors="surrogatepass") for message in messages]
        read_at = time.monotonic()
        try:
            entries = self.take_in(bodies, publish=True, read_at=read_at)
            outcomes = [
                self._completed(entry, message, read_at=read_at)
                for entry, message in zip(entries, messages, strict=True)
            ]
        except (TransientError, RedisError):
            self._postpone(messages)
            raise
        answered = list(zip(messages, entries, outcomes, strict=True))
        for _, entry, waits_for in answered:
            if waits_for is None:
                self.note(entry)
        done = [message for message, _, waits_for in answered if waits_for is None]
        self._delete(done)
        self._postpone([message for message, _, waits_for in answered if waits_for is not None])
        if not done:
            raise next(waits_for for waits_for in outcomes if waits_for is not None)
        return len(done)

    def _completed(
        self, entry: Entry, message: dict[str, Any], *, read_at: float
    ) -> Exception | None:
        """Complete what a message leaves to; return what it must wait for, if anything."""
        attributes = message.get("Attributes", {})
        received = int(attributes.get("ApproximateReceiveCount", 1))
        since = int(attributes.get("SentTimestamp", 1000 * time.time())) / 1000
        waiting = [
            WaitingEvent(event=event, since=since, attempts=received - 1, tries=received - 1)
            for event in entry.incomplete
        ]
        outcomes = self._completion.complete(waiting, read_at=read_at)
        return next((error for error in outcomes if error is not None), None)

    def _delete(self, messages: list[dict[str, Any]]) -> None:
        if messages:
            self._settle(
                self._client.delete_message_batch,
                [_entry(index, message) for index, message in enumerate(messages)],
            )

    def _postpone(self, messages: list[dict[str, Any]]) -> None:
        """Hide messages for longer, the longer the more often they came."""
        if messages:
            self._settle(
                self._client.change_message_visibility_batch,
                [
                    _entry(index, message) | {"VisibilityTimeout": _delay_s(message)}
                    for index, message in enumerate(messages)
                ],
            )

    def _settle(self, call: Callable[..., Any], entries: list[dict[str, Any]]) -> None:
        answer = self._ask(lambda: call(QueueUrl=self._queue_url, Entries=entries))
        for failed in answer.get("Failed", []):
            # The message comes again, which changes nothing.
            _log.warning("sqs_message_unsettled", code=failed.get("Code"))

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            raise QueueUnavailable(
                f"SQS refused with {code}. Does the queue of --sqs exist, and may these keys "
                "receive and delete its messages and change their visibility?"
            ) from error
        except BotoCoreError as error:
            raise QueueUnavailable(f"SQS did not answer: {type(error).__name__}.") from error


def open_queue(url: str, settings: Sqs) -> Any:
    """Return a client of boto3 for the queue, whose URL names its server and mostly its region.

    Raises `SettingsError` for what is no address of a queue.
    """
    try:
        address = urlsplit(url)
        host, _ = address.hostname or "", address.port  # reading the port checks it
    except ValueError as error:
        raise SettingsError(f"--sqs {url!r} is not the URL of a queue") from error
    if address.scheme not in {"http", "https"} or not host or not address.path.strip("/"):
        raise SettingsError(
            f"--sqs {url!r} is not the URL of a queue, such as "
            "https://sqs.eu-west-1.amazonaws.com/123456789012/uploads"
        )
    amazon = _AMAZON.fullmatch(host)
    keys = (settings.access_key_id, settings.secret_access_key)
    key_id, secret = (None if key is None else key.get_secret_value() for key in keys)
    return boto3.session.Session().client(
        "sqs",
        endpoint_url=f"{address.scheme}://{address.netloc}",
        region_name=settings.region or (amazon[1] if amazon else "us-east-1"),
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        config=Config(
            connect_timeout=5,
            read_timeout=WAIT_S + 10,
            # The bridge itself tries again, ever more patiently.
            retries={"total_max_attempts": 1},
        ),
    )


def _entry(index: int, message: dict[str, Any]) -> dict[str, Any]:
    return {"Id": str(index), "ReceiptHandle": message["ReceiptHandle"]}


def _delay_s(message: dict[str, Any]) -> int:
    received = int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1))
    failures = max(received - 1, 0)
    return int(backoff_s(failures, first_s=FIRST_DELAY_S, longest_s=LONGEST_DELAY_S))
