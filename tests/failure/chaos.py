"""Random faults over steady uploads: `python -m tests.failure.chaos --minutes 1 --seed 7`.

The seed fixes which faults are applied in which order and the pauses between them; a fault also
waits until an image has ended since the one before, so that it strikes what works. Two bridges take
in what comes; of some uploads they get an earlier life too, created and removed, in any order and
beside a hook's word, and one row must be left of them. No worker is
killed while an image is one death short of quarantine: whoever kills three workers over one image
does what poison does, and quarantine is then the right end. At the end every server is started
again, the bucket is reconciled, and the books must balance. On failure the seed and the log of
faults are printed: they are how to run it again.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError

from detection.errors import UnlatentError
from tests.support.faults.accounting import Accounts
from tests.support.faults.process_crew import Crew, changed
from tests.support.upload_site import Site, png
from worker.database.engine import build_engine, migrate
from worker.ingest.events import own_event
from worker.ingest.reconcile import reconcile
from worker.ledger.interface import State, Upload
from worker.localstack import LocalStack
from worker.queue.publisher import CeleryPublisher
from worker.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.processes.worker_process import WorkerProcess

_RATE_PER_S = 4.0
#: A deployment this far behind gets no more for the moment: the end would only take longer.
_MOST_WAITING = 200
_PAUSE_S = (2.0, 8.0)
_OUTAGE_S = (0.5, 4.0)
_FAULTS = (
    "kill worker",
    "stop worker",
    "freeze worker",
    "kill bridge",
    "kill redis",
    "redis away",
    "restart postgres",
    "postgres away",
)


def disordered(upload: Upload, order: random.Random) -> list[bytes]:
    """Return the events of an object that was stored, removed and stored again, and a hook's.

    All of one object, in any order: what counts is that it was stored last.
    """
    events = [
        own_event(replace(upload, sequencer=None, source="hook", uploader="u-1")),
        own_event(replace(upload, sequencer="01")),
        _notification("ObjectRemoved:Delete", replace(upload, etag=None, sequencer="02")),
        _notification("ObjectCreated:Put", replace(upload, sequencer="03")),
    ]
    order.shuffle(events)
    return events


def _notification(kind: str, upload: Upload) -> bytes:
    stored = {"key": upload.key, "eTag": upload.etag, "sequencer": upload.sequencer}
    record = {
        "eventVersion": "2.1",
        "eventName": kind,
        "s3": {"bucket": {"name": upload.bucket}, "object": stored},
    }
    return json.dumps({"Records": [record]}).encode()


class Deployment:
    """Two workers, two bridges and beat under a supervisor that starts again what ends."""

    def __init__(self, stack: LocalStack, settings: Settings, crew: Crew, seed: int) -> None:
        self._stack = stack
        self._settings = settings
        self._crew = crew
        self._most_deaths = settings.scoring.max_deaths - 1
        self._random = random.Random(seed)
        # Of its own: how many uploads there are between two faults must not choose the faults.
        self._copies = random.Random(seed)
        self._tick = threading.Event()
        self._starters: dict[str, Callable[[], WorkerProcess]] = {
            "worker-a": crew.worker,
            "worker-b": crew.worker,
            "bridge-a": lambda: crew.bridge("--name", "chaos-a"),
            "bridge-b": lambda: crew.bridge("--name", "chaos-b"),
            "beat": crew.beat,
        }
        self._running = {name: start() for name, start in self._starters.items()}
        self.keys: list[str] = []
        #: Those that were removed and stored again.
        self.stored_again: set[str] = set()
        self.log: list[str] = []

    def run(self, minutes: float, accounts: Accounts) -> None:
        """Upload and break things for so long."""
        begun = time.monotonic()
        end = begun + 60 * minutes
        redis = Redis.from_url(self._settings.redis.url.get_secret_value(), socket_timeout=5)
        ingest = self._settings.redis.key_prefix + self._settings.redis.ingest_key
        site_bucket = self._settings.s3.buckets[0]
        client = self._stack.s3.client()
        fault_at, ended_before = begun + self._random.uniform(*_PAUSE_S), 0
        while (now := time.monotonic()) < end:
            counts = accounts.states()
            if counts[State.PENDING] < _MOST_WAITING:
                key = f"{len(self.keys)}.png"
                body = png(len(self.keys) % 256, side=64 + len(self.keys) % 64)
                etag = client.put_object(Bucket=site_bucket, Key=key, Body=body)["ETag"].strip('"')
                self.keys.append(key)
                events = self._announce(Upload(bucket=site_bucket, key=key, etag=etag))
                # What is lost before the ledger is lost as a whole, in one command: reconciling
                # finds the object.
                with suppress(RedisError):
                    redis.rpush(ingest, *events)
            if now >= fault_at and counts[State.SCORED] > ended_before:
                self._fault(now - begun, accounts)
                fault_at = time.monotonic() + self._random.uniform(*_PAUSE_S)
                ended_before = counts[State.SCORED]
            self.supervise()
            self._tick.wait(1 / _RATE_PER_S)
        redis.close()
        client.close()

    def _announce(self, upload: Upload) -> list[bytes]:
        """Return the events of an upload: one, two of the same, or those of an earlier life too."""
        way = self._copies.choice(("once", "once", "twice", "again"))
        if way == "again":
            self.stored_again.add(upload.key)
            return disordered(upload, self._copies)
        return [own_event(upload)] * (2 if way == "twice" else 1)

    def _fault(self, at_s: float, accounts: Accounts) -> None:
        outage_s = self._random.uniform(*_OUTAGE_S)
        name = self._random.choice(_FAULTS)
        self.log.append(f"{at_s:7.1f} s  {name} ({outage_s:.1f} s)")
        worker = self._running[self._random.choice(("worker-a", "worker-b"))]
        match name:
            case "kill worker" if accounts.pending_with_deaths(self._most_deaths):
                self.log.append("            spared")
            case "kill worker":
                self._crew.kill(worker)
            case "stop worker":
                worker.process.send_signal(signal.SIGTERM)
            case "freeze worker":
                worker.process.send_signal(signal.SIGSTOP)
                self._tick.wait(outage_s)
                worker.process.send_signal(signal.SIGCONT)
            case "kill bridge":
                self._crew.kill(self._running[self._random.choice(("bridge-a", "bridge-b"))])
            case "kill redis":
                self._stack.redis.kill()
                self._stack.redis.start()
            case "redis away":
                self._stack.redis.kill()
                self._tick.wait(outage_s)
                self._stack.redis.start()
            case "restart postgres":
                self._stack.postgres.stop()
                self._stack.postgres.start()
            case "postgres away":
                self._stack.postgres.kill()
                self._tick.wait(outage_s)
                self._stack.postgres.start()

    def supervise(self) -> None:
        """Start again what has ended."""
        for name, process in self._running.items():
            if process.process.poll() is not None:
                self.log.append(f"            {name} ended with {process.process.returncode}")
                self._running[name] = self._starters[name]()


@contextmanager
def own_stack() -> Iterator[tuple[LocalStack, Settings]]:
    """Give services of one's own and the settings of a deployment on them."""
    with LocalStack.temporary() as stack, tempfile.TemporaryDirectory() as folder:
        migrate(stack.owner_url())
        bucket = f"failure-{uuid4().hex}"
        stack.make_buckets([bucket])
        settings = Settings.model_validate(
            {
                "postgres": {"url": stack.database_url()},
                "redis": {"url": stack.redis.url, "key_prefix": "failure:"},
                "s3": {
                    "endpoint_url": stack.s3.endpoint_url,
                    "access_key_id": stack.s3.access_key_id,
                    "secret_access_key": stack.s3.secret_access_key,
                    "buckets": (bucket,),
                },
                "scoring": {"threads": 4, "max_batch": 4},
                "observability": {"run_dir": Path(folder)},
            }
        )
        yield stack, settings


