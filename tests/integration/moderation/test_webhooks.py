"""Webhooks to a real HTTP receiver that refuses, hangs, redirects and comes back."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from detection.errors import SettingsError
from worker.moderation import policies, sql_settings
from worker.moderation.flagging_breaker import check_breakers, resume_flagging
from worker.moderation.notifications import DECISIONS, OUTBOX, VERDICTS, listen
from worker.moderation.retention import request_erasure
from worker.moderation.webhooks import (
    Dispatcher,
    dead_letters,
    outbox_counts,
    replay,
    sign,
    verify_signature,
)
from worker.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

SECRET = "whsec_" + "QUJD" * 8
OLD_SECRET = "whsec_" + "eHl6" * 8


class Receiver:
    """An HTTP server that answers as `plan` says (204 when it is empty) and keeps what it got."""

    def __init__(self) -> None:
        self.plan: deque[int | str] = deque()
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.released = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.got.append((headers, body))
                todo = receiver.plan.popleft() if receiver.plan else 204
                if todo == "hang":
                    receiver.released.wait(30)
                    return
                assert isinstance(todo, int)
                self.send_response(todo)
                if todo == 302:
                    self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hooks"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Let hanging answers go and end the server."""
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def told(self) -> list[dict[str, Any]]:
        """Return the bodies that came, in order."""
        return [json.loads(body) for _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on a free port."""
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture
def hooked(settings: Settings, receiver: Receiver) -> Settings:
    """Settings whose webhooks go to the receiver, in force in the database."""
    hooked = Settings.model_validate(
        settings.model_dump()
        | {
            "webhooks": {
                "url": receiver.url,
                "secret": SECRET,
                "previous_secret": OLD_SECRET,
                "timeout_s": 0.5,
                "max_attempts": 3,
            }
        }
    )
    assert hooked.postgres.owner_url is not None
    sql_settings.write_sql_settings(hooked.postgres.owner_url.get_secret_value(), hooked)
    return hooked


@pytest.fixture
def dispatcher(engine: Engine, hooked: Settings) -> Dispatcher:
    """A dispatcher to the receiver."""
    return Dispatcher(engine, hooked.webhooks)


def make_due(engine: Engine) -> None:
    """Let every back-off be over."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE app.outbox SET next_attempt_at = now()"))


def test_what_happens_is_told_once_signed_and_dated(
    engine: Engine,
    dispatcher: Dispatcher,
    receiver: Receiver,
    desk: Callable[..., Any],
    scored: Callable[..., Any],
) -> None:
    """A flag and a decision arrive with signatures of both secrets that a receiver can check."""
    image = scored(0.99)
    scored(0.1)
    desk().value("SELECT moderation.decide(%s, 'real', 'real_original')", image)
    assert dispatcher.send_due() == 1
    make_due(engine)
    assert dispatcher.send_due() == 1
    assert dispatcher.send_due() == 0
    assert {told["type"] for told in receiver.told()} == {"verdict.flagged", "decision"}
    assert {told["data"]["image_id"] for told in receiver.told()} == {str(image)}
    for headers, body in receiver.got:
        assert verify_signature(SECRET, headers=headers, body=body)
        assert verify_signature(OLD_SECRET, headers=headers, body=body)
        assert not verify_signature("whsec_" + "AAAA" * 8, headers=headers, body=body)
        assert not verify_signature(SECRET, headers=headers, body=body + b" ")
        late = headers | {"webhook-timestamp": str(int(headers["webhook-timestamp"]) - 900)}
        assert not verify_signature(SECRET, headers=late, body=body)
    assert outbox_counts(engine) == {"waiting": 0, "delivered": 2, "dead": 0}


def test_the_signature_is_the_published_one() -> None:
    """The example of the Standard Webhooks specification gives its published signature."""
    signature = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_an_old_message_is_refused_however_well_it_is_signed() -> None:
    """A recorded delivery cannot be played to a receiver after its time."""
    sent_at = int(time.time()) - 900
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(sent_at),
        "webhook-signature": sign(SECRET, message_id="msg_1", timestamp=sent_at, body=b"{}"),
    }
    assert verify_signature(SECRET, headers=headers, body=b"{}", tolerance_s=1000)
    assert not verify_signature(SECRET, headers=headers, body=b"{}")


def test_a_rolled_back_decision_is_never_told(
    engine: Engine, dispatcher: Dispatcher, receiver: Receiver, desk: Callable[..., Any],
    scored: Callable[..., Any],
) -> None:  # fmt: skip
    """The outbox is written in the transaction of what it tells."""
    image = scored(0.1)
    someone = desk()
    with someone.connection.transaction(force_rollback=True):
        someone.value("SELECT moderation.decide(%s, 'real', 'real_original')", image)
    assert dispatcher.send_due() == 0
    assert receiver.got == []
    assert outbox_counts(engine)["waiting"] == 0


