"""Uploads by HTTP: rows and messages, keys of requests, waiting, and whose image it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text

from tests.support.serving.http_service import in_thread
from worker.ledger.interface import State
from worker.ledger.tables import Image
from worker.queue.broker_state import RedisBrokerState
from worker.serving.problems import MEDIA_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg
    from sqlalchemy import Engine

    from tests.support.serving.http_service import Rig
    from worker.localstack import LocalStack
    from worker.settings import Settings

OTHER = {"Authorization": "Bearer app-key"}
LINES = {"Content-Type": "application/jsonl"}


@pytest.fixture
def upload(settings: Settings) -> Callable[..., dict[str, Any]]:
    """Tell of uploads to this test's bucket."""

    def tell(key: str = "cat.jpg", **fields: Any) -> dict[str, Any]:
        return {"bucket": settings.s3.buckets[0], "key": key, "etag": "e1"} | fields

    return tell


def row(engine: Engine, image_id: str) -> Any:
    """Return the ledger's row of an image."""
    with engine.begin() as connection:
        return connection.execute(select(Image.__table__).where(Image.id == UUID(image_id))).one()


def test_an_upload_is_one_row_and_one_message(
    rig: Rig, upload: Callable[..., dict[str, Any]], engine: Engine, settings: Settings
) -> None:
    """202 means a row of the key's source and a message; the same upload again is the same row."""
    told = upload(uploader="anna", priority=True, content_type="image/jpeg")
    answers = [rig.client.post("/v1/images", json=told) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202] * 3
    (image_id,) = {answer.json()["id"] for answer in answers}
    assert answers[0].headers["Location"] == f"/v1/images/{image_id}"
    found = row(engine, image_id)
    assert (found.source, found.uploader, found.priority) == ("web", "anna", True)
    assert (found.state, found.etag) == (State.PENDING, "e1")
    assert found.published_at is not None
    assert RedisBrokerState(settings.redis).waiting() == 1


def test_without_the_broker_an_upload_is_still_taken(
    rig: Rig, upload: Callable[..., dict[str, Any]], engine: Engine, stack: LocalStack
) -> None:
    """While Redis is away the row is committed without a message, for the sweeper to send."""
    stack.redis.kill()
    answer = rig.client.post("/v1/images", json=upload())
    assert answer.status_code == 202
    assert row(engine, answer.json()["id"]).published_at is None


def test_without_the_ledger_nothing_is_promised(
    rig: Rig, upload: Callable[..., dict[str, Any]], stack: LocalStack
) -> None:
    """While Postgres is away an upload gets 503 and when to come again."""
    stack.postgres.kill()
    answer = rig.client.post("/v1/images", json=upload())
    assert (answer.status_code, answer.json()["reason"]) == (503, "unavailable")
    assert answer.headers["Retry-After"]


def test_an_upload_without_etag_is_completed_by_storage(
    rig: Rig, upload: Callable[..., dict[str, Any]], engine: Engine, s3_client: Any
) -> None:
    """Storage says which object a key means, and 404 says that there is none."""
    told = upload("a.jpg", etag=None)
    missing = rig.client.post("/v1/images", json=told)
    assert (missing.status_code, missing.json()["reason"]) == (404, "object_missing")
    put = s3_client.put_object(
        Bucket=told["bucket"], Key="a.jpg", Body=b"abc", ContentType="image/jpeg"
    )
    found = row(engine, rig.client.post("/v1/images", json=told).json()["id"])
    assert (found.etag, found.content_type) == (put["ETag"].strip('"'), "image/jpeg")


