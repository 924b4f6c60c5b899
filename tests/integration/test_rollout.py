"""Processes in place of pods, with the manifests' own probes, arguments, signal and grace."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.manifests import Pods, pods
from tests.processes import WorkerProcess
from tests.site import Site, png
from tests.waiting import eventually
from worker.ledger import State

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Engine

    from worker.settings import Settings

MANIFESTS = {made.name: made for made in pods("production-gpu")}


def passes(made: Pods, probe: str, settings: Settings) -> bool:
    """Run a probe of the manifest where the process keeps its files."""
    run_dir = str(settings.observability.run_dir)
    command = made.container[probe]["exec"]["command"]
    here = [word.replace("/run/unlatent", run_dir) for word in command]
    return subprocess.run(here, check=False, stderr=subprocess.DEVNULL).returncode == 0


def in_folder(settings: Settings, name: str) -> Settings:
    """Give a process files of its own, as a pod has."""
    run_dir = settings.observability.run_dir.with_name(name) / "run"
    observability = settings.observability.model_copy(update={"run_dir": run_dir})
    return settings.model_copy(update={"observability": observability})


@pytest.mark.parametrize("role", ["bridge", "beat"])
def test_probes_pass_in_real_processes(role: str, settings: Settings) -> None:
    """The manifest's arguments start a process, its probes pass there, and SIGTERM ends it."""
    made = MANIFESTS[f"unlatent-{role}"]
    arguments: list[str] = made.container["args"]
    with WorkerProcess(settings, module="worker", arguments=arguments) as process:
        eventually(lambda: passes(made, "startupProbe", settings), what="a started process")
        assert passes(made, "livenessProbe", settings)
        assert process.process.poll() is None
        process.process.terminate()
        assert process.process.wait(made.spec["terminationGracePeriodSeconds"]) == 0


def test_a_rollout_and_a_scale_in_under_load_lose_nothing(site: Site, settings: Settings) -> None:
    """Two workers are replaced one by one while uploads come, then one goes for good."""
    made = MANIFESTS["unlatent-worker"]
    images: list[UUID] = []

    def upload(count: int) -> None:
        images.extend(site.upload(f"{len(images)}.png", png(len(images))) for _ in range(count))

    def begin(name: str) -> tuple[WorkerProcess, Settings]:
        own = in_folder(settings, name)
        return WorkerProcess(own), own

    def up(pair: tuple[WorkerProcess, Settings]) -> None:
        process, own = pair
        process.wait_until_ready()
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert passes(made, probe, own)

    def end(pair: tuple[WorkerProcess, Settings]) -> None:
        process, own = pair
        upload(20)
        process.process.terminate()
        assert process.process.wait(made.spec["terminationGracePeriodSeconds"]) == 0
        assert not passes(made, "readinessProbe", own)

    running: list[Any] = [begin("old-0"), begin("old-1")]
    try:
        for pair in running:
            up(pair)
        for index in range(2):
            end(running[index])
            running.append(begin(f"new-{index}"))
            up(running[-1])
        end(running[2])
        for image_id in images:
            site.wait_for(image_id, State.SCORED)
            assert len(site.verdicts(image_id)) == 1
            assert site.row(image_id).deaths == 0
        assert site.ledger.backlog().leased == 0
        assert running[3][0].stop() == 0
    finally:
        for process, _ in running:
            process.process.kill()
            process.process.wait()


@pytest.fixture
def site(settings: Settings, engine: Engine) -> Site:
    """A platform on this test's own database, queue and bucket."""
    return Site(settings, engine)
