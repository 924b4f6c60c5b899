"""Medians of what people and beat ask, at a fifth of the rows and at all, and the cost of inserts.

`python -m tests.benchmarks.bench_sql --rows 5000000` starts a Postgres of its own for each.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from tests.support.console.page_times import page_times
from tests.support.sql_scale import generate
from worker.database.engine import build_engine, migrate
from worker.ledger.interface import ImageFacts, Role, Verdict
from worker.ledger.postgres import PostgresLedger
from worker.localstack import LocalStack
from worker.localstack.identity import DATABASE
from worker.moderation import policies
from worker.moderation.retention import _DUE_EVIDENCE
from worker.monitoring.database_gauges import GAUGES
from worker.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from sqlalchemy import Engine

IMAGE = "00000000-0000-4000-8000-000000000101"
DOCS = Path(__file__).parents[2] / "docs" / "moderators.md"
#: The questions of docs/moderators.md, in its order: what one claims the next one decides.
DOCUMENTED = {
    title: query.replace(":image", f"'{IMAGE}'").replace(":uploader", "'u101'")
    for title, query in re.findall(
        r"^### (\d+\. [^\n]+)\n\n```sql\n(.+?);\n```", DOCS.read_text(), re.DOTALL | re.MULTILINE
    )
}
QUERIES = {
    **DOCUMENTED,
    "recall()": "SELECT * FROM moderation.recall()",
    "review_queue, first page": "SELECT * FROM moderation.review_queue LIMIT 50",
    "claim_next(10)": "SELECT * FROM moderation.claim_next(10)",
    "similar_images, quickly": (
        f"SELECT * FROM moderation.similar_images('{IMAGE}', 31, 12, true)"  # noqa: S608 - constant
    ),
    "same_uploader": f"SELECT * FROM moderation.same_uploader('{IMAGE}')",  # noqa: S608 - constant
    "open_image": f"SELECT * FROM moderation.open_image('{IMAGE}')",  # noqa: S608 - constant
    "verdicts, first page": "SELECT * FROM moderation.verdicts LIMIT 50",
    "verdicts, generated, two hours, by time": (
        "SELECT * FROM moderation.verdicts WHERE label = 'generated' "
        "AND scored_at > now() - interval '2 hours' ORDER BY scored_at DESC LIMIT 50"
    ),
    "verdicts, generated, of one source": (
        "SELECT * FROM moderation.verdicts WHERE label = 'generated' AND source = 'source-3' "
        "LIMIT 50"
    ),
    "verdicts, flagged, of one source": (
        "SELECT * FROM moderation.verdicts WHERE tier IN ('flag', 'flag_high') "
        "AND source = 'source-3' LIMIT 50"
    ),
    "verdicts of the same bytes": (
        "SELECT * FROM moderation.verdicts WHERE sha256 = lpad(to_hex(101), 64, '0')"
    ),
}
#: What finds nothing in what is generated.
MAY_BE_EMPTY = {
    "9. Where did the detector and people disagree?",
    "10. Whose camera does a flagged file claim?",
}
#: What beat and the exporter ask again and again, as the owner of the functions.
PERIODIC = {
    "check_breakers": "SELECT * FROM app.check_breakers()",
    "keep_counts": "SELECT app.keep_counts()",
    "prune, 5000 leases": "SELECT * FROM app.prune('leases', 5000)",
    "prune, 5000 audit entries": "SELECT * FROM app.prune('audit', 5000)",
    "old evidence, a batch": (
        _DUE_EVIDENCE.format(after="true").replace(":age", "'5 days'").replace(":batch", "1000")
    ),
    **{f"gauge {gauge.name}": gauge.sql for gauge in GAUGES},
}
#: Indexes of `verdicts` that serve reading only; the ledger itself needs the others.
READING = (
    "ix_verdicts_scored_at",
    "ix_verdicts_notable",
    "ix_verdicts_champion",
    "ix_verdicts_model_version_scored_at",
)
BATCH = 32
DRAFT = policies.PolicyDraft(review=0.97, flag=0.975, flag_high=0.99)
COMMANDS: dict[str, Callable[[Engine], object]] = {
    "unlatent policy preview": lambda engine: policies.preview(engine, DRAFT),
    "unlatent policy threshold": lambda engine: policies.threshold_for(
        engine, false_positives=0.05
    ),
}
#: Images with a lease each, as a worker has them before it records what it found.
LEASED = """
    WITH added AS (
        INSERT INTO app.images (bucket, key, etag, source)
        SELECT 'uploads', gen_random_uuid(), 'e', 'source-' || n %% 8
        FROM generate_series(1, %s) n RETURNING id
    )
    INSERT INTO app.leases (image_id, worker, purpose, until)
    SELECT id, 'w', 'score', now() + interval '1 hour' FROM added
    RETURNING image_id, id