def test_one_key_is_one_request(
    rig: Rig, upload: Callable[..., dict[str, Any]], superuser: psycopg.Connection
) -> None:
    """A repeated key gets the same image, another request under it 422, and a day frees it."""
    key = {"Idempotency-Key": "once"}
    first = rig.client.post("/v1/images", json=upload(), headers=key)
    again = rig.client.post("/v1/images", json=upload(), headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    other = rig.client.post("/v1/images", json=upload("dog.jpg"), headers=key)
    assert (other.status_code, other.json()["reason"]) == (422, "idempotency_key_reused")
    elsewhere = rig.client.post("/v1/images", json=upload("bird.jpg"), headers=key | OTHER)
    assert elsewhere.status_code == 202
    superuser.execute(
        "INSERT INTO app.request_keys (source, key, sha256, at) SELECT 'web', 'old' || n, '',"
        " now() - interval '30 hours' FROM generate_series(1, 20) n"
    )
    superuser.execute("UPDATE app.request_keys SET at = at - interval '25 hours'")
    later = rig.client.post("/v1/images", json=upload("dog.jpg"), headers=key)
    assert later.status_code == 202


def test_a_repeated_key_is_the_same_image_also_of_a_replaced_object(
    rig: Rig, upload: Callable[..., dict[str, Any]], s3_client: Any
) -> None:
    """The object that a key meant was replaced meanwhile: the repeat answers the first image."""
    told, key = upload("a.jpg", etag=None), {"Idempotency-Key": "once"}
    ids = []
    for body, headers in ((b"one", key), (b"two", key), (b"two", {})):
        s3_client.put_object(Bucket=told["bucket"], Key="a.jpg", Body=body)
        ids.append(rig.client.post("/v1/images", json=told, headers=headers).json()["id"])
    assert ids[0] == ids[1] != ids[2]


def test_an_object_is_of_the_source_that_announced_it_first(
    rig: Rig, upload: Callable[..., dict[str, Any]]
) -> None:
    """Another source is not told about it, neither by one upload nor in a batch."""
    assert rig.client.post("/v1/images", json=upload()).status_code == 202
    other = rig.client.post("/v1/images", json=upload(), headers=OTHER)
    assert (other.status_code, other.json()["reason"]) == (409, "other_source")
    assert "id" not in other.json()
    lines = f"{json.dumps(upload())}\n{json.dumps(upload('b.jpg'))}"
    answer = rig.client.post("/v1/batches", content=lines, headers=OTHER | LINES)
    told = [json.loads(line) for line in answer.text.splitlines()]
    assert [one.get("reason") for one in told] == ["other_source", None]


@pytest.mark.parametrize(
    "path", ["/v1/images", "/v1/images/{id}/appeals", "/v1/images/{id}/reports"]
)
def test_a_body_is_read_after_the_key_and_within_its_limit(
    path: str, rig: Rig, scored: Callable[..., UUID]
) -> None:
    """Without a key nothing of a body is said; with one, what is no JSON or too long is refused."""
    address = path.format(id=scored(0.99))
    kind = {"Content-Type": "application/json"}
    wrong = rig.client.post(address, content=b"{", headers={"Authorization": "Bearer no"} | kind)
    assert wrong.status_code == 401
    for body, headers, status in (
        (b"{", kind, 422),
        (b"[" * 5000, kind, 422),
        (b'{"text": "\\u0000"}', kind, 422),
        (b"x" * 70_000, kind, 413),
        (b"{}", {"Content-Type": "text/plain"}, 415),
    ):
        answer = rig.client.post(address, content=body, headers=headers)
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, MEDIA_TYPE), body


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"bucket": "other"}, 403, "bucket_not_allowed"),
        ({"source": "app"}, 403, "other_source"),
        ({"key": "notes.txt", "content_type": "text/html"}, 422, "invalid_field"),
        ({"key": ""}, 422, "invalid_field"),
        ({"sha256": "abc"}, 422, "invalid_field"),
        ({"url": "http://elsewhere.example"}, 422, "request_invalid"),
        ({"priority": "perhaps"}, 422, "request_invalid"),
    ],
)
def test_an_upload_that_the_bridge_would_refuse_is_refused(
    fields: dict[str, Any],
    status: int,
    reason: str,
    rig: Rig,
    upload: Callable[..., dict[str, Any]],
    engine: Engine,
) -> None:
    """What cannot become a row gets a problem, and leaves nothing behind."""
    answer = rig.client.post("/v1/images", json=upload(**fields))
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM app.images")).scalar() == 0


def test_where_an_image_stands_is_told_to_its_source_only(
    rig: Rig, scored: Callable[..., UUID]
) -> None:
    """The verdict comes with its tier; to another source the image does not exist."""
    image_id = scored(0.97, distance=1.5)
    told = rig.client.get(f"/v1/images/{image_id}").json()
    assert (told["id"], told["state"]) == (str(image_id), "scored")
    verdict = told["verdict"]
    assert (verdict["score"], verdict["label"]) == (0.97, "generated")
    assert verdict["tier"] in {"review", "flag", "flag_high"}
    assert verdict["distance_words"] == "beyond"
    for asked, headers in ((image_id, OTHER), (uuid4(), {})):
        answer = rig.client.get(f"/v1/images/{asked}", headers=headers)
        assert (answer.status_code, answer.json()["reason"]) == (404, "unknown_image")


def test_waiting_ends_with_the_verdict(
    rig: Rig, upload: Callable[..., dict[str, Any]], superuser: psycopg.Connection
) -> None:
    """`wait` answers as soon as the image has ended, and with `pending` when time is over."""
    image_id = rig.client.post("/v1/images", json=upload()).json()["id"]
    assert rig.client.get(f"/v1/images/{image_id}?wait=0.01").json()["state"] == "pending"
    answer = in_thread(rig.client.get, f"/v1/images/{image_id}?wait=20")
    superuser.execute(
        "UPDATE app.images SET state = 'failed', reason = 'truncated', detail = 'cut'"
    )
    told = answer.result(60).json()
    assert (told["state"], told["reason"], told["detail"]) == ("failed", "truncated", "cut")
    assert told["verdict"] is None


