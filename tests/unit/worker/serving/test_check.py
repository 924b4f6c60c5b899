"""`POST /v1/check`: every way to give an image, and what each bad one is told."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from PIL import Image

from detection.intake.animation import ShownFrame
from tests.support.images.bad_files import LIMITS, picture, refused
from tests.support.serving.http_service import Gate, Rig, http_service, in_thread
from tests.support.waiting import eventually
from worker.decoding.byte_budget import ByteBudget
from worker.decoding.pool import Decoded
from worker.ledger.interface import ImageFacts
from worker.scoring.memory import MemoryScorer
from worker.serving.checker import Checker
from worker.serving.problems import MEDIA_TYPE
from worker.storage.memory import MemoryStorage
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.decoding.pool import DecodePool

BAD = {name: bad for name, bad in refused().items() if bad.sha256 is None and bad.key is None}
STATUS = {
    "too_many_bytes": 413,
    "too_many_pixels": 413,
    "not_an_image": 415,
    "unsupported_format": 415,
    "type_mismatch": 415,
}


def grey(value: int = 200, kind: str = "PNG") -> bytes:
    """Return a grey picture's file."""
    file = io.BytesIO()
    Image.new("RGB", (80, 64), (value,) * 3).save(file, kind)
    return file.getvalue()


def test_every_way_to_give_an_image_gets_the_same_answer(serve: Callable[..., Rig]) -> None:
    """A raw body, a form and an object of a bucket are the same image, scored by its pixels."""
    storage = MemoryStorage(["uploads"])
    storage.put("uploads", "a.png", grey(), content_type="image/png")
    client = serve(storage=storage).client
    answers = [
        client.post("/v1/check", content=grey()),
        client.post("/v1/check", content=grey(), headers={"Content-Type": "image/png"}),
        client.post("/v1/check", files={"image": ("any.png", grey(), "image/png")}),
        client.post("/v1/check", json={"bucket": "uploads", "key": "a.png"}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    first, *others = [answer.json() for answer in answers]
    assert others == [first] * 3
    assert first["score"] == pytest.approx(200 / 255)
    assert (first["label"], first["model_version"]) == ("generated", "memory-1")
    assert first["image"]["size"] == len(grey())
    assert (first["image"]["width"], first["image"]["height"]) == (80, 64)


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_file_is_told_its_reason(name: str, serve: Callable[..., Rig]) -> None:
    """Each bad file of intake's suite is answered with problem details that name its reason."""
    bad = BAD[name]
    kind = {"Content-Type": bad.declared_type or "application/octet-stream"}
    answer = serve().client.post("/v1/check", content=bad.data, headers=kind)
    told = answer.json()
    assert (answer.status_code, told["reason"]) == (STATUS.get(bad.reason, 422), bad.reason)
    assert answer.headers["Content-Type"] == MEDIA_TYPE
    assert told["status"] == answer.status_code
    assert told["type"] == f"urn:unlatent:problem:{bad.reason}"
    assert told["detail"]


def test_a_body_that_never_ends_is_cut_off(serve: Callable[..., Rig]) -> None:
    """A body without a stated length is read no further than the limit."""
    sent = 0

    def chunks() -> object:
        nonlocal sent
        while sent < 10 * LIMITS.max_bytes:
            sent += 2**20
            yield bytes(2**20)

    rig = serve(in_flight_bytes=LIMITS.max_bytes + 2**21)
    answer = rig.client.post("/v1/check", content=chunks())
    assert (answer.status_code, answer.json()["reason"]) == (413, "too_many_bytes")


def test_bodies_share_a_budget_of_bytes(serve: Callable[..., Rig]) -> None:
    """What does not fit beside the bodies under way gets 503, and fits once they are answered."""
    gate = Gate()
    large = grey() + bytes(600)
    rig = serve(scorer=MemoryScorer(before=gate), in_flight_bytes=1000)
    gate.arm()
    first = in_thread(rig.client.post, "/v1/check", content=large)
    assert gate.reached.wait(60)
    second = rig.client.post("/v1/check", content=large)
    assert (second.status_code, second.json()["reason"]) == (503, "busy")
    gate.opened.set()
    assert first.result(60).status_code == 200
    assert rig.client.post("/v1/check", content=large).status_code == 200


def test_a_body_that_does_not_come_gives_its_place_back(pool: DecodePool) -> None:
    """A client that stops in the middle of its body is told so, and the next one is answered."""
    with http_service(pool, requests=1, timeout_s=0.5) as rig:
        told: list[dict[str, Any]] = []

        async def silent() -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            told.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/check",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        asyncio.run(rig.app(scope, silent, send))
        assert told[0]["status"] == 408
        assert rig.client.post("/v1/check", json={}).status_code == 422


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        ({"json": {"bucket": "other", "key": "a.png"}}, 403, "address_not_allowed"),
        ({"json": {"bucket": "uploads", "key": "none.png"}}, 404, "object_missing"),
        ({"json": {"bucket": "uploads"}}, 422, "request_invalid"),
        ({"json": {"bucket": "uploads", "key": "a", "url": "http://x"}}, 422, "request_invalid"),
        ({"json": ["uploads"]}, 422, "request_invalid"),
        (
            {"content": b"{", "headers": {"Content-Type": "application/json"}},
            422,
            "request_invalid",
        ),
        (
            {
                "content": b'{"bucket": "uploads", "key": "a", "\\ud800": 1}',
                "headers": {"Content-Type": "application/json"},
            },
            422,
            "request_invalid",
        ),
        ({"json": {"bucket": "evidence", "key": "a.png"}}, 403, "address_not_allowed"),
        ({"files": {"picture": ("a.png", b"x", "image/png")}}, 422, "request_invalid"),
        ({"data": {"image": "text"}, "files": {"x": b""}}, 422, "request_invalid"),
        (
            {"content": b"junk", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            400,
            "bad_request",
        ),
    ],
)
def test_a_malformed_request_is_told_what_is_wrong(
    request_: dict[str, object], status: int, reason: str, serve: Callable[..., Rig]
) -> None:
    """What names no image is answered by a problem, whatever shape it has."""
    answer = serve().client.post("/v1/check", **request_)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)