"""
#: The triggers of worker/moderation/sql/counts.sql.
COUNTING = """
    SELECT t.tgrelid::regclass::text, t.tgname FROM pg_trigger t
    JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE NOT t.tgisinternal AND p.proname LIKE 'count\\_%'
"""
#: Who asks for pages: their sources, None for a lead of all. `IMAGE` is of that source.
PEOPLE = {"lead": None, "moderator_of_one": ["source-1"]}
#: So long at most is a call repeated, unless three times take longer.
ENOUGH_S = 30.0
INSERT = """
    INSERT INTO app.verdicts (image_id, lease_id, model_version, role, score, label, branches,
        decided_by, operating_point, prior, device, dtype, tier, policy_id)
    SELECT i.id, (SELECT min(id) FROM app.leases), %s, 'champion', random(),
           CASE WHEN n = 1 THEN 'generated' ELSE 'real' END, '{"lare": 1, "aligned": 2}', 'lare',
           'fpr=0.01', 0.1, 'cuda:0', 'float32', CASE WHEN n = 1 THEN 'flag' ELSE 'allow' END,
           (SELECT min(id) FROM app.policies)
    FROM (
        SELECT id, row_number() OVER () AS n
        FROM (SELECT id FROM app.images ORDER BY id OFFSET %s LIMIT %s) page
    ) i
"""


def timed(work: Callable[[], object], times: int) -> tuple[float, float]:
    """Return the median and the least time of a call in ms, after one to warm up.

    Slow calls are repeated less often. The least is what a machine that does nothing else would
    come close to.
    """
    work()
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < times and (len(taken) < 3 or time.perf_counter() - begun < ENOUGH_S):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken), min(taken)


def inserts_ms(connection: psycopg.Connection, model: str, batches: int) -> float:
    """Return the median time of inserting one batch of verdicts."""
    taken = []
    for batch in range(batches):
        start = time.perf_counter()
        connection.execute(INSERT, [model, batch * BATCH, BATCH])
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def bench(stack: LocalStack, rows: int, times: int) -> dict[str, float]:
    """Generate, measure and print; return the median of each query and page in milliseconds."""
    medians: dict[str, float] = {}

    def note(name: str, median_ms: float, least_ms: float) -> None:
        medians[name] = median_ms
        tell(f"{name:<54} median {median_ms:9.2f} ms, least {least_ms:9.2f} ms")

    with psycopg.connect(stack.postgres.dsn(DATABASE), autocommit=True) as superuser:
        start = time.perf_counter()
        generate(superuser, rows)
        tell(f"{rows} verdicts generated in {time.perf_counter() - start:.0f} s")
        for name, sources in PEOPLE.items():
            superuser.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'bench' IN ROLE moderator")
            superuser.execute(
                "INSERT INTO app.moderators (moderator, every_source, sources, lead)"
                " VALUES (%s, %s, %s, %s)",
                [name, sources is None, sources or [], sources is None],
            )
        address = psycopg.conninfo.make_conninfo(
            stack.postgres.dsn(DATABASE), user="lead", password="bench"
        )
        with psycopg.connect(address, autocommit=True) as moderator:
            for name, query in QUERIES.items():
                if not moderator.execute(query).fetchall() and name not in MAY_BE_EMPTY:
                    raise SystemExit(f"{name}: no rows, so nothing to measure")
                note(name, *timed(lambda query=query: moderator.execute(query).fetchall(), times))
        superuser.execute("INSERT INTO app.config VALUES ('leases_days', '1'), ('audit_days', '1')")
        fewer = max(3, times // 10)
        for name, query in PERIODIC.items():
            note(name, *timed(lambda query=query: superuser.execute(query).fetchall(), fewer))
        with service(stack) as engine:
            for name, command in COMMANDS.items():
                note(name, *timed(lambda command=command: command(engine), fewer))
        for name, took in pages(stack, times):
            note(name, *took)
        for name, setting in (("bare", "replica"), ("with policy, queue and keys", "origin")):
            superuser.execute(f"SET session_replication_role = {setting}")
            tell(f"insert of {BATCH} verdicts, {name}: {compare_inserts(superuser, times)}")
        with service(stack) as engine:
            tell(f"record {BATCH} verdicts: {compare_counting(superuser, engine, times)}")
    return medians


@contextmanager
def service(stack: LocalStack) -> Iterator[Engine]:
    """Yield connections of the service's login."""
    settings = Settings.model_validate({"postgres": {"url": stack.addresses.database_url()}})
    engine = build_engine(settings.postgres)
    try:
        yield engine
    finally:
        engine.dispose()


