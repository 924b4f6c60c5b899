"""Processes in place of pods, with the manifests' own probes, arguments, signal and grace."""

from __future__ import annotations

import subprocess
import threading
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.support.faults.accounting import Accounts
from tests.support.processes.worker_process import WorkerProcess
from tests.support.rendered_manifests import Pods, find, pods
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.ingest.events import own_event
from worker.ledger.interface import State, Upload

if TYPE_CHECKING:
    from types import TracebackType
    from uuid import UUID

    from redis import Redis
    from sqlalchemy import Engine

    from worker.settings import Settings

_STARVED_S = 300
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


class Role:
    """The processes of one deployment, replaced as its manifest's strategy says."""

    def __init__(self, name: str, settings: Settings, *, module: str, replicas: int) -> None:
        self.made = MANIFESTS[f"unlatent-{name}"]
        (deployment,) = (
            document["spec"]
            for document in find("production-gpu", "Deployment")
            if document["metadata"]["name"] == self.made.name
        )
        strategy = deployment["strategy"]
        self._surplus = strategy.get("rollingUpdate", {}).get("maxSurge", 0)
        self._name, self._settings, self._module = name, settings, module
        self._count = 0
        self.running: list[tuple[WorkerProcess, Settings]] = []
        for _ in range(replicas):
            self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process, _ in self.running:
            process.process.kill()
            process.process.wait()

    def roll(self) -> None:
        """Replace every process by a new one."""
        for _ in range(len(self.running)):
            if self._surplus:
                self._begin()
                self.wait()
                self.end()
            else:
                self.end()
                self._begin()
                self.wait()

    def end(self) -> None:
        """Stop the oldest process; it ends well within the manifest's grace.

        A machine that is busy with other things is given more, because nothing is timed here.
        """
        process, own = self.running.pop(0)
        process.process.terminate()
        grace_s = self.made.spec["terminationGracePeriodSeconds"]
        assert process.process.wait(max(grace_s, _STARVED_S)) == 0
        assert "readinessProbe" not in self.made.container or not passes(
            self.made, "readinessProbe", own
        )

    def wait(self) -> None:
        """Wait until the probes of every process pass."""
        probes = {"startupProbe", "livenessProbe", "readinessProbe"} & self.made.container.keys()
        for process, own in self.running:

            def up(process: WorkerProcess = process, own: Settings = own) -> bool:
                assert process.process.poll() is None, process.log.read_text()
                return all(passes(self.made, probe, own) for probe in probes)

            eventually(up, timeout_s=300, what=f"the probes of {self._name}")

    def _begin(self) -> None:
        own = in_folder(self._settings, f"{self._name}-{self._count}")
        self._count += 1
        # The memory worker is `unlatent worker` but for its scorer.
        arguments: list[str] = self.made.container["args"] if self._module == "worker" else []
        self.running.append((WorkerProcess(own, module=self._module, arguments=arguments), own))


class Uploads(threading.Thread):
    """Stores objects and announces them on the ingest list, steadily, until stopped."""

    def __init__(self, site: Site, redis: Redis) -> None:
        super().__init__(name="uploads", daemon=True)
        self._site, self._redis = site, redis
        self._stopped = threading.Event()
        self.keys: list[str] = []

    def run(self) -> None:
        """Upload four a second."""
        redis = self._site.settings.redis
        while not self._stopped.wait(0.25):
            key = f"{len(self.keys)}.png"
            body = png(len(self.keys) % 256, side=64 + len(self.keys) // 256)
            facts = self._site.storage.put(self._site.bucket, key, body, content_type="image/png")
            event = own_event(Upload(bucket=facts.bucket, key=key, etag=facts.etag))
            self._redis.rpush(redis.key_prefix + redis.ingest_key, event)
            self.keys.append(key)

    def stop(self) -> list[str]:
        """Upload no more; return what was uploaded."""
        self._stopped.set()
        self.join()
        return self.keys


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_role_is_rolled_under_load_and_the_books_balance(
    settings: Settings, site: Site, engine: Engine, redis_client: Redis
) -> None:
    """Bridges with surplus, workers without, beat alone; then a scale-in; nothing lost or twice."""
    uploads = Uploads(site, redis_client)
    accounts = Accounts(settings, engine)
    with (
        Role("bridge", settings, module="worker", replicas=2) as bridges,
        Role("beat", settings, module="worker", replicas=1) as beat,
        Role(
            "worker", settings, module="tests.support.processes.memory_worker", replicas=2
        ) as workers,
    ):
        for role in (bridges, beat, workers):
            role.wait()
        uploads.start()
        for role in (bridges, beat, workers):
            role.roll()
        workers.end()
        states = accounts.check(uploads.stop())
        assert set(states) == {State.SCORED}
        for role in (bridges, beat, workers):
            while role.running:
                role.end()
    accounts.close()


@pytest.fixture
def site(settings: Settings, engine: Engine) -> Site:
    """A platform on this test's own database, queue and bucket."""
    return Site(settings, engine)