def test_a_batch_loses_nothing_to_a_bad_line(
    rig: Rig, upload: Callable[..., dict[str, Any]], engine: Engine
) -> None:
    """Each line of a batch gets its own answer, in order: an image or what is wrong with it."""
    lines = [
        json.dumps(upload("a.jpg")),
        "{",
        json.dumps(upload("b.jpg", etag=None)),
        "",
        json.dumps(upload("c.jpg", source="app")),
        json.dumps(upload("c.jpg", source=[])),
        json.dumps(upload("d.jpg")),
    ]
    answer = rig.client.post("/v1/batches", content="\n".join(lines), headers=LINES)
    told = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.status_code == 200
    assert [one.get("reason") for one in told] == [
        None,
        "not_json",
        "invalid_field",
        "other_source",
        "invalid_field",
        None,
    ]
    assert [row(engine, told[at]["id"]).key for at in (0, 5)] == ["a.jpg", "d.jpg"]
    too_many = rig.client.post("/v1/batches", content="{}\n" * 1001, headers=LINES)
    assert (too_many.status_code, too_many.json()["reason"]) == (413, "event_too_large")


def test_an_appeal_reaches_moderators_and_is_closed_by_them(
    rig: Rig, scored: Callable[..., UUID], desk: Callable[..., Any]
) -> None:
    """An appeal by HTTP waits like any other; a second one is refused while it is open."""
    image_id = scored(0.99)
    opened = rig.client.post(f"/v1/images/{image_id}/appeals", json={"text": "I drew it."})
    assert opened.status_code == 201
    again = rig.client.post(f"/v1/images/{image_id}/appeals", json={})
    assert (again.status_code, again.json()["reason"]) == (409, "conflict")
    other = rig.client.post(f"/v1/images/{image_id}/appeals", json={}, headers=OTHER)
    assert other.status_code == 404
    moderator = desk("web")
    appeal = opened.json()["appeal_id"]
    assert moderator.rows("SELECT appeal_id::text, opened_by, note FROM moderation.appeals") == [
        (appeal, "source:web", "I drew it.")
    ]
    assert moderator.value("SELECT queue FROM moderation.review_queue") == "appeal"
    moderator.value("SELECT moderation.close_appeal(%s, 'overturned', 'real_original')", appeal)
    assert rig.client.post(f"/v1/images/{image_id}/appeals", json={}).status_code == 201


def test_an_appeal_stays_an_appeal_when_the_image_is_reported(
    rig: Rig, scored: Callable[..., UUID], desk: Callable[..., Any]
) -> None:
    """Whoever decided is not handed the appeal against them by a report or another request."""
    image_id = scored(0.99)
    party = desk("web")
    party.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", image_id)
    assert rig.client.post(f"/v1/images/{image_id}/appeals", json={}).status_code == 201
    assert rig.client.post(f"/v1/images/{image_id}/reports", json={}).status_code == 202
    desk("web").value("SELECT moderation.request_review(%s)", image_id)
    assert party.value("SELECT queue FROM moderation.review_queue") == "appeal"
    assert party.rows("SELECT * FROM moderation.claim_next(1)") == []
    assert len(desk("web").rows("SELECT * FROM moderation.claim_next(1)")) == 1


def test_a_report_puts_an_image_before_moderators(
    rig: Rig, scored: Callable[..., UUID], desk: Callable[..., Any]
) -> None:
    """A reported image waits in the queue `report`, and the audit says who asked."""
    image_id = scored(0.01)
    answer = rig.client.post(f"/v1/images/{image_id}/reports", json={"text": "fake"})
    assert answer.status_code == 202
    lead = desk(lead=True)
    assert lead.rows("SELECT image_id, queue FROM moderation.review_queue") == [
        (image_id, "report")
    ]
    (detail,) = lead.rows(
        "SELECT detail FROM moderation.audit_trail WHERE action = 'request_review'"
    )[0]
    assert (detail["by"], detail["note"]) == ("source:web", "fake")


def test_nothing_is_told_without_a_key(rig: Rig, scored: Callable[..., UUID]) -> None:
    """Every route of the ledger needs a key."""
    image_id = scored(0.99)
    rig.client.headers.pop("Authorization")
    answers = [
        rig.client.get(f"/v1/images/{image_id}"),
        rig.client.post("/v1/images", json={"bucket": "b", "key": "k"}),
        rig.client.post("/v1/batches", content=b"{}"),
        rig.client.post(f"/v1/images/{image_id}/appeals", json={}),
        rig.client.post(f"/v1/images/{image_id}/reports", json={}),
    ]
    assert [answer.status_code for answer in answers] == [401] * 5
