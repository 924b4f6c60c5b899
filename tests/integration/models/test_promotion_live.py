"""Champions come and go under live uploads: no restart, no lost message, one verdict a version."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Self

import pytest
from sqlalchemy import select, text
from typer.testing import CliRunner

from detection.errors import SettingsError
from tests.support.bundles.hollow_bundle import build_hollow_bundle
from tests.support.faults.accounting import Accounts
from tests.support.processes.worker_process import WorkerProcess
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.cli import build_app
from worker.cli.context import Context
from worker.ledger.interface import Role
from worker.ledger.tables import LeaseRow, VerdictRow
from worker.models.loading import threshold_warnings
from worker.models.registry import GateNotPassed, ModelsRegistry
from worker.settings import PREFIX, child_environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from uuid import UUID

    from sqlalchemy import Engine

    from worker.settings import Settings

LONG_S = 120.0


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """This test's services, with bundles in its bucket and impatient workers."""
    scoring = {
        "reload_every_s": 0.2,
        "shadow_share": 1.0,
        "cache": settings.observability.run_dir.with_name("models"),
    }
    return settings.model_copy(
        update={
            "training": settings.training.model_copy(update={"bucket": settings.s3.buckets[0]}),
            "scoring": settings.scoring.model_copy(update=scoring),
        }
    )


@pytest.fixture
def models(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`unlatent models …` on this test's services; returns what it prints."""
    for name, value in child_environment(settings).items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, value)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(build_app(), ["models", *arguments], obj=Context())
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return run


@pytest.fixture
def release(models: Callable[..., str], tmp_path: Path) -> Callable[[str], str]:
    """Register a bundle without weights by its name; returns its digest."""

    def register(name: str) -> str:
        bundle = build_hollow_bundle(tmp_path / name, name)
        assert models("register", str(bundle.folder)).startswith(bundle.model_version)
        return bundle.model_version

    return register


def test_a_champion_calibrated_on_other_pixels_is_warned_of(
    models: Callable[..., str],
    settings: Settings,
    engine: Engine,
    tmp_path: Path,
) -> None:
    """`models list` and `status` name the model and both intake versions."""
    build_hollow_bundle(tmp_path / "other", "other", intake_versions=(98,))
    digest = models("register", str(tmp_path / "other")).split()[0]
    registry = ModelsRegistry(engine)
    registry.promote(digest, actor="t", reason="r", forced=True)
    (warning,) = threshold_warnings(settings, registry)
    assert warning.startswith(f"model other {digest[:12]}: ")
    assert "intake 98 reads them" in warning
    result = CliRunner().invoke(build_app(), ["models", "list"], obj=Context())
    assert "warning: other: the thresholds were measured" in result.stderr