def test_failures_back_off_and_end_as_dead_letters_that_can_be_replayed(
    engine: Engine, dispatcher: Dispatcher, receiver: Receiver, scored: Callable[..., Any]
) -> None:
    """Refused, hanging and redirected tries wait longer; the third is the last; replay sends."""
    receiver.plan.extend([500, "hang", 302])
    scored(0.99)
    waits = []
    for _ in range(2):
        assert dispatcher.send_due() == 0
        assert dispatcher.send_due() == 0, "a message in back-off is not tried again"
        with engine.connect() as connection:
            wait = connection.scalar(text("SELECT next_attempt_at - now() FROM app.outbox"))
        assert wait is not None
        waits.append(wait)
        make_due(engine)
    assert timedelta(seconds=1) < waits[0] <= timedelta(seconds=5) < timedelta(seconds=10)
    assert timedelta(seconds=4) < waits[1] <= timedelta(seconds=10)
    assert dispatcher.send_due() == 0
    make_due(engine)
    assert dispatcher.send_due() == 0, "a dead letter is not tried again"
    (letter,) = dead_letters(engine)
    assert (letter.topic, letter.attempts) == ("verdict.flagged", 3)
    assert letter.last_error is not None
    assert "302" in letter.last_error, "whoever is redirected to is nobody's choice"
    assert len(receiver.got) == 3
    assert replay(engine, dead=True) == 1
    assert dispatcher.send_due() == 1
    ids = {headers["webhook-id"] for headers, _ in receiver.got}
    assert len(receiver.got) == 4
    assert len(ids) == 1, "a repetition keeps its id, so that the receiver can tell"
    assert replay(engine, since=datetime.now(UTC) - timedelta(hours=1)) == 1
    assert replay(engine) == 0


def test_a_receiver_that_is_away_loses_nothing(
    engine: Engine, hooked: Settings, receiver: Receiver, scored: Callable[..., Any]
) -> None:
    """Messages wait while nobody answers and arrive when somebody does."""
    receiver.stop()
    dispatcher = Dispatcher(engine, hooked.webhooks)
    images = {str(scored(0.99)) for _ in range(3)}
    assert dispatcher.send_due() == 0
    back = Receiver()
    moved = hooked.webhooks.model_copy(update={"url": back.url})
    make_due(engine)
    assert Dispatcher(engine, moved).send_due() == 3
    assert {told["data"]["image_id"] for told in back.told()} == images
    back.stop()


def test_two_dispatchers_share_the_work(
    engine: Engine, hooked: Settings, receiver: Receiver, scored: Callable[..., Any]
) -> None:
    """What one has taken the other leaves alone."""
    for _ in range(6):
        scored(0.99)
    threads = [
        threading.Thread(target=Dispatcher(engine, hooked.webhooks).send_due) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [headers["webhook-id"] for headers, _ in receiver.got]
    assert len(ids) == len(set(ids)) == 6


def test_every_topic_is_told(
    engine: Engine, hooked: Settings, desk: Callable[..., Any], scored: Callable[..., Any]
) -> None:
    """Whatever a site may subscribe to is written to the outbox when it happens."""
    draft = policies.PolicyDraft(review=0.5, flag=0.9, flag_high=0.98, breaker_images=1)
    policies.activate(engine, draft, reason="band")
    image, clerk, lead = scored(0.99), desk(), desk(lead=True)
    clerk.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", image)
    appeal = lead.value("SELECT moderation.open_appeal(%s)", image)
    lead.value("SELECT moderation.close_appeal(%s, 'upheld')", appeal)
    assert check_breakers(engine)
    assert resume_flagging(engine, "web", reason="looked at", by="kim")
    request_erasure(engine, image, reason="on request")
    with engine.begin() as connection:
        connection.execute(text("SELECT app.erase_rows(:image)"), {"image": image})
        told = connection.execute(text("SELECT DISTINCT topic FROM app.outbox")).scalars()
        assert set(told) == set(hooked.webhooks.topics)


def test_without_an_address_nothing_is_written(
    engine: Engine, settings: Settings, scored: Callable[..., Any]
) -> None:
    """A site without webhooks does not pile up messages, and a dispatcher says what is missing."""
    scored(0.99)
    assert outbox_counts(engine) == {"waiting": 0, "delivered": 0, "dead": 0}
    with pytest.raises(SettingsError, match="UNLATENT_WEBHOOKS__URL"):
        Dispatcher(engine, settings.webhooks)


def test_listeners_are_woken_by_verdicts_decisions_and_messages(
    hooked: Settings, desk: Callable[..., Any], scored: Callable[..., Any],
    pytestconfig: pytest.Config,
) -> None:  # fmt: skip
    """Each channel wakes; none brings an id, for any login may listen, whatever it may see."""
    if pytestconfig.getoption("--pooler") == "transaction":
        pytest.skip("notifications do not come through such a pooler")
    someone = desk()
    heard = listen(
        hooked.postgres.url.get_secret_value(), [VERDICTS, DECISIONS, OUTBOX], timeout_s=30
    )
    assert next(heard) is None
    image = scored(0.99)
    someone.value("SELECT moderation.decide(%s, 'generated', 'generated_declared')", image)
    notes = {(note.channel, note.payload) for _ in range(4) if (note := next(heard)) is not None}
    heard.close()
    assert notes == {(VERDICTS, ""), (DECISIONS, ""), (OUTBOX, "")}
