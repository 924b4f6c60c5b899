"""Several endpoints of webhooks: ids, secrets, and one that is dead."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from detection.errors import SettingsError
from tests.integration.moderation.test_webhooks import OLD_SECRET, SECRET, Receiver, make_due
from tests.support.processes.worker_process import WorkerProcess
from tests.support.waiting import eventually
from worker.ledger.interface import Removal
from worker.ledger.postgres import PostgresLedger
from worker.moderation.retention import request_erasure
from worker.moderation.sql_settings import write_sql_settings
from worker.moderation.webhooks import Dispatcher, dead_letters, outbox_counts, replay, switch_on
from worker.monitoring.database_gauges import GAUGES
from worker.settings import Settings, child_environment, in_force

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    import psycopg
    from sqlalchemy import Engine

ARCHIVE_SECRET = "whsec_" + "MTIz" * 8


@pytest.fixture
def receivers() -> Iterator[tuple[Receiver, Receiver]]:
    """Two receivers on free ports."""
    pair = Receiver(), Receiver()
    yield pair
    for one in pair:
        one.stop()


@pytest.fixture
def hooked(settings: Settings, receivers: tuple[Receiver, Receiver]) -> Settings:
    """Settings with both endpoints, in force in the database."""
    main, archive = receivers
    webhooks = {
        "url": main.url,
        "secret": SECRET,
        "endpoints": {"archive": archive.url},
        "secrets": {"archive": f"{ARCHIVE_SECRET} {OLD_SECRET}"},
        "timeout_s": 0.5,
        "max_attempts": 50,
    }
    hooked = Settings.model_validate(settings.model_dump() | {"webhooks": webhooks})
    assert hooked.postgres.owner_url is not None
    write_sql_settings(hooked.postgres.owner_url.get_secret_value(), hooked)
    return hooked


def test_every_endpoint_is_told_under_one_random_id_that_the_library_verifies(
    engine: Engine,
    hooked: Settings,
    receivers: tuple[Receiver, Receiver],
    scored: Callable[..., UUID],
) -> None:
    """Each receiver checks with its own secret, new or old, by the reference library."""
    scored(0.99)
    scored(0.99)
    assert Dispatcher(engine, hooked.webhooks).send_due() == 4
    main, archive = receivers
    for receiver, secrets, wrong in (
        (main, (SECRET,), ARCHIVE_SECRET),
        (archive, (ARCHIVE_SECRET, OLD_SECRET), SECRET),
    ):
        for headers, body in receiver.got:
            for secret in secrets:
                assert Webhook(secret).verify(body, headers)["type"] == "verdict.flagged"
            with pytest.raises(WebhookVerificationError):
                Webhook(wrong).verify(body, headers)
    ids = [sorted(headers["webhook-id"] for headers, _ in one.got) for one in receivers]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 2
    assert all(re.fullmatch("msg_[0-9a-f]{32}", one) for one in ids[0])


def test_a_restored_database_gives_no_id_again(
    engine: Engine,
    hooked: Settings,
    receivers: tuple[Receiver, Receiver],
    scored: Callable[..., UUID],
    superuser: psycopg.Connection,
) -> None:
    """After a restore the serial numbers come again; the ids of new messages do not."""
    scored(0.99)
    Dispatcher(engine, hooked.webhooks).send_due()
    superuser.execute("DELETE FROM app.outbox")
    superuser.execute("ALTER TABLE app.outbox ALTER COLUMN id RESTART WITH 1")
    scored(0.99)
    Dispatcher(engine, hooked.webhooks).send_due()
    ids = [headers["webhook-id"] for headers, _ in receivers[0].got]
    assert len(set(ids)) == len(ids) == 2


def test_a_hanging_endpoint_holds_no_other_one_up(
    engine: Engine,
    hooked: Settings,
    receivers: tuple[Receiver, Receiver],
    scored: Callable[..., UUID],
) -> None:
    """While one endpoint lets us wait, the other one gets everything."""
    main, archive = receivers
    main.plan.extend(["hang"] * 10)
    patient = hooked.webhooks.model_copy(update={"timeout_s": 20.0})
    dispatcher = Dispatcher(engine, patient)
    for _ in range(3):
        scored(0.99)
    dispatcher.wake()
    eventually(lambda: len(archive.got) == 3, what="every message at the other endpoint")
    assert len(main.got) == 1
    main.plan.clear()
    main.released.set()
    eventually(lambda: len(main.got) >= 3, what="the end of the hanging")


def test_an_endpoint_that_hangs_at_the_start_holds_no_other_one_up(
    hooked: Settings,
    receivers: tuple[Receiver, Receiver],
    scored: Callable[..., UUID],
    superuser: psycopg.Connection,
) -> None:
    """`unlatent webhooks run` begins with every endpoint by itself."""
    main, archive = receivers
    main.plan.extend(["hang"] * 10)
    scored(0.99)
    patient = hooked.model_copy(
        update={"webhooks": hooked.webhooks.model_copy(update={"timeout_s": 600.0})}
    )
    with WorkerProcess(patient, module="worker", arguments=["webhooks", "run"]):
        eventually(lambda: bool(archive.got), what="the message at the other endpoint")
        ended = "SELECT count(*) FROM app.outbox WHERE endpoint = 'main' AND last_error IS NOT NULL"
        assert superuser.execute(ended).fetchone() == (0,)
        main.plan.clear()
        main.released.set()


def test_a_dead_endpoint_is_switched_off_and_on(
    engine: Engine,
    hooked: Settings,
    receivers: tuple[Receiver, Receiver],
    scored: Callable[..., UUID],
    superuser: psycopg.Connection,
) -> None:
    """After its time nothing is sent there, a gauge says so, and nothing of it is lost."""
    main, archive = receivers
    main.plan.extend([500] * 100)
    dispatcher = Dispatcher(engine, hooked.webhooks)
    scored(0.99)
    assert dispatcher.send_due() == 1
    off = "SELECT name FROM app.webhook_endpoints WHERE switched_off_at IS NOT NULL"
    assert superuser.execute(off).fetchall() == []
    superuser.execute(
        "UPDATE app.webhook_endpoints SET failing_since = failing_since - interval '80 hours'"
    )
    make_due(engine)
    assert dispatcher.send_due() == 0
    assert superuser.execute(off).fetchall() == [("main",)]
    (gauge,) = [one for one in GAUGES if one.name == "webhook_endpoints_off"]
    with engine.begin() as connection:
        assert [one.labels for one in gauge.read(connection).samples] == [{"endpoint": "main"}]
    tried = len(main.got)
    scored(0.99)
    assert dispatcher.send_due() == 1
    assert len(main.got) == tried
    assert len(archive.got) == 2
    assert {letter.endpoint for letter in dead_letters(engine)} == {"main"}
    # Somebody mends it.
    main.plan.clear()
    assert switch_on(engine, "main")
    assert not switch_on(engine, "main")
    assert replay(engine, dead=True) == 2
    assert dispatcher.send_due() == 2
    assert outbox_counts(engine) == {"waiting": 0, "delivered": 4, "dead": 0}


def test_an_endpoint_that_answers_again_starts_anew(
    engine: Engine,
    hooked: Settings,
    receivers: tuple[Receiver, Receiver],
    scored: Callable[..., UUID],
    superuser: psycopg.Connection,
) -> None:
    """Failures that end are forgotten: only an unbroken time switches off."""
    receivers[0].plan.append(500)
    scored(0.99)
    dispatcher = Dispatcher(engine, hooked.webhooks)
    dispatcher.send_due()
    failing = "SELECT failing_since IS NOT NULL FROM app.webhook_endpoints WHERE name = 'main'"
    assert superuser.execute(failing).fetchone() == (True,)
    make_due(engine)
    assert dispatcher.send_due() == 1
    assert superuser.execute(failing).fetchone() == (False,)


def test_a_fresh_failure_of_a_quiet_endpoint_switches_nothing_off(
    engine: Engine,
    hooked: Settings,
    receivers: tuple[Receiver, Receiver],
    scored: Callable[..., UUID],
    superuser: psycopg.Connection,
) -> None:
    """One failure days ago and one now are no days of failing."""
    receivers[0].plan.extend([500] * 2)
    dispatcher = Dispatcher(engine, hooked.webhooks)
    scored(0.99)
    dispatcher.send_due()
    superuser.execute(
        "UPDATE app.webhook_endpoints SET failing_since = failing_since - interval '80 hours',"
        " failed_at = failed_at - interval '80 hours'"
    )
    make_due(engine)
    dispatcher.send_due()
    states = "SELECT switched_off_at, failing_since > now() - interval '1 h' FROM"
    assert superuser.execute(f"{states} app.webhook_endpoints").fetchall() == [(None, True)]


def test_nothing_goes_to_an_endpoint_once_it_is_off(
    engine: Engine,
    hooked: Settings,
    receivers: tuple[Receiver, Receiver],
    scored: Callable[..., UUID],
    superuser: psycopg.Connection,
) -> None:
    """The rest of its batch stays unsent, and what is replayed waits until it is switched on."""
    main, _ = receivers
    main.plan.append(500)
    dispatcher = Dispatcher(engine, hooked.webhooks)
    for _ in range(3):
        scored(0.99)
    superuser.execute(
        "INSERT INTO app.webhook_endpoints (name, failing_since, failed_at)"
        " VALUES ('main', now() - interval '80 hours', now())"
    )
    assert dispatcher.send_due(endpoint="main") == 0
    assert len(main.got) == 1
    assert replay(engine, dead=True) == 3
    assert dispatcher.send_due(endpoint="main") == 0
    assert switch_on(engine, "main")
    assert dispatcher.send_due(endpoint="main") == 3


def test_what_waits_for_an_endpoint_that_is_gone_is_given_up(
    engine: Engine, hooked: Settings, scored: Callable[..., UUID]
) -> None:
    """Messages for a name that left the database's settings do not wait for ever, others do."""
    scored(0.99)
    fewer = hooked.model_copy(
        update={"webhooks": hooked.webhooks.model_copy(update={"endpoints": {}})}
    )
    dispatcher = Dispatcher(engine, fewer.webhooks)
    assert dispatcher.give_up_unknown() == 0
    assert fewer.postgres.owner_url is not None
    write_sql_settings(fewer.postgres.owner_url.get_secret_value(), fewer)
    assert dispatcher.give_up_unknown() == 1
    (letter,) = dead_letters(engine)
    assert letter.endpoint == "archive"
    assert "settings" in (letter.last_error or "")