def pass_gate(engine: Engine, digest: str, champion: str) -> None:
    """Leave the record of a training run whose challenger passed against a champion."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO app.training_runs (slot, trigger, state, stages, lease_until, "
                "ended_at) VALUES ('s', 'calendar', 'finished', jsonb_build_object("
                "'register', jsonb_build_object('model_version', CAST(:digest AS text)), "
                "'train', jsonb_build_object('champion', CAST(:champion AS text)), "
                "'gate', '{\"passed\": true}'::jsonb), now(), now())"
            ),
            {"digest": digest, "champion": champion},
        )


def judged(engine: Engine, digest: str, role: Role) -> int:
    """Count the verdicts of a model in a role."""
    with engine.begin() as connection:
        wanted = select(VerdictRow.id).where(
            VerdictRow.model_version == digest, VerdictRow.role == role
        )
        return len(connection.execute(wanted).all())


def test_the_commands_move_the_pointers(
    models: Callable[..., str], release: Callable[[str], str], engine: Engine
) -> None:
    """Register, promote by gate or by force, shadow and rollback, as `list` then shows."""
    first, second = release("first"), release("second")
    with pytest.raises(GateNotPassed, match="no training run made it"):
        models("promote", first, "--reason", "hope")
    models("promote", first[:12], "--reason", "the first", "--force")
    assert models("challenge", second, "--reason", "try") == f"shadow {second}\n"
    listed = json.loads(models("list", "--format", "json"))[-2:]
    assert [(one["model_version"], one["name"], one["role"]) for one in listed] == [
        (first, "first", "champion"),
        (second, "second", "shadow"),
    ]
    assert all(one["uri"].startswith("s3://") for one in listed)
    assert "images judged by both: 0" in models("shadow")
    pass_gate(engine, second, first)
    assert models("promote", second, "--reason", "better") == f"champion {second}\n"
    assert models("shadow") == "nothing is in shadow\n"
    assert models("rollback", "--reason", "worse") == f"champion {first}\n"
    with pytest.raises(SettingsError, match="several model versions begin with"):
        models("promote", "", "--reason", "any", "--force")
    with engine.begin() as connection:
        history = connection.execute(
            text("SELECT action, model_version, forced, reason FROM app.champion ORDER BY id")
        ).all()
    assert [tuple(row) for row in history] == [
        ("promote", first, True, "the first"),
        ("promote", second, False, "better"),
        ("rollback", first, False, "worse"),
    ]


@pytest.mark.timeout(600)  # three waits for a process that may be starved
def test_a_running_worker_takes_the_new_champion(
    settings: Settings, engine: Engine, models: Callable[..., str], release: Callable[[str], str]
) -> None:
    """It starts with the champion, swaps without a restart, and refuses what is broken."""
    first, second, broken = release("first"), release("second"), release("broken")
    models("promote", first, "--reason", "the first", "--force")
    site = Site(settings, engine)
    with WorkerProcess(settings) as worker:
        worker.wait_until_ready()

        def version_of(name: str, value: int) -> str:
            image_id = site.upload(name, png(value))
            eventually(lambda: bool(site.verdicts(image_id)), timeout_s=LONG_S)
            return str(site.verdicts(image_id)[0].model_version)

        assert version_of("a.png", 10) == first
        models("promote", second, "--reason", "better", "--force")
        eventually(lambda: bool(worker.events("model_changed")), timeout_s=LONG_S)
        assert version_of("b.png", 20) == second
        models("promote", broken, "--reason", "by mistake", "--force")
        eventually(lambda: bool(worker.events("model_refused")), timeout_s=LONG_S)
        assert version_of("c.png", 30) == second
        assert worker.stop() == 0


class Uploads:
    """Somebody who uploads all the while, no faster than it is judged; leaving it ends that."""

    def __init__(self, site: Site) -> None:
        self.images: dict[str, UUID] = {}
        self._site = site
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            if self._site.ledger.backlog().pending > 2:
                continue
            number = len(self.images)
            key = f"{number}.png"
            body = png(number % 256, side=64 + number // 256)
            self.images[key] = self._site.upload(key, body)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_shadow_promotion_and_rollback_under_live_uploads(
    settings: Settings, engine: Engine, models: Callable[..., str], release: Callable[[str], str]
) -> None:
    """Every upload ends once, judged by one champion; no lease is left and nothing died."""
    first, second, broken = release("first"), release("second"), release("broken")
    models("promote", first, "--reason", "the first", "--force")
    site, books = Site(settings, engine), Accounts(settings, engine)

    def until(digest: str, role: Role, more: int = 5) -> None:
        enough = judged(engine, digest, role) + more
        eventually(
            lambda: judged(engine, digest, role) >= enough,
            timeout_s=LONG_S,
            what=f"{more} more verdicts of {digest[:8]} as {role}",
        )

    with WorkerProcess(settings) as worker:
        worker.wait_until_ready()
        with Uploads(site) as uploads:
            until(first, Role.CHAMPION)
            models("challenge", second, "--reason", "passed its gate")
            until(second, Role.SHADOW)
            report = models("shadow")
            assert "another label: 0 (0.0%)" in report  # the same scorer under another name
            assert "correlation of the scores: 1.000" in report
            models("promote", second, "--reason", "agreed", "--force")
            until(second, Role.CHAMPION)
            models("promote", broken, "--reason", "by mistake", "--force")
            eventually(lambda: bool(worker.events("model_refused")), timeout_s=LONG_S)
            until(second, Role.CHAMPION)
            models("rollback", "--reason", "it was one")
            models("rollback", "--reason", "and the one before too")
            until(first, Role.CHAMPION)
        states = books.check(list(uploads.images), timeout_s=LONG_S)
        assert worker.stop() == 0
        assert len(worker.events("worker_ready")) == 1
    assert states == {"scored": len(uploads.images)}
    with engine.begin() as connection:
        roles = connection.execute(select(VerdictRow.image_id, VerdictRow.role)).all()
        outcomes = set(connection.scalars(select(LeaseRow.outcome)))
    champions = [row.image_id for row in roles if row.role == Role.CHAMPION]
    assert sorted(champions) == sorted(uploads.images.values())
    assert {row.role for row in roles} == {"champion", "shadow"}
    assert outcomes <= {"scored", "released"}
    assert judged(engine, broken, Role.CHAMPION) == 0
