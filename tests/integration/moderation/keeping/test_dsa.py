"""Statements of reasons, as the DSA Transparency Database takes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

import tests.support
from detection.errors import SettingsError
from worker.cli import build_app
from worker.cli.context import Context
from worker.ledger.interface import Removal
from worker.ledger.postgres import PostgresLedger
from worker.moderation import dsa_statements
from worker.moderation.dsa_statements import calls
from worker.settings import Dsa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    import psycopg
    from click.testing import Result
    from sqlalchemy import Engine

    from worker.settings import Settings

SCHEMA = Path(tests.support.__path__[0]) / "schemas" / "dsa_statements.json"
OURS = {"ground_reference": "Terms of use, 4.2", "explanation": "Generated images must say so."}
GENERATED = "SELECT moderation.decide(%s, 'generated', 'generated_artefacts', 'seen with Ann')"


def export(engine: Engine, *, since: datetime | None = None, **settings: Any) -> list[Any]:
    """Return the bodies of all calls, each of which the published format allows."""
    now = datetime.now(UTC)
    bodies = list(
        calls(
            engine,
            Dsa(**(OURS | settings)),
            since=since or now - timedelta(days=1),
            until=now + timedelta(minutes=1),
        )
    )
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    for body in bodies:
        validator.validate(json.loads(json.dumps(body)))
    return bodies


def statements(bodies: list[Any]) -> Iterator[dict[str, Any]]:
    """Return every statement of every call."""
    for body in bodies:
        yield from body["statements"]


def test_statements_say_how_it_was_found_and_decided(
    desk: Callable[..., Any], scored: Callable[..., UUID], engine: Engine
) -> None:
    """Flagged and confirmed, found by people, flagged alone: three kinds, and no person in any."""
    confirmed, reported = scored(0.99), scored(0.1)
    flagged, cleared = scored(0.99), scored(0.99)
    someone = desk()
    someone.value(GENERATED, confirmed)
    someone.value("SELECT moderation.request_review(%s, 'report', 'by Bob')", reported)
    someone.value(GENERATED, reported)
    someone.value("SELECT moderation.decide(%s, 'real', 'real_original')", cleared)
    by_people = {one["puid"].rpartition("-")[0]: one for one in statements(export(engine))}
    assert by_people.keys() == {f"unlatent-{confirmed}", f"unlatent-{reported}"}
    one = by_people[f"unlatent-{confirmed}"]
    assert (one["automated_detection"], one["automated_decision"], one["source_type"]) == (
        "Yes",
        "AUTOMATED_DECISION_PARTIALLY",
        "SOURCE_VOLUNTARY",
    )
    assert "CONTENT_TYPE_SYNTHETIC_MEDIA" in one["content_type"]
    one = by_people[f"unlatent-{reported}"]
    assert (one["automated_detection"], one["automated_decision"], one["source_type"]) == (
        "No",
        "AUTOMATED_DECISION_NOT_AUTOMATED",
        "SOURCE_ARTICLE_16",
    )
    # Where flags restrict, a flag that nobody cleared is a restriction, and confirming it is none.
    everything = {
        one["puid"]: one["automated_decision"]
        for one in statements(export(engine, flags_restrict=True))
    }
    found = {(puid.rpartition("-")[0], how) for puid, how in everything.items()}
    assert found == {
        (f"unlatent-{flagged}", "AUTOMATED_DECISION_FULLY"),
        (f"unlatent-{confirmed}", "AUTOMATED_DECISION_FULLY"),
        (f"unlatent-{reported}", "AUTOMATED_DECISION_NOT_AUTOMATED"),
    }
    written = json.dumps(export(engine, flags_restrict=True))
    for personal in ("anna@example.com", someone.name, "Ann", "Bob", ".jpg"):
        assert personal not in written


def test_a_restriction_is_told_once_and_only_while_it_stands(
    desk: Callable[..., Any], scored: Callable[..., UUID], engine: Engine
) -> None:
    """A second person's agreement adds nothing; what was overturned is told no more."""
    stands, lifted = scored(0.99), scored(0.99)
    one, other, lead = desk(), desk(), desk(lead=True)
    for image in (stands, lifted):
        one.value(GENERATED, image)
        other.value(GENERATED, image)
    first = list(statements(export(engine)))
    assert len(first) == 2
    lead.value("SELECT moderation.overturn(%s, 'real', 'real_original')", lifted)
    again = list(statements(export(engine)))
    assert again == [told for told in first if str(stands) in told["puid"]]
    assert export(engine, since=datetime.now(UTC)) == []


def test_a_confirmed_flag_is_told_though_its_image_left(
    desk: Callable[..., Any], scored: Callable[..., UUID], engine: Engine, settings: Settings
) -> None:
    """A restriction that a person confirmed was one, whatever became of the image afterwards."""
    confirmed, _unseen = scored(0.99, key="confirmed.jpg"), scored(0.99, key="unseen.jpg")
    desk().value(GENERATED, confirmed)
    bucket = settings.s3.buckets[0]
    for key in ("confirmed.jpg", "unseen.jpg"):
        gone = Removal(bucket=bucket, key=key, version_id=None, sequencer="F")
        PostgresLedger(engine).withdraw([gone])
    (one,) = statements(export(engine, flags_restrict=True))
    assert str(confirmed) in one["puid"]
    assert one["automated_decision"] == "AUTOMATED_DECISION_FULLY"