@pytest.mark.parametrize("ends", ["withdrawn", "erased", "withdrawn before the verdict"])
def test_nobody_is_told_to_act_on_an_image_that_is_gone(
    engine: Engine,
    hooked: Settings,
    receivers: tuple[Receiver, Receiver],
    scored: Callable[..., UUID],
    superuser: psycopg.Connection,
    ends: str,
) -> None:
    """A flag whose image left before it was sent is not sent, to no endpoint."""
    image = scored(0.99, key="gone.jpg")
    stays = scored(0.99)
    if ends == "erased":
        request_erasure(engine, image, reason="on request")
        superuser.execute("SELECT app.erase_rows(%s)", [image])
    else:
        gone = Removal(bucket=hooked.s3.buckets[0], key="gone.jpg", version_id=None, sequencer="F")
        PostgresLedger(engine).withdraw([gone])
    if ends == "withdrawn before the verdict":
        superuser.execute("DELETE FROM app.outbox")
        superuser.execute(
            "INSERT INTO app.verdicts (image_id, lease_id, model_version, role, score, label,"
            " branches, decided_by, operating_point, prior, device, dtype) SELECT image_id,"
            " lease_id, 'm2', role, 0.99, 'generated', branches, decided_by, operating_point,"
            " prior, device, dtype FROM app.verdicts"
        )
    make_due(engine)
    Dispatcher(engine, hooked.webhooks).send_due()
    for receiver in receivers:
        flags = [told for told in receiver.told() if told["type"] == "verdict.flagged"]
        assert {told["data"]["image_id"] for told in flags} == {str(stays)}


