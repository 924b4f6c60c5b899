"""Messages of an SQS queue end in the ledger and are deleted only then."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from detection.errors import TransientError
from worker.ingest import sqs_bridge
from worker.ingest.bridge_metrics import BridgeMetrics
from worker.ingest.sqs_bridge import QueueUnavailable, SqsBridge, open_queue
from worker.ledger.postgres import PostgresLedger
from worker.queue.publisher import MemoryPublisher
from worker.storage.interface import ObjectFacts, StorageUnavailable
from worker.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis
    from sqlalchemy import Engine

    from worker.localstack import LocalStack
    from worker.settings import Settings


def own(key: str, **values: Any) -> str:
    """Return an event of our own shape, complete unless told otherwise."""
    return json.dumps({"v": 1, "bucket": "uploads", "key": key, "etag": "e"} | values)


class AwayStorage(MemoryStorage):
    """Object storage that cannot be asked while `away`."""

    away = False

    def head(self, bucket: str, key: str, *, version_id: str | None = None) -> ObjectFacts:
        """Ask for an object's facts."""
        if self.away:
            raise StorageUnavailable
        return super().head(bucket, key, version_id=version_id)


class Setting:
    """A queue of SQS, a bridge on it, and what the bridge works with."""

    def __init__(self, redis: Redis, engine: Engine, settings: Settings, url: str) -> None:
        self.redis = redis
        self.engine = engine
        self.url = url
        self.client = open_queue(url, settings.sqs)
        self.ledger = PostgresLedger(engine)
        self.publisher = MemoryPublisher(self.ledger)
        self.storage = AwayStorage(["uploads"])
        self.metrics = BridgeMetrics()
        self.rejected = settings.redis.key_prefix + "ingest:rejected"
        self.parts: dict[str, Any] = {
            "queue_url": url,
            "client": self.client,
            "redis": redis,
            "ledger": self.ledger,
            "publisher": self.publisher,
            "storage": self.storage,
            "buckets": ["uploads"],
            "settings": settings.redis,
            "storage_settings": settings.s3,
            "metrics": self.metrics,
            "name": "b1",
        }
        self.bridge = SqsBridge(**self.parts)

    def send(self, *bodies: str) -> None:
        """Send messages."""
        for body in bodies:
            self.client.send_message(QueueUrl=self.url, MessageBody=body)

    def left(self) -> tuple[int, int]:
        """Count the messages that can be had, and those that are hidden."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)
        visible, hidden = (int(answer["Attributes"][name]) for name in names)
        return visible, hidden

    def keys(self) -> list[str]:
        """Return the keys of all rows."""
        with self.engine.connect() as connection:
            return sorted(connection.scalars(text("SELECT key FROM app.images")))

    def count(self, name: str, **labels: str) -> float:
        """Read a counter."""
        value = self.metrics.registry.get_sample_value(f"unlatent_bridge_{name}_total", labels)
        return value or 0.0


@pytest.fixture
def setting(
    redis_client: Redis, engine: Engine, settings: Settings, stack: LocalStack
) -> Iterator[Setting]:
    """An empty queue whose messages are hidden for a minute once they are handed out."""
    url = f"{stack.s3.endpoint_url}/000000000000/test-{uuid4().hex}"
    client = open_queue(url, settings.sqs)
    client.create_queue(QueueName=url.rpartition("/")[2], Attributes={"VisibilityTimeout": "60"})
    yield Setting(redis_client, engine, settings, url)
    client.close()


def test_messages_become_rows_and_are_deleted(setting: Setting) -> None:
    """Bodies are read as entries of the ingest list are, and leave the queue once published."""
    event = {
        "eventVersion": "2.1",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "uploads"}, "object": {"key": "s3.jpg", "eTag": "e"}},
    }
    records = json.dumps({"Records": [event]})
    sns = {"Type": "Notification", "TopicArn": "arn", "Message": records}
    setting.send(own("own.jpg"), records, json.dumps(sns), own("clip.mp4"))
    assert setting.bridge.step() == 4
    assert setting.keys() == ["own.jpg", "s3.jpg"]
    assert setting.left() == (0, 0)
    assert len(setting.publisher.sent) == 2
    assert (setting.count("received"), setting.count("duplicates")) == (4, 1)
    assert setting.count("ignored", reason="extension") == 1
    assert setting.bridge.step(wait_s=0) == 0


def test_plain_keys_are_found_and_confirmations_are_logged(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store settles which key an event means; what an operator has to do is in the log."""
    setting.storage.put("uploads", "a+b.jpg", b"x", content_type="image/jpeg")
    stored = {"key": "a+b.jpg"}
    event = {
        "eventVersion": "2.2",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "uploads"}, "object": stored},
    }
    asks = {"Type": "SubscriptionConfirmation", "TopicArn": "arn", "SubscribeURL": "https://x.y/"}
    setting.send(json.dumps({"Records": [event]}), json.dumps(asks))
    assert setting.bridge.step() == 2
    assert setting.keys() == ["a+b.jpg"]
    assert setting.count("ignored", reason="subscription_confirmation") == 1
    assert "aws sns confirm-subscription" in capsys.readouterr().out