def test_no_evidence_of_an_object_is_shown(serve: Callable[..., Rig]) -> None:
    """Who can name an object gets its score, and no picture of it."""
    storage = MemoryStorage(["uploads"])
    storage.put("uploads", "a.png", grey(), content_type="image/png")
    client = serve(storage=storage).client
    answer = client.post("/v1/check?evidence=1", json={"bucket": "uploads", "key": "a.png"})
    assert (answer.status_code, answer.json()["reason"]) == (422, "request_invalid")


def test_evidence_comes_on_demand(serve: Callable[..., Rig]) -> None:
    """With `evidence=1` the answer holds the document and a picture of the image."""
    client = serve().client
    assert "evidence" not in client.post("/v1/check", content=grey()).json()
    evidence = client.post("/v1/check?evidence=1", content=grey()).json()["evidence"]
    preview = evidence["document"]["layers"][0]["file"]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(evidence["files"][preview]))))
    assert shown.shape == (64, 80, 3)
    assert abs(int(shown.mean()) - 200) <= 2


def test_who_comes_when_all_places_are_taken_is_told_to_come_again(
    serve: Callable[..., Rig],
) -> None:
    """A request beyond the limit gets 503 with Retry-After at once, and its place once one is free.

    Probes are answered meanwhile.
    """
    gate = Gate()
    rig = serve(scorer=MemoryScorer(before=gate), requests=1)
    gate.arm()
    first = in_thread(rig.client.post, "/v1/check", content=grey())
    assert gate.reached.wait(60)
    second = rig.client.post("/v1/check", content=grey())
    assert (second.status_code, second.json()["reason"]) == (503, "busy")
    assert int(second.headers["Retry-After"]) >= 1
    assert rig.client.get("/healthz").status_code == 200
    gate.opened.set()
    assert first.result(60).status_code == 200
    assert rig.client.post("/v1/check", content=grey()).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(
    serve: Callable[..., Rig], pool: DecodePool
) -> None:
    """`Prefer: wait=0` ends as 503 while the image waits, and its bytes are given back."""
    gate = Gate()
    rig = serve(scorer=MemoryScorer(before=gate))
    gate.arm()
    first = in_thread(rig.client.post, "/v1/check", content=grey(1))
    assert gate.reached.wait(60)
    answer = rig.client.post("/v1/check", content=grey(2), headers={"Prefer": "wait=0"})
    assert (answer.status_code, answer.json()["reason"]) == (503, "timeout")
    gate.opened.set()
    assert first.result(60).status_code == 200
    eventually(lambda: pool.budget.used_bytes == 0, timeout_s=60, what="an empty budget")