@pytest.fixture
def decisions_told(hooked: Settings) -> Settings:
    """Both endpoints are told of decisions alone."""
    webhooks = hooked.webhooks.model_copy(update={"topics": ["decision"]})
    told = hooked.model_copy(update={"webhooks": webhooks})
    assert told.postgres.owner_url is not None
    write_sql_settings(told.postgres.owner_url.get_secret_value(), told)
    return told


@pytest.mark.parametrize(
    ("before", "overturns"),
    [
        ("SELECT", False),
        ("UPDATE app.outbox SET attempts = 1 WHERE endpoint = 'main'", True),
        ("UPDATE app.outbox SET attempts = 1, delivered_at = now() WHERE endpoint = 'main'", True),
        ("UPDATE app.outbox SET attempts = 3, dead_at = now() WHERE endpoint = 'main'", True),
    ],
    ids=["waits", "was tried", "was delivered", "was given up"],
)
@pytest.mark.usefixtures("decisions_told")
def test_an_undone_decision_leaves_to_all_endpoints_or_to_none(
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    superuser: psycopg.Connection,
    *,
    before: str,
    overturns: bool,
) -> None:
    """Once one endpoint heard of it, both hear of it and of what took its place."""
    image, one = scored(), desk()
    first = one.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", image)
    superuser.execute(before)
    one.value("SELECT moderation.undo(%s, 'real', 'real_original')", image)
    rows = superuser.execute(
        "SELECT endpoint, payload ->> 'decision', (payload ->> 'overturns')::bigint"
        " FROM app.outbox ORDER BY (payload ->> 'decision_id')::bigint, endpoint DESC"
    ).fetchall()
    undone = [("main", "generated", None), ("archive", "generated", None)]
    instead = first if overturns else None
    assert rows == undone * overturns + [("main", "real", instead), ("archive", "real", instead)]