def run(minutes: float, seed: int) -> int:
    """Run chaos on a stack of its own; raises `AssertionError` when the books do not balance."""
    with own_stack() as (stack, usual):
        settings = changed(usual, "queue", visibility_timeout_s=5, sweep_every_s=1.0)
        settings = changed(settings, "scoring", lease_s=10.0)
        (bucket,) = settings.s3.buckets
        engine = build_engine(settings.postgres)
        site = Site(settings, engine)
        accounts = Accounts(settings, engine)
        begun = datetime.now(UTC) - timedelta(minutes=1)
        with Crew(settings) as crew:
            deployment = Deployment(stack, settings, crew, seed)
            try:
                deployment.run(minutes, accounts)
                deployment.supervise()
                reconcile(
                    bucket,
                    since=begun,
                    storage=site.storage,
                    ledger=site.ledger,
                    publisher=CeleryPublisher(site.celery, site.ledger),
                )
                accounts.keep = deployment.supervise
                states = accounts.check(
                    deployment.keys,
                    stored_again=deployment.stored_again,
                    processes=crew.left_behind,
                    timeout_s=180,
                )
                assert states == {State.SCORED: len(deployment.keys)}, states
            except (AssertionError, UnlatentError):
                sys.stderr.write(f"chaos failed with seed {seed}; its faults were\n")
                sys.stderr.write("\n".join(deployment.log) + "\n")
                raise
            finally:
                accounts.close()
                engine.dispose()
        sys.stdout.write("\n".join(deployment.log) + "\n")
        return len(deployment.keys)


def main() -> int:
    """Run chaos as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    sys.stdout.write(f"seed {options.seed}\n")
    images = run(options.minutes, options.seed)
    sys.stdout.write(f"{images} images: none lost, none twice, none quarantined\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