def pages(stack: LocalStack, times: int) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield what the console's pages take, by page and who asks."""
    for name, sources in PEOPLE.items():
        who = "lead" if sources is None else f"moderator of {sources[0]}"
        for page, took in page_times(
            stack,
            name=name,
            password="bench",
            lead=sources is None,
            image=IMAGE,
            measure=lambda work: timed(work, times),
        ):
            yield f"{page}, {who}", took


def compare_counting(superuser: psycopg.Connection, engine: Engine, times: int) -> str:
    """Record verdicts as workers do, with and without the triggers that count, in short turns."""
    ledger = PostgresLedger(engine)
    triggers = superuser.execute(COUNTING).fetchall()
    taken: dict[str, list[float]] = {"DISABLE": [], "ENABLE": []}
    for _ in range(times):
        for side, sample in taken.items():
            for table, trigger in triggers:
                superuser.execute(f"ALTER TABLE {table} {side} TRIGGER {trigger}")
            rows = superuser.execute(LEASED, [4 * BATCH]).fetchall()
            for first in range(0, len(rows), BATCH):
                batch = [
                    verdict_of(*row, flagged=n == 0)
                    for n, row in enumerate(rows[first : first + BATCH])
                ]
                start = time.perf_counter()
                ledger.record(batch)
                if first:  # the first after a change of triggers plans everything again
                    sample.append(1000 * (time.perf_counter() - start))
    counted, bare = (statistics.median(taken[side]) for side in ("ENABLE", "DISABLE"))
    return f"{counted:.2f} ms, without counting {bare:.2f} ms, {counted / bare:.2f} times as long"


def verdict_of(image_id: UUID, lease_id: int, *, flagged: bool) -> Verdict:
    """Return a verdict on a leased image."""
    return Verdict(
        image_id=image_id,
        lease_id=lease_id,
        facts=ImageFacts(
            sha256=image_id.hex * 2,
            size=70_000,
            format="JPEG",
            width=640,
            height=480,
            pdq=image_id.bytes * 2,
            pdq_quality=90,
        ),
        model_version="model-1",
        role=Role.CHAMPION,
        score=0.99 if flagged else 0.1,
        label="generated" if flagged else "real",
        branches={"lare": 1.5, "aligned": 2.5},
        decided_by="aligned",
        operating_point="fpr=0.01",
        prior=0.1,
        device="cpu",
        dtype="float32",
    )


def compare_inserts(superuser: psycopg.Connection, times: int) -> str:
    """Insert with and without the indexes for reading, in turns, and say what they cost."""
    sides: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(6):
        indexed = turn % 2 == 0
        with superuser.transaction(force_rollback=True):
            # Nothing is committed here, so what waits for a commit is made to happen at once.
            superuser.execute("SET CONSTRAINTS ALL IMMEDIATE")
            for name in () if indexed else READING:
                superuser.execute(f"DROP INDEX app.{name}")
            sides[indexed].append(inserts_ms(superuser, f"bench-{turn}", times))
    with_ms, without_ms = min(sides[True]), min(sides[False])
    cost = with_ms / without_ms - 1
    return f"{with_ms:.2f} ms, without indexes for reading {without_ms:.2f} ms, {cost:+.0%}"


def tell(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--times", type=int, default=50)
    options = parser.parse_args()
    few, many = (run(rows, options.times) for rows in (options.rows // 5, options.rows))
    tell(f"{'':<54} {options.rows // 5:>10} {options.rows:>10} ratio")
    for name, took_ms in many.items():
        tell(f"{name:<54} {few[name]:>10.2f} {took_ms:>10.2f} {took_ms / few[name]:>5.2f}")


def run(rows: int, times: int) -> dict[str, float]:
    """Measure so many rows on a stack of their own."""
    with LocalStack.temporary() as stack:
        migrate(stack.addresses.owner_url())
        return bench(stack, rows, times)


if __name__ == "__main__":
    main()
