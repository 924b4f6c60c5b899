"""Workers follow the registry's pointers, and keep what serves when they cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from detection.errors import TransientError
from worker.database.engine import LedgerUnavailable
from worker.ledger.memory import MemoryLedger
from worker.models.registry import ActiveModels, ModelVersion
from worker.models.reloader import ModelReloader, first_model
from worker.scoring.device.verdict_store import VerdictStore
from worker.scoring.device_thread import InferenceThread
from worker.scoring.memory import MemoryScorer
from worker.scoring.shadow_scoring import in_share
from worker.settings import Scoring
from worker.telemetry.health import Health
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD, NEW, OTHER = (
    ModelVersion(digest=digest, name=digest, uri="s3://b/x") for digest in ("old", "new", "other")
)


class Registry:
    """Pointers that a test sets; `away` is the database's absence."""

    def __init__(self) -> None:
        self.now = ActiveModels()
        self.away = 0

    def active(self) -> ActiveModels:
        """Return the pointers."""
        if self.away:
            self.away -= 1
            raise LedgerUnavailable
        return self.now

    def champion(self) -> ModelVersion | None:
        """Return the champion."""
        return self.active().champion


class Fleet:
    """One worker's device that follows a registry; `loaded` notes what was loaded."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry()
        self.loaded: list[str] = []
        self.pruned: list[set[str]] = []
        self.fault: Exception | None = None
        self.imposter: MemoryScorer | None = None
        self.metrics = Metrics()
        health = Health(folder)
        verdicts = VerdictStore(MemoryLedger(), health=health, metrics=self.metrics)
        self.device = InferenceThread(
            lambda: MemoryScorer("old"),
            conclude=verdicts.store,
            settings=Scoring(max_batch=2),
            beat=health.beat,
            metrics=self.metrics,
        )
        self.device.start()
        self.reloader = ModelReloader(
            registry=self.registry,  # type: ignore[arg-type]  # the pointers are all it asks for
            load=self.load,
            prune=self.pruned.append,
            device=self.device,
            metrics=self.metrics,
            every_s=0.01,
        )

    def load(self, model: ModelVersion) -> MemoryScorer:
        """Load a model, or fail as the test says."""
        self.loaded.append(model.digest)
        if self.fault is not None:
            raise self.fault
        return self.imposter or MemoryScorer(model.digest)

    @property
    def models(self) -> tuple[str, str | None]:
        """The digests of champion and shadow."""
        return self.device.model_version, self.device.shadow_version

    def changes(self, role: str, outcome: str) -> float:
        """Return the metric of changes."""
        labels = {"role": role, "outcome": outcome}
        return self.metrics.registry.get_sample_value("unlatent_model_changes_total", labels) or 0


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A worker whose device is stopped in the end."""
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.reloader.stop()
    fleet.device.stop()


def test_a_shadow_comes_is_promoted_and_rolled_back(fleet: Fleet) -> None:
    """A promoted challenger is not loaded again; a rolled back champion is."""
    fleet.reloader.follow()
    assert fleet.models == ("old", None)
    fleet.registry.now = ActiveModels(champion=OLD, shadow=NEW)
    fleet.reloader.follow()
    assert fleet.models == ("old", "new")
    fleet.registry.now = ActiveModels(champion=NEW)
    fleet.reloader.follow()
    assert fleet.models == ("new", None)
    assert fleet.loaded == ["new"]
    fleet.registry.now = ActiveModels(champion=OLD)
    fleet.reloader.follow()
    assert fleet.models == ("old", None)
    assert fleet.loaded == ["new", "old"]
    assert fleet.changes("champion", "done") == 2
    fleet.reloader.follow()
    used = [digests - {""} for digests in fleet.pruned]
    assert used == [{"old"}, {"old", "new"}, {"new"}, {"old"}]  # once a change, not at every look


def test_a_model_that_cannot_be_loaded_leaves_the_old_one(fleet: Fleet) -> None:
    """It is refused once, counted, and not loaded again at every look."""
    fleet.fault = ValueError("a hash is wrong")
    fleet.registry.now = ActiveModels(champion=NEW)
    for _ in range(3):
        fleet.reloader.follow()
    assert fleet.models == ("old", None)
    assert fleet.loaded == ["new"]
    assert fleet.changes("champion", "refused") == 1
    fleet.fault = None
    fleet.registry.now = ActiveModels(champion=OTHER)
    fleet.reloader.follow()
    assert fleet.models == ("other", None)


def test_storage_that_is_away_is_asked_again(fleet: Fleet) -> None:
    """An outage is no fault of the model: the next look loads it."""
    fleet.fault = TransientError("no storage")
    fleet.registry.now = ActiveModels(champion=NEW)
    fleet.reloader.follow()
    assert fleet.changes("champion", "unavailable") == 1
    fleet.fault = None
    fleet.reloader.follow()
    assert fleet.models == ("new", None)


def test_another_model_than_was_asked_for_is_refused(fleet: Fleet) -> None:
    """A verdict's version is what the registry promoted, or there is no swap."""
    fleet.imposter = MemoryScorer("imposter")
    fleet.registry.now = ActiveModels(champion=NEW)
    fleet.reloader.follow()
    assert fleet.models == ("old", None)


def test_the_first_model_is_the_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    """A starting worker waits for the registry; before any promotion the settings decide."""
    waits: list[float] = []
    monkeypatch.setattr("worker.models.reloader.time.sleep", waits.append)
    registry = Registry()

    def start() -> str:
        scorer = first_model(
            registry,  # type: ignore[arg-type]  # the pointers are all it asks for
            lambda model: MemoryScorer(model.digest),
            lambda: MemoryScorer("default"),
        )
        return scorer.model_version

    assert start() == "default"
    registry.now = ActiveModels(champion=NEW)
    registry.away = 2
    assert start() == "new"
    assert waits == [1.0, 2.0]


def test_a_share_is_the_same_everywhere_and_about_its_size() -> None:
    """The draw depends on the id alone, and a larger share contains a smaller one."""
    ids = [UUID(int=number) for number in range(4000)]
    tenth = {image for image in ids if in_share(image, 0.1)}
    half = {image for image in ids if in_share(image, 0.5)}
    assert tenth < half
    # Binomial: 400 and 2000 within four standard deviations.
    assert abs(len(tenth) - 400) < 76
    assert abs(len(half) - 2000) < 127
    assert not any(in_share(image, 0) for image in ids)
    assert all(in_share(image, 1) for image in ids)