def test_a_flag_after_a_decision_is_no_second_restriction(
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    engine: Engine,
    superuser: psycopg.Connection,
) -> None:
    """What a person restricted, a later model cannot restrict again."""
    image = scored(0.1)
    desk().value(GENERATED, image)
    superuser.execute(
        "INSERT INTO app.verdicts (image_id, lease_id, model_version, role, score, label,"
        " branches, decided_by, operating_point, prior, device, dtype) SELECT image_id,"
        " lease_id, 'm2', role, 0.99, 'generated', branches, decided_by, operating_point,"
        " prior, device, dtype FROM app.verdicts"
    )
    (one,) = statements(export(engine, flags_restrict=True))
    assert one["puid"].startswith(f"unlatent-{image}-d")


def test_a_call_holds_no_more_than_the_api_takes(
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More statements than fit make several calls, with every statement in one of them."""
    assert dsa_statements.STATEMENTS_A_CALL == 100
    monkeypatch.setattr(dsa_statements, "STATEMENTS_A_CALL", 2)
    images = [scored(0.99) for _ in range(5)]
    someone = desk()
    for image in images[:3]:
        someone.value(GENERATED, image)
    bodies = export(engine, flags_restrict=True)
    assert [len(body["statements"]) for body in bodies] == [2, 2, 1]
    assert len({one["puid"] for one in statements(bodies)}) == 5


def test_illegal_content_names_its_law(
    desk: Callable[..., Any], scored: Callable[..., UUID], engine: Engine
) -> None:
    """The ground of the settings decides which fields say it; without words there is no export."""
    desk().value(GENERATED, scored(0.99))
    (one,) = statements(export(engine, ground="DECISION_GROUND_ILLEGAL_CONTENT"))
    assert one["illegal_content_legal_ground"] == OURS["ground_reference"]
    assert "incompatible_content_ground" not in one
    with pytest.raises(SettingsError, match="UNLATENT_DSA__GROUND_REFERENCE"):
        export(engine, ground_reference=None)


@pytest.fixture
def unlatent(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `unlatent export dsa` with what it needs in the environment."""
    monkeypatch.setenv("UNLATENT_POSTGRES__URL", settings.postgres.url.get_secret_value())
    monkeypatch.setenv("UNLATENT_DSA__GROUND_REFERENCE", OURS["ground_reference"])
    monkeypatch.setenv("UNLATENT_DSA__EXPLANATION", OURS["explanation"])

    def run(*options: str) -> Result:
        command = ["export", "dsa", *options]
        return CliRunner().invoke(build_app(), command, obj=Context(), catch_exceptions=False)

    return run


def test_the_command_writes_a_file_for_each_call(
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    superuser: psycopg.Connection,
    unlatent: Callable[..., Result],
    tmp_path: Path,
) -> None:
    """`unlatent export dsa` writes bodies, says where the next begins, and overwrites none."""
    desk().value(GENERATED, scored(0.99))
    superuser.execute("ALTER TABLE app.decisions DISABLE TRIGGER append_only")
    superuser.execute("UPDATE app.decisions SET created_at = created_at - interval '1 hour'")
    options = ["--since", "2026-01-01", "--out", str(tmp_path / "out")]
    assert "1 statements of reasons in 1 files" in unlatent(*options).output
    (file,) = (tmp_path / "out").iterdir()
    assert len(json.loads(file.read_text())["statements"]) == 1
    with pytest.raises(SettingsError, match="not empty"):
        unlatent(*options)


def test_an_export_ends_before_what_is_being_decided(
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    superuser: psycopg.Connection,
    unlatent: Callable[..., Result],
    tmp_path: Path,
) -> None:
    """What was decided just now is left to the next export, which begins where this one ended."""
    desk().value(GENERATED, scored(0.99))
    out = ["--out", str(tmp_path / "out")]
    first = unlatent("--since", "2026-01-01", *out)
    assert "0 statements" in first.output
    (_, began) = first.output.strip().rsplit("--since ", maxsplit=1)
    superuser.execute("ALTER TABLE app.decisions DISABLE TRIGGER append_only")
    ends = datetime.fromisoformat(began + "+00:00")
    assert timedelta(minutes=15) <= datetime.now(UTC) - ends < timedelta(minutes=20)
    superuser.execute("UPDATE app.decisions SET created_at = %s", [ends - timedelta(seconds=1)])
    assert "1 statements" in unlatent("--since", "2026-01-01", *out).output
    too_late = unlatent("--since", began, "--until", "2126-01-01", "--out", str(tmp_path / "new"))
    assert too_late.exit_code == 2
    assert "quarter of an hour" in " ".join(too_late.output.replace("│", "").split())
    assert not (tmp_path / "new").exists()
