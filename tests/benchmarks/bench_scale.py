"""What an image costs every component, for 1, 2, 4, … workers on one Redis and one Postgres.

Workers, bridge, Postgres, Redis and object storage are the real processes; only the forward pass is
replaced by a stated device time. Objects are stored beforehand; a round runs from the moment when
all of its events are in the ingest list to its last verdict. What is counted over a round:

* processor seconds of each component with everything below it (/proc), by its images;
* commands that Redis executed (INFO commandstats), by its images;
* transactions that Postgres committed (pg_stat_database), by its images;
* statements of the service (pg_stat_statements) but BEGIN and COMMIT, by its images.

What the same processes use while nothing comes (polling, probes, metrics) is measured right before
each round and taken off, so that a slow machine, on which a round lasts longer, says the same.

A round *bends* when its rate is below 80 % of what its workers' device time allows; the share of
the machine's processors that were busy, whoever used them, says whether the machine is the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psycopg
from redis import Redis
from sqlalchemy import func, select

from tests.benchmarks.photographlike import make_files
from tests.support.processes.worker_process import WorkerProcess
from tests.support.waiting import eventually
from worker.database.engine import build_engine, migrate
from worker.ledger.tables import VerdictRow
from worker.localstack import LocalStack
from worker.settings import Settings
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Engine

BUCKET = "uploads"
COMPONENTS = ("workers", "bridge", "postgres", "redis", "s3")
#: Of the rate that device time allows.
BENDS_BELOW = 0.8
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: A backend of Postgres reports its transactions within 10 s of falling idle.
_REPORTING_S = 11.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One number of workers, measured."""

    workers: int
    images: int
    seconds: float
    allowed_per_s: float
    cpu_s_per_image: Mapping[str, float]
    redis_commands_per_image: float
    transactions_per_image: float
    statements_per_image: float
    idle_cpu: Mapping[str, float]
    machine_busy: float

    @property
    def images_per_s(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def bends(self) -> bool:
        """Whether the workers' devices waited."""
        return self.images_per_s < BENDS_BELOW * self.allowed_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Counters at one moment, or what they rose by."""

    seconds: float
    cpu_s: Mapping[str, float]
    commands: int
    statements: int
    ticks: int
    busy_ticks: int

    def since(self, other: Counted) -> Counted:
        """Return what was counted since then."""
        return Counted(
            seconds=self.seconds - other.seconds,
            cpu_s={name: self.cpu_s[name] - other.cpu_s[name] for name in self.cpu_s},
            commands=self.commands - other.commands,
            statements=self.statements - other.statements,
            ticks=self.ticks - other.ticks,
            busy_ticks=self.busy_ticks - other.busy_ticks,
        )


def cpu_s(pids: Iterable[int]) -> float:
    """Return the processor seconds that processes and all below them have used, the ended too."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in parentheses may contain anything.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = sum(int(ticks) for ticks in fields[11:15])
    family = list(pids)
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return sum(used.get(pid, 0) for pid in family) / _TICKS_PER_S


def machine_ticks() -> tuple[int, int]:
    """Return the ticks of all processors since boot, and those of them that were busy."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks), sum(ticks) - idle


class Fleet:
    """The services, a bridge, and as many workers as a round asks for."""

    def __init__(self, folder: Path, *, device_s: float, max_batch: int) -> None:
        self._folder = folder
        self._device_s = device_s
        self._max_batch = max_batch
        self._exits = ExitStack()
        self._stack = LocalStack.temporary()

    def __enter__(self) -> Self:
        self._stack.start(buckets=(BUCKET,))
        self._exits.callback(self._stack.stop)
        self._count_statements()
        migrate(self._stack.addresses.owner_url())
        self.settings = Settings.model_validate(
            {
                "postgres": {"url": self._stack.addresses.database_url()},
                "redis": {"url": self._stack.redis.url},
                "s3": {
                    "endpoint_url": self._stack.s3.endpoint_url,
                    "access_key_id": self._stack.s3.access_key_id,
                    "secret_access_key": self._stack.s3.secret_access_key,
                    "buckets": (BUCKET,),
                },
                "scoring": {
                    "device": "cpu",
                    "max_batch": self._max_batch,
                    "threads": 2 * self._max_batch,
                },
                "intake": {"processes": 1},
                "observability": {"log_level": "warning"},
            }
        )
        self.engine: Engine = build_engine(self.settings.postgres)
        self._exits.callback(self.engine.dispose)
        self.storage = S3Storage(self.settings.s3)
        self._exits.callback(self.storage.close)
        self.redis = Redis.from_url(self._stack.redis.url)
        self._exits.callback(self.redis.close)
        self._bridge = self._exits.enter_context(
            WorkerProcess(self.in_folder("bridge"), module="worker", arguments=["bridge"])
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def measure(self, workers: int, files: Sequence[bytes]) -> Round:
        """Run one round; raises when a verdict is missing after ten times the allowed time."""
        with ExitStack() as running:
            processes = [
                running.enter_context(
                    WorkerProcess(
                        self.in_folder(f"worker-{workers}-{index}"),
                        module="tests.support.processes.sleeping_worker",
                        arguments=[str(self._device_s)],
                    )
                )
                for index in range(workers)
            ]
            for process in processes:
                eventually(lambda one=process: one.ready, timeout_s=900, what="a ready worker")
            events = [self.store(f"{workers}/{n}.jpg", file) for n, file in enumerate(files)]
            pids = {
                "workers": [process.process.pid for process in processes],
                "bridge": [self._bridge.process.pid],
                "postgres": [self._stack.postgres.process.pid],
                "redis": [self._stack.redis.process.pid],
                "s3": [self._stack.s3.process.pid],
            }
            verdicts = self.verdicts()
            reported = self._transactions()
            quiet = self._counted(pids)
            transactions = self._transactions()
            idle = self._counted(pids).since(quiet)
            idle_transactions = (transactions - reported) / idle.seconds
            before = self._counted(pids)
            begun = time.monotonic()
            self.announce(*events)
            allowed_per_s = workers / self._device_s
            deadline = begun + 900 + 50 * len(files) / allowed_per_s
            looks = 0
            while self.verdicts() < verdicts + len(files):
                looks += 1
                if time.monotonic() > deadline:
                    message = "verdicts are missing"
                    raise TimeoutError(message)
                time.sleep(_LOOK_S)
            spent = self._counted(pids).since(before)
            transactions = self._transactions() - transactions - looks
            for process in processes:
                process.process.terminate()
            for process in processes:
                if process.process.wait(120) != 0:
                    raise AssertionError(process.log.read_text())
        images, seconds = len(files), spent.seconds
        return Round(
            workers=workers,
            images=images,
            seconds=seconds,
            allowed_per_s=allowed_per_s,
            cpu_s_per_image={
                name: (spent.cpu_s[name] - idle.cpu_s[name] / idle.seconds * seconds) / images
                for name in COMPONENTS
            },
            redis_commands_per_image=(spent.commands - idle.commands / idle.seconds * seconds)
            / images,
            transactions_per_image=(transactions - idle_transactions * (seconds + _REPORTING_S))
            / images,
            # Each look is one of ours.
            statements_per_image=(
                spent.statements - looks - idle.statements / idle.seconds * seconds
            )
            / images,
            idle_cpu={name: idle.cpu_s[name] / idle.seconds for name in COMPONENTS},
            machine_busy=spent.busy_ticks / spent.ticks,
        )

    def in_folder(self, name: str) -> Settings:
        """Return the settings of a process with a folder of its own."""
        run_dir = self._folder / name / "run"
        observability = self.settings.observability.model_copy(update={"run_dir": run_dir})
        return self.settings.model_copy(update={"observability": observability})

    def announce(self, *events: str) -> None:
        """Append events to the ingest list."""
        settings = self.settings.redis
        self.redis.rpush(settings.key_prefix + settings.ingest_key, *events)

    def store(self, key: str, body: bytes, **more: object) -> str:
        """Store an object; return the event that announces it, with `more` fields."""
        # Bytes behind an image's end: no verdict is reused.
        facts = self.storage.put(BUCKET, key, body + key.encode(), content_type="image/jpeg")
        event = {"v": 1, "bucket": BUCKET, "key": key, "etag": facts.etag}
        return json.dumps({**event, **more})

    def verdicts(self) -> int:
        """Count the verdicts."""
        with self.engine.begin() as connection:
            counting = select(func.count()).select_from(VerdictRow)
            return int(connection.execute(counting).scalar_one())

    def _counted(self, pids: Mapping[str, Sequence[int]]) -> Counted:
        statistics = self.redis.info("commandstats")
        ticks, busy_ticks = machine_ticks()
        return Counted(
            seconds=time.monotonic(),
            cpu_s={name: cpu_s(pids[name]) for name in COMPONENTS},
            commands=sum(int(one["calls"]) for one in statistics.values()),
            statements=self._statements(),
            ticks=ticks,
            busy_ticks=busy_ticks,
        )

    def _count_statements(self) -> None:
        """Have Postgres count the statements of each role from now on."""
        with psycopg.connect(self._stack.postgres.dsn(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
        self._stack.postgres.stop()
        self._stack.postgres.start()
        with psycopg.connect(self._stack.postgres.dsn("unlatent"), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")

    def _statements(self) -> int:
        with psycopg.connect(self._stack.postgres.dsn("unlatent"), autocommit=True) as connection:
            row = connection.execute(
                "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements "
                "WHERE userid = 'unlatent_app'::regrole AND query !~ '^(BEGIN|COMMIT|ROLLBACK)'"
            ).fetchone()
        assert row is not None
        return int(row[0])

    def _transactions(self) -> int:
        time.sleep(_REPORTING_S)
        with psycopg.connect(self._stack.postgres.dsn("unlatent"), autocommit=True) as connection:
            row = connection.execute(
                "SELECT xact_commit FROM pg_stat_database WHERE datname = 'unlatent'"
            ).fetchone()
        assert row is not None
        return int(row[0])


def table(rounds: Sequence[Round]) -> str:
    """Return the rounds as the table of docs/deploy.md."""
    heads = ["workers", "images/s", "of what devices allow", *(f"{n} ms" for n in COMPONENTS)]
    heads += ["Redis commands", "transactions", "statements", "idle cores", "machine busy"]
    lines = [heads, ["---:"] * len(heads), *map(_line, rounds)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _line(one: Round) -> list[str]:
    return [
        str(one.workers),
        f"{one.images_per_s:.1f}",
        f"{one.images_per_s / one.allowed_per_s:.0%}{' (bends)' if one.bends else ''}",
        *(f"{1000 * one.cpu_s_per_image[name]:.1f}" for name in COMPONENTS),
        f"{one.redis_commands_per_image:.1f}",
        f"{one.transactions_per_image:.1f}",
        f"{one.statements_per_image:.1f}",
        f"{sum(one.idle_cpu.values()):.2f}",
        f"{one.machine_busy:.0%}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every number of workers and print the table; JSON goes to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--images", type=int, default=60, help="a worker")
    parser.add_argument("--device-s", type=float, default=0.2, help="device time of one image")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--out", type=Path, help="file for the numbers as JSON")
    chosen = parser.parse_args(arguments)
    files = make_files(8, chosen.side)
    rounds = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Fleet(Path(folder), device_s=chosen.device_s, max_batch=chosen.max_batch) as fleet,
    ):
        for workers in chosen.workers:
            count = workers * chosen.images
            rounds.append(fleet.measure(workers, [files[n % len(files)] for n in range(count)]))
            sys.stderr.write(table(rounds[-1:]))
    sys.stdout.write(
        f"{chosen.images} JPEG files of {chosen.side} px a worker, {chosen.device_s:g} s of device"
        f" time an image, batches of {chosen.max_batch}, {os.cpu_count()} processors;"
        f" processor time is an image's\n\n{table(rounds)}"
    )
    if chosen.out:
        chosen.out.write_text(json.dumps([asdict(one) for one in rounds], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