def test_given_up_requests_take_no_place(serve: Callable[..., Rig], pool: DecodePool) -> None:
    """However many gave up while a batch ran, the next request waits for its turn and gets it.

    What the device still holds of a request that gave up stays in the budget.
    """
    gate = Gate()
    checker = serve(scorer=MemoryScorer(before=gate), requests=2).service.checker
    gate.arm()

    async def give_up(value: int, reached: Callable[[], object]) -> None:
        asked = asyncio.create_task(checker.check(grey(value), wait_s=60))
        await asyncio.to_thread(reached)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    async def scenario() -> dict[str, Any]:
        await give_up(1, lambda: gate.reached.wait(60))
        held = pool.budget.used_bytes
        assert held == 80 * 64 * 3
        waiting = checker._device._batcher

        def wait_for(count: int) -> None:
            eventually(lambda: len(waiting) == count, timeout_s=60, what=f"{count} in line")

        for count in (1, 2):  # all the places that there are
            await give_up(1 + count, partial(wait_for, count))
        last = asyncio.create_task(checker.check(grey(5), wait_s=60))
        await asyncio.to_thread(wait_for, 1)
        gate.opened.set()
        return await last

    assert asyncio.run(scenario())["score"] == pytest.approx(5 / 255)
    eventually(lambda: pool.budget.used_bytes == 0, timeout_s=60, what="an empty budget")


def test_slow_storage_counts_into_the_time_of_an_answer(serve: Callable[..., Rig]) -> None:
    """An object that storage does not give in time ends as 503 as soon as the time is over."""
    given = threading.Event()

    class SlowStorage(MemoryStorage):
        """Gives objects once it is told to."""

        def fetch(self, *arguments: Any, **options: Any) -> bytes:
            assert given.wait(60)
            return super().fetch(*arguments, **options)

    rig = serve(storage=SlowStorage(["uploads"]))
    told = {"bucket": "uploads", "key": "a.png"}
    answer = rig.client.post("/v1/check", json=told, headers={"Prefer": "wait=1"})
    given.set()
    assert (answer.status_code, answer.json()["reason"]) == (503, "timeout")


@pytest.mark.parametrize("path", ["/v1/images", "/v1/images/42", "/v1/batches"])
def test_a_service_without_a_ledger_says_so(path: str, serve: Callable[..., Rig]) -> None:
    """Uploads are answered 404 with the setting that is missing, not as a wrong address."""
    answer = serve().client.post(path, json={})
    assert (answer.status_code, answer.json()["reason"]) == (404, "no_ledger")
    assert "UNLATENT_HTTP__LEDGER" in answer.json()["detail"]


def test_a_stuck_device_is_told_to_probes(serve: Callable[..., Rig]) -> None:
    """`/healthz` answers 503 once the device thread makes no progress."""
    assert serve().client.get("/healthz").status_code == 200
    assert serve(alive=lambda: False).client.get("/healthz").status_code == 503


def test_what_the_detector_fails_on_costs_its_own_request(serve: Callable[..., Rig]) -> None:
    """An image on which the detector raises gets 422; the next one is scored."""

    def fail(images: object) -> None:
        if any(int(image.mean()) == 13 for image in images):  # type: ignore[attr-defined]
            raise ZeroDivisionError

    client = serve(scorer=MemoryScorer(before=fail)).client
    answer = client.post("/v1/check", content=grey(13))
    assert (answer.status_code, answer.json()["reason"]) == (422, "scoring_failed")
    assert client.post("/v1/check", content=grey(14)).status_code == 200


def test_requests_are_counted_by_route_and_status(serve: Callable[..., Rig]) -> None:
    """What was answered can be seen in the metrics, and probes are not counted."""
    rig = serve()
    file = io.BytesIO()
    picture().save(file, "JPEG")
    rig.client.post("/v1/check", content=file.getvalue())
    rig.client.post("/v1/check", content=b"")
    rig.client.get("/healthz")
    rig.client.get("/nowhere")
    name = "unlatent_http_requests_total"
    assert rig.sample(name, route="/v1/check", status="200") == 1
    assert rig.sample(name, route="/v1/check", status="422") == 1
    assert rig.sample(name, route="none", status="404") == 1
    text = rig.client.get("/metrics").text
    assert 'unlatent_http_requests_total{route="/v1/check",status="200"} 1.0' in text
    assert "healthz" not in text


def test_what_is_decoded_too_late_is_given_back() -> None:
    """An image whose request has gone while it was decoded leaves nothing in the budget."""
    budget, released = ByteBudget(10**6), threading.Event()

    class SlowDecoder:
        """Decodes once it is told to."""

        def decode(self, _data: bytes, **_options: Any) -> Decoded:
            assert released.wait(60)
            pixels = np.zeros((64, 64, 3), np.uint8)
            budget.acquire(pixels.nbytes, wait_s=0)
            facts = ImageFacts(sha256="0" * 64, size=1, format="PNG", width=64, height=64)
            return Decoded((ShownFrame(0, 1.0, pixels),), facts, budget)

    checker = Checker(
        decoder=cast("DecodePool", SlowDecoder()),
        device=cast("Any", None),
        metrics=Metrics(),
        requests=1,
    )
    with closing(checker):
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(checker.check(b"x", wait_s=60), 0.05))
        released.set()
    assert budget.used_bytes == 0