@pytest.mark.usefixtures("decisions_told")
def test_an_undone_decision_is_not_replayed_to_an_endpoint_that_was_off(
    engine: Engine,
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    superuser: psycopg.Connection,
) -> None:
    """What was written for an endpoint that is switched off goes with the undone decision."""
    superuser.execute(
        "INSERT INTO app.webhook_endpoints (name, switched_off_at, last_error)"
        " VALUES ('archive', now(), 'refused')"
    )
    image, one = scored(), desk()
    one.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", image)
    one.value("SELECT moderation.undo(%s, 'real', 'real_original')", image)
    assert [letter.payload["decision"] for letter in dead_letters(engine)] == ["real"]


NO_SECRETS = ("", " ", "whsec_", "whsec_====", "whsec_QUJD", "not base64!")


@pytest.mark.parametrize(
    ("where", "secret"),
    [
        (where, secret)
        for where in ("secret", "previous_secret", "secrets")
        for secret in NO_SECRETS
        if secret or where != "previous_secret"  # without one there is no previous secret
    ],
)
def test_a_secret_that_is_none_is_refused(
    engine: Engine, hooked: Settings, secret: str, where: str
) -> None:
    """An empty or short secret would sign so that anybody could; the error does not show it."""
    value: Any = {"archive": secret} if where == "secrets" else secret
    webhooks = hooked.model_dump()["webhooks"] | {where: value}
    broken = Settings.model_validate({"webhooks": webhooks}).webhooks
    with pytest.raises(SettingsError, match="secret") as caught:
        Dispatcher(engine, broken)
    assert "QUJD" not in str(caught.value)


def test_a_child_process_reads_the_secrets_and_nobody_is_shown_them(hooked: Settings) -> None:
    """Secrets in a JSON object reach child processes as they are, and listings masked."""
    name = "UNLATENT_WEBHOOKS__SECRETS"
    assert ARCHIVE_SECRET in child_environment(hooked)[name]
    assert ARCHIVE_SECRET not in in_force(hooked)[name]
    assert "archive" in in_force(hooked)[name]
