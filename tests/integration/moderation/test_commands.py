"""The moderators' commands, against a real database as a moderator's own login."""

from __future__ import annotations

import csv
import io
import json
import re
import urllib.error
import urllib.request
from datetime import UTC
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
import pytest
from psycopg import errors, sql
from sqlalchemy import URL
from typer.testing import CliRunner

from detection.errors import SettingsError
from detection.evidence import flat_picture, make_evidence
from detection.intake.version import INTAKE_VERSION
from detection.score import Label, TileLogit
from worker.cli import build_app
from worker.cli import moderation as commands
from worker.cli.context import Context
from worker.database.engine import connect
from worker.ledger.interface import UnknownImage
from worker.ledger.postgres import PostgresLedger
from worker.ledger.tables_moderation import ACTION_TIERS, QUEUES
from worker.models.evidence_on_demand import EvidenceUnavailable
from worker.moderation import sql_settings
from worker.moderation.retention import UnderHold
from worker.scoring.evidence import score_of, store_evidence
from worker.settings import Moderation
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from uuid import UUID

    from psycopg import Connection
    from sqlalchemy import Engine

    from worker.localstack import LocalStack
    from worker.settings import Settings

TILES = (TileLogit(top=0, left=320, height=128, width=128, logit=2.5),)


@pytest.fixture
def unlatent(
    settings: Settings, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run a command as the service, or as a moderator with `who=desk`; return what it prints."""

    def run(*arguments: str, who: Any = None) -> str:
        url = settings.postgres.url.get_secret_value()
        if who is not None:
            info = who.connection.info
            url = URL.create(
                "postgresql+psycopg", info.user, info.password, info.host, info.port, info.dbname
            ).render_as_string(hide_password=False)
        s3 = settings.s3
        assert s3.access_key_id is not None
        assert s3.secret_access_key is not None
        for name, value in {
            "POSTGRES__URL": url,
            "S3__ENDPOINT_URL": s3.endpoint_url,
            "S3__ACCESS_KEY_ID": s3.access_key_id.get_secret_value(),
            "S3__SECRET_ACCESS_KEY": s3.secret_access_key.get_secret_value(),
            "S3__BUCKETS": f'["{bucket}"]',
            "MODERATION__EVIDENCE_BUCKET": bucket,
        }.items():
            monkeypatch.setenv(f"UNLATENT_{name}", str(value))
        result = CliRunner().invoke(build_app(), arguments, obj=Context())
        if result.exception is not None:
            raise result.exception
        return result.output

    return run


def table(printed: str) -> list[list[str]]:
    """Split what was printed into the cells of its rows, which stand two spaces apart."""
    return [re.split(r" {2,}", line) for line in printed.splitlines()]


def test_a_review_from_claim_to_overturn(
    unlatent: Callable[..., str], desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """Claim, decide, appeal and overturn without a line of SQL; the history tells the story."""
    image = scored(0.97)
    clerk, lead = desk(), desk(lead=True)
    assert str(image) in unlatent("review", "claim", "--count", "2", who=clerk)
    assert clerk.name in unlatent("review", "list", "--queue", "flagged", who=lead)
    with pytest.raises(SettingsError, match=r"no reason 'because' .*moderation\.reasons"):
        unlatent("decide", str(image), "generated", "--reason", "because", who=clerk)
    unlatent("decide", str(image), "generated", "--reason", "generated_declared", who=clerk)
    unlatent("appeals", "open", str(image), "--note", "mine", who=clerk)
    appeal = re.search(r"^([0-9a-f-]{36}) ", unlatent("appeals", "list", who=lead), re.MULTILINE)
    assert appeal is not None
    unlatent("appeals", "close", appeal[1], "overturned", "--reason", "real_original", who=lead)
    history = unlatent("verdicts", "--image", str(image), who=lead)
    for event in ("upload", "verdict", "decision", "appeal opened", "regression corpus"):
        assert event in history
    assert " real" in unlatent("verdicts", "--label", "generated", who=lead)
    assert str(image) not in unlatent("verdicts", "--tier", "allow", who=lead)
    assert "model-1" in unlatent("quality", who=lead)


def test_programs_read_what_people_see(
    unlatent: Callable[..., str], desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """The lists come as JSON, JSON Lines and CSV with the values that SQL gives."""
    scored(0.97, source="web")
    scored(0.98, source="=forum")
    clerk = desk()
    expected = clerk.rows("SELECT image_id, scored_at, source, label FROM moderation.verdicts")
    told = [
        (str(image), at.astimezone(UTC).isoformat(), source, label)
        for image, at, source, label in expected
    ]
    names = ("image_id", "scored_at", "source", "label")
    array = json.loads(unlatent("verdicts", "--format", "json", who=clerk))
    assert [tuple(row[name] for name in names) for row in array] == told
    printed = unlatent("verdicts", "--format", "jsonl", who=clerk)
    assert [json.loads(line) for line in printed.splitlines()] == array
    rows = csv.DictReader(io.StringIO(unlatent("verdicts", "--format", "csv", who=clerk)))
    assert [tuple(row[name].lstrip("'") for name in names) for row in rows] == told
    (people,) = [
        row
        for row in json.loads(unlatent("moderators", "list", "--format", "json"))
        if row["moderator"] == clerk.name
    ]
    assert people == {"moderator": clerk.name, "sources": None, "lead": False}
    assert json.loads(unlatent("review", "claim", "--format", "json", who=clerk))[0]["source"]


def test_a_stopped_source_is_listed_with_its_policy(
    unlatent: Callable[..., str], scored: Callable[..., UUID]
) -> None:
    """Of a source without a policy of its own the list shows the one of every other source."""
    for _ in range(200):
        scored(0.99)
    assert "web: flagging stopped at" in unlatent("policy", "check")
    assert "(every other)" in unlatent("policy", "list")
    named, other = json.loads(unlatent("policy", "list", "--format", "json"))
    assert (named["source"], other["source"]) == ("web", None)
    assert named["id"] == other["id"]
    assert named["flagging_stopped_since"] is not None
    assert named["stopped_at_images"] >= 200
    assert other["flagging_stopped_since"] is None
    thresholds = ("--review", "0.5", "--flag", "0.97", "--flag-high", "0.99", "--reason", "own")
    unlatent("policy", "set", *thresholds, "--source", "web")
    named, other = json.loads(unlatent("policy", "list", "--format", "json"))
    assert (named["source"], named["reason"]) == ("web", "own")
    assert named["id"] > other["id"]


def test_skipping_undoing_and_second_opinions(
    unlatent: Callable[..., str], desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """What the queue's functions do is done by commands, too, and a claim names its sources."""
    image, other = scored(0.97), scored(0.97, source="forum")
    clerk, reader = desk(), desk()
    claimed = unlatent("review", "claim", "--count", "5", "--source", "forum", who=clerk)
    assert str(other) in claimed
    assert str(image) not in claimed
    assert str(image) in unlatent("review", "claim", str(image), who=clerk)
    unlatent("review", "skip", str(image), "--note", "no", who=clerk)
    assert str(image) not in unlatent("review", "claim", "--count", "5", who=clerk)
    assert str(image) in unlatent("review", "claim", "--count", "5", who=reader)
    with pytest.raises(SettingsError, match="do not hold"):
        unlatent("review", "extend", str(image), who=clerk)
    said = ("--reason", "generated_declared")
    assert "opinion_id" in unlatent(
        "decide", str(image), "generated", *said, "--opinion", who=clerk
    )
    unlatent("decide", str(image), "generated", *said, who=reader)
    unlatent("decide", str(image), "real", "--reason", "real_edited", "--undo", who=reader)
    with pytest.raises(SystemExit):
        unlatent("decide", str(image), "real", *said, "--undo", "--opinion", who=reader)
    assert (
        reader.value(
            "SELECT decision FROM moderation.verdicts WHERE label = 'generated' AND image_id = %s",
            image,
        )
        == "real"
    )


def test_who_moderates_is_said_as_the_operator(
    unlatent: Callable[..., str],
    stack: LocalStack,
    database: str,
    superuser: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the operator's address set, the service's login needs no right to do it."""
    superuser.execute("REVOKE ALL ON app.moderators FROM unlatent_app")
    superuser.execute("GRANT SELECT ON app.moderators TO unlatent_app")
    with pytest.raises(SettingsError, match="permission denied for table moderators"):
        unlatent("moderators", "allow", "mia@example.com", "--sso")
    monkeypatch.setenv("UNLATENT_POSTGRES__OPERATOR_URL", stack.addresses.operator_url(database))
    unlatent("moderators", "allow", "mia@example.com", "--sso", "--source", "web")
    assert ["mia@example.com", "web", "False"] in table(unlatent("moderators", "list"))
    added = superuser.execute("SELECT added_by FROM app.moderators").fetchall()
    assert added == [("unlatent_operator",)]


def test_tables_say_label_words_and_distance_first(
    unlatent: Callable[..., str], desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """A score of 0.74 beside `real` is explained; a flag of what is `unsure` is by the score."""
    for score, label, distance in ((0.74, "real", -1.84), (0.925, "unsure", -0.38)):
        scored(score, label=label, distance=distance)
    someone = desk()
    for command in (["verdicts"], ["review", "list"]):
        printed = " ".join(unlatent(*command, who=someone).split())
        assert "real below -1.84 0.7400 review" in printed
        assert "unsure not surely beyond -0.38 0.9250 flag by score alone" in printed


def test_what_cannot_be_meant_is_said_in_words(
    unlatent: Callable[..., str], desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """A wrong login, an operator's command and an unknown queue are errors, not empty tables."""
    clerk = desk()
    for queue in QUEUES:
        assert clerk.rows("SELECT * FROM moderation.claim_next(1, %s)", queue) == []
    with pytest.raises(errors.InvalidParameterValue, match="no queue 'flag'"):
        clerk.rows("SELECT * FROM moderation.claim_next(1, 'flag')")
    image = scored(0.1)
    for command in (["verdicts"], ["review", "list"], ["holds", "list"], ["reasons"]):
        with pytest.raises(
            SettingsError, match=r"unlatent_app is not a moderator: .* login of one"
        ):
            unlatent(*command)
    for words in (("policy", "list"), ("link", str(image)), ("moderators", "list")):
        with pytest.raises(SettingsError, match="operator's command"):
            unlatent(*words, who=clerk)
    with pytest.raises(UnknownImage, match="no image"):
        unlatent("retain", "--erase", str(uuid4()))
    assert "real_original" in unlatent("reasons", who=clerk)
    assert "True" in unlatent("review", "request", str(image), who=clerk)
    assert str(image) in unlatent("review", "list", "--queue", "requested", who=clerk)
    assert clerk.rows("SELECT every_source, sources, lead FROM moderation.me") == [
        (True, [], False)
    ]


@pytest.mark.parametrize("url", ["postgres://kim:secret@db/unlatent", "kim:secret@db", ""])
def test_an_address_that_is_none_is_shown_what_one_is(url: str) -> None:
    """The error shows the form of an address, and nothing of the one that was given."""
    with pytest.raises(SettingsError, match=r"it is like postgresql\+psycopg://") as refused:
        connect(url)
    assert "secret" not in str(refused.value)


def test_choices_are_those_of_the_schema() -> None:
    """The command line offers every queue, tier and label there is."""
    assert get_args(commands.Queue) == QUEUES
    assert get_args(commands.Tier) == ACTION_TIERS
    assert set(get_args(commands.Said)) == {label.value for label in Label}


def test_a_policy_is_tried_set_and_shown(
    unlatent: Callable[..., str], scored: Callable[..., UUID]
) -> None:
    """The preview names the change and its example; setting it rules the next verdict."""
    image = scored(0.95)
    thresholds = ("--review", "0.5", "--flag", "0.97", "--flag-high", "0.99")
    told = unlatent("policy", "preview", *thresholds)
    assert "1 verdicts, 1 change tier" in told
    assert f"flag → review: 1, for example {image}" in told
    unlatent("policy", "set", *thresholds, "--source", "web", "--reason", "fewer false alarms")
    assert "fewer false alarms" in unlatent("policy", "list")
    resume = ("policy", "resume", "web", "--reason", "none", "--by", "kim")
    assert "nothing was stopped" in unlatent(*resume)
    for _ in range(200):
        scored(0.99)
    assert "web: flagging stopped at" in unlatent("policy", "check")
    assert "every source is within" in unlatent("policy", "check")
    assert "web flags again" in unlatent(*resume)
    with pytest.raises(SettingsError, match="needs at least 300 images"):
        unlatent("policy", "threshold", "--false-positives", "0.01")


def test_links_open_in_a_browser(
    unlatent: Callable[..., str],
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    s3_client: Any,
    settings: Settings,
    bucket: str,
) -> None:
    """`link` presigns picture and evidence; the views give addresses from the configured base."""
    s3_client.put_object(Bucket=bucket, Key="a cat+1.jpg", Body=b"picture")
    s3_client.put_object(Bucket=bucket, Key="evidence/a.png", Body=b"map")
    image = scored(0.97, key="a cat+1.jpg", evidence_uri=f"s3://{bucket}/evidence/a.png")
    links = unlatent("link", str(image), "--minutes", "2").split()
    bodies = [urllib.request.urlopen(link, timeout=10).read() for link in links]  # noqa: S310 - ours
    assert bodies == [b"picture", b"map"]
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(links[0].partition("?")[0], timeout=10)  # noqa: S310 - ours
    assert settings.postgres.owner_url is not None
    base = Moderation(
        image_url="https://console.example/{id}",
        evidence_url="https://store.example/{bucket}/{key}",
    )
    sql_settings.write_sql_settings(
        settings.postgres.owner_url.get_secret_value(),
        settings.model_copy(update={"moderation": base}),
    )
    seen = desk().rows("SELECT image_url, evidence_url FROM moderation.verdicts")
    assert seen == [
        (f"https://console.example/{image}", f"https://store.example/{bucket}/evidence/a.png")
    ]
    keyed = Moderation(image_url="https://store.example/{bucket}/{key}")
    sql_settings.write_sql_settings(
        settings.postgres.owner_url.get_secret_value(),
        settings.model_copy(update={"moderation": keyed}),
    )
    address = desk().value("SELECT image_url FROM moderation.verdicts")
    assert address == f"https://store.example/{bucket}/a%20cat%2B1.jpg"


def test_layers_open_in_a_browser_and_make_one_picture(
    unlatent: Callable[..., str],
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    engine: Engine,
    settings: Settings,
    bucket: str,
    tmp_path: Path,
) -> None:
    """Every file has a link, the views say where they lie, and `--save` writes what they show."""
    image = scored(0.97, key="a.jpg", sha256="ab" * 32, distance=2.5, tiles=TILES)
    ledger, storage = PostgresLedger(engine), S3Storage(settings.s3)
    known = {"model_version": "model-1", "intake_version": INTAKE_VERSION}
    verdict = ledger.reusable_verdicts(["ab" * 32], **known)["ab" * 32]
    files = make_evidence(np.full((480, 640, 3), 90, np.uint8), score_of(verdict))
    uri = store_evidence(files, verdict, storage=storage, ledger=ledger, bucket=bucket)
    for command in ("link", "evidence"):
        links = unlatent(command, str(image)).split()[-2:]
        names = [urlsplit(link).path.rpartition("/")[2] for link in links]
        assert names == ["evidence.json", "preview.jpg"]
        bodies = [urllib.request.urlopen(link, timeout=10).read() for link in links]  # noqa: S310 - ours
        assert bodies == [files["evidence.json"], files["preview.jpg"]]
    seen = "SELECT evidence_uri, tiles FROM moderation."
    told = (uri, [{"box": [320, 0, 128, 128], "logit": 2.5}])
    for view in ("verdicts", "review_queue"):
        assert desk().rows(seen + view) == [told]
    file = tmp_path / "evidence.png"
    assert unlatent("evidence", str(image), "--save", str(file)) == ""
    assert file.read_bytes() == flat_picture(files)
    with pytest.raises(SettingsError, match=r"--save .*/nowhere/a\.png: No such file"):
        unlatent("evidence", str(image), "--save", str(tmp_path / "nowhere" / "a.png"))


def test_a_database_without_limits_is_told_to_who_adds_people(
    unlatent: Callable[..., str], desk: Callable[..., Any], superuser: Connection
) -> None:
    """Where the administrator's part of an upgrade is missing, adding a moderator says so."""
    newcomer = desk(allowed=False)
    assert unlatent("moderators", "allow", newcomer.name) == ""
    superuser.execute(
        sql.SQL("ALTER DATABASE {} RESET ALL").format(sql.Identifier(superuser.info.dbname))
    )
    superuser.execute(  # what a pooler has open knows the old settings
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'unlatent_app'"
    )
    command = f"psql --file worker/bootstrap.sql {superuser.info.dbname}"
    assert command in unlatent("moderators", "allow", newcomer.name)


def test_operators_manage_people_webhooks_and_retention(
    unlatent: Callable[..., str], desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """People are allowed and disallowed, dead letters counted, an image erased on request."""
    image = scored()
    newcomer = desk(allowed=False)
    with pytest.raises(SettingsError, match="CREATE ROLE"):
        unlatent("moderators", "allow", "nobody_at_all")
    unlatent("moderators", "allow", newcomer.name, "--source", "web", "--lead")
    assert [newcomer.name, "web", "True"] in table(unlatent("moderators", "list"))
    assert newcomer.value("SELECT count(*) FROM moderation.verdicts") == 1
    assert "done" in unlatent("moderators", "disallow", newcomer.name)
    assert newcomer.value("SELECT count(*) FROM moderation.verdicts") == 0
    assert "waiting=0 delivered=0 dead=0" in unlatent("webhooks", "dead")
    assert "0 will be sent" in unlatent("webhooks", "replay", "--dead")
    with pytest.raises(SettingsError, match="WEBHOOKS__URL"):
        unlatent("webhooks", "run", "--once")
    done = unlatent("retain", "--erase", str(image), "--reason", "her request")
    assert re.search(r"1 erased, 0 originals, 0 evidence in \d+\.\d s \(\d+\.\d/s\)", done)


def test_a_lead_holds_an_image_against_everything(
    unlatent: Callable[..., str], desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """What is held is listed, cannot be deleted or held twice, and is let go by name and reason."""
    image, lead, clerk = str(scored()), desk(lead=True), desk()
    with pytest.raises(SettingsError, match="placed by a lead"):
        unlatent("holds", "place", image, "--reason", "mine", who=clerk)
    unlatent("holds", "place", image, "--reason", "court order 7", who=lead)
    with pytest.raises(SettingsError, match=f"already, by {lead.name}: court order 7"):
        unlatent("holds", "place", image, "--reason", "court order 8", who=lead)
    listed = unlatent("holds", "list", who=clerk)
    for told in (image, "web", lead.name, "court order 7"):
        assert told in listed
    with pytest.raises(UnderHold, match="lift it first"):
        unlatent("retain", "--erase", image)
    with pytest.raises(SettingsError, match="lifted by a lead"):
        unlatent("holds", "lift", image, "--reason", "mine", who=clerk)
    assert "True" in unlatent("holds", "lift", image, "--reason", "case closed", who=lead)
    assert "False" in unlatent("holds", "lift", image, "--reason", "case closed", who=lead)
    assert image not in unlatent("holds", "list", who=clerk)
    history = unlatent("verdicts", "--image", image, who=clerk)
    assert re.search(rf"legal hold +{lead.name} +court order 7", history)
    assert re.search(rf"legal hold lifted +{lead.name} +case closed", history)
    trail = lead.rows("SELECT action, actor, reason FROM moderation.audit_trail ORDER BY at")
    assert [row for row in trail if "hold" in row[0]] == [
        ("place_hold", lead.name, "court order 7"),
        ("lift_hold", lead.name, "case closed"),
    ]
    assert "1 erased" in unlatent("retain", "--erase", image)
    with pytest.raises(SettingsError, match="deleted on request"):
        unlatent("link", image)
    with pytest.raises(EvidenceUnavailable, match="is deleted"):
        unlatent("evidence", image)
    with pytest.raises(SettingsError, match="nothing left to hold"):
        unlatent("holds", "place", image, "--reason", "too late", who=lead)