def test_amazons_keys_are_decoded_without_a_question(setting: Setting) -> None:
    """Where the store encodes every key, keys with spaces cost no HEAD."""
    event = {
        "eventVersion": "2.5",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "uploads"}, "object": {"key": "a+b.jpg", "eTag": "e"}},
    }
    setting.storage.away = True
    setting.send(json.dumps({"Records": [event]}))
    assert SqsBridge(plain_keys=False, **setting.parts).step() == 1
    assert setting.keys() == ["a b.jpg"]


def test_bad_messages_are_kept_with_their_reason_and_deleted(setting: Setting) -> None:
    """What cannot be used joins the list of refused entries; its neighbours go on."""
    setting.send("no json", own("good.jpg"), own("a.jpg", bucket="foreign"))
    assert setting.bridge.step() == 3
    assert setting.keys() == ["good.jpg"]
    assert setting.left() == (0, 0)
    notes = [json.loads(note) for note in setting.redis.lrange(setting.rejected, 0, -1)]
    assert {(note["reason"], note["entry"][:7]) for note in notes} == {
        ("not_json", "no json"),
        ("bucket_not_allowed", own("")[:7]),
    }


def test_what_must_wait_is_hidden_and_holds_nobody(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message whose object cannot be asked for comes again later; others are done at once."""
    monkeypatch.setattr(sqs_bridge, "FIRST_DELAY_S", 1)
    setting.storage.put("uploads", "later.jpg", b"x", content_type="image/jpeg")
    setting.storage.away = True
    setting.send(own("later.jpg", etag=None), own("now.jpg"))
    assert setting.bridge.step() == 1
    assert setting.keys() == ["now.jpg"]
    assert setting.left() == (0, 1)
    setting.storage.away = False
    # The bridge asked for a second, else the queue's own minute would outlast this wait.
    assert setting.bridge.step(wait_s=15) == 1
    assert setting.keys() == ["later.jpg", "now.jpg"]


def test_a_message_that_waits_alone_makes_the_bridge_wait(setting: Setting) -> None:
    """Then the store is away: asking on would only be load."""
    setting.storage.away = True
    setting.send(own("later.jpg", etag=None))
    with pytest.raises(StorageUnavailable):
        setting.bridge.step()
    assert setting.left() == (0, 1)


def test_nothing_is_deleted_while_the_ledger_is_away(setting: Setting, stack: LocalStack) -> None:
    """All messages of the batch stay in the queue."""
    setting.send(own("a.jpg"), "no json")
    stack.postgres.stop()
    with pytest.raises(TransientError):
        setting.bridge.step()
    assert setting.left() == (0, 2)
    assert setting.redis.llen(setting.rejected) == 0


def test_a_queue_that_is_not_there_is_named(setting: Setting) -> None:
    """The bridge waits for it and says what to look at."""
    setting.client.delete_queue(QueueUrl=setting.url)
    with pytest.raises(QueueUnavailable, match="Does the queue of --sqs exist"):
        setting.bridge.step(wait_s=0)
