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
from collections import Counter
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
from tests.support.faults.idle_moderators import IdleModerators
from tests.support.faults.process_crew import Crew, changed
from tests.support.faults.proxy import Proxy, bare, status
from tests.support.upload_site import Site, png
from worker.database.engine import build_engine, migrate
from worker.ingest.events import own_event
from worker.ingest.reconcile import reconcile
from worker.ledger.interface import State, Upload
from worker.localstack import LocalStack
from worker.localstack.identity import DATABASE
from worker.queue.publisher import CeleryPublisher
from worker.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.faults.proxy import Fault
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
    "odd answers",
    "giant entries",
    "idle moderator",
)
#: What storage answers for a key that begins with the name, and how its image ends. `bare` is the
#: answer of a store that names neither etag nor length.
_ODD: dict[str, tuple[Fault, State]] = {
    "bare": (bare(png(77)), State.SCORED),
    "ssec": (status("400 Bad Request", "<Code>InvalidRequest</Code>"), State.FAILED),
    "forbidden": (status("403 Forbidden", "<Code>AccessDenied</Code>"), State.FAILED),
    "archived": (status("403 Forbidden", "<Code>InvalidObjectState</Code>"), State.FAILED),
    "gone": (status("410 Gone"), State.FAILED),
    "redirected": (
        status("301 Moved Permanently", "<Code>PermanentRedirect</Code>"),
        State.FAILED,
    ),
    "range": (status("416 Range Not Satisfiable", "<Code>InvalidRange</Code>"), State.FAILED),
    "withheld": (status("451 Unavailable For Legal Reasons"), State.FAILED),
}
_GIANT_RECORDS = 1000


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
            "beat": lambda: crew.service("beat"),
        }
        self._moderators = IdleModerators(stack.postgres.dsn(DATABASE))
        self._running = {name: start() for name, start in self._starters.items()}
        self.keys: list[str] = []
        #: How the images that storage answers oddly for must end, by key.
        self.odd: dict[str, State] = {}
        #: Those that were removed and stored again.
        self.stored_again: set[str] = set()
        self.log: list[str] = []
        self._etags: dict[str, str] = {}
        self._ingest = settings.redis.key_prefix + settings.redis.ingest_key
        self._bucket = settings.s3.buckets[0]

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
                self._etags[key] = etag
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

    def close(self) -> None:
        """End what moderators have left open: until then the books had to balance all the same."""
        self._moderators.close()

    def _fault(self, at_s: float, accounts: Accounts) -> None:
        outage_s = self._random.uniform(*_OUTAGE_S)
        name = self._random.choice(_FAULTS)
        self.log.append(f"{at_s:7.1f} s  {name} ({outage_s:.1f} s)")
        worker = self._running[self._random.choice(("worker-a", "worker-b"))]
        if name == "odd answers":
            self._announce_odd()
        elif name == "giant entries":
            self._announce_giants()
        elif name == "idle moderator":
            self.log.append(f"            after {self._moderators.forget(self._random)}")
        else:
            self._break(name, worker, outage_s, accounts)

    def _break(self, name: str, worker: WorkerProcess, outage_s: float, accounts: Accounts) -> None:
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

    def _announce_odd(self) -> None:
        """Announce an object of each odd kind, with and without an identity."""
        events = []
        for name, (_, state) in _ODD.items():
            for etag in ("e", None):
                key = f"{name}-{len(self.odd)}-{etag}.png"
                events.append(own_event(Upload(bucket=self._bucket, key=key, etag=etag)))
                # Without an identity what storage never gives is refused before the ledger.
                if etag or state is State.SCORED:
                    self.odd[key] = state
        self._push(*events)

    def _announce_giants(self) -> None:
        """Announce known objects again, in entries of as many records as are read, one bad."""
        for _ in range(3):
            known = self._copies.choices(self.keys, k=_GIANT_RECORDS - 1)
            records: list[object] = [self._record(key) for key in known]
            self._push(json.dumps({"Records": [*records, {"eventVersion": "2.1"}]}).encode())

    def _record(self, key: str) -> dict[str, object]:
        stored = {"key": key, "eTag": self._etags[key]}
        return {
            "eventVersion": "2.1",
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": self._bucket}, "object": stored},
        }

    def _push(self, *entries: bytes) -> None:
        url = self._settings.redis.url.get_secret_value()
        with Redis.from_url(url, socket_timeout=5) as redis:
            redis.rpush(self._ingest, *entries)

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
        migrate(stack.addresses.owner_url())
        bucket = f"failure-{uuid4().hex}"
        stack.s3.make_buckets([bucket])
        settings = Settings.model_validate(
            {
                "postgres": {"url": stack.addresses.database_url()},
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


def _odd_answer(request: bytes) -> Fault | None:
    """Choose what storage answers by the key in the request's first line."""
    name = request.partition(b"\r\n")[0].rpartition(b"/")[0].rpartition(b"/")[2].partition(b"-")[0]
    return _ODD.get(name.decode(errors="replace"), (None,))[0]


def run(minutes: float, seed: int) -> int:
    """Run chaos on a stack of its own; raises `AssertionError` when the books do not balance."""
    with own_stack() as (stack, usual), Proxy(stack.s3.port) as proxy:
        proxy.choose = _odd_answer
        settings = changed(usual, "s3", endpoint_url=f"http://127.0.0.1:{proxy.port}")
        settings = changed(settings, "queue", visibility_timeout_s=5, sweep_every_s=1.0)
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
                    [*deployment.keys, *deployment.odd],
                    stored_again=deployment.stored_again,
                    processes=crew.left_behind,
                    timeout_s=300,
                )
                expected = Counter(deployment.odd.values())
                expected[State.SCORED] += len(deployment.keys)
                assert states == expected, states
            except (AssertionError, UnlatentError):
                sys.stderr.write(f"chaos failed with seed {seed}; its faults were\n")
                sys.stderr.write("\n".join(deployment.log) + "\n")
                raise
            finally:
                deployment.close()
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
