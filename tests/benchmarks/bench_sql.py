"""Medians of what moderators do all day, and what the indexes cost on inserts.

`python -m tests.benchmarks.bench_sql --rows 5000000` starts a Postgres of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import TYPE_CHECKING

import psycopg

from tests.support.console.page_times import page_times
from tests.support.sql_scale import generate
from worker.database.engine import migrate
from worker.localstack import LocalStack
from worker.localstack.stack import DATABASE

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGE = "00000000-0000-4000-8000-000000000101"
QUERIES = {
    "review_queue, first page": "SELECT * FROM moderation.review_queue LIMIT 50",
    "claim_next(10)": "SELECT * FROM moderation.claim_next(10)",
    "queue_summary": "SELECT * FROM moderation.queue_summary",
    "similar_images": f"SELECT * FROM moderation.similar_images('{IMAGE}')",  # noqa: S608 - constant
    "similar_images, quickly": (
        f"SELECT * FROM moderation.similar_images('{IMAGE}', 31, 12, true)"  # noqa: S608 - constant
    ),
    "same_uploader": f"SELECT * FROM moderation.same_uploader('{IMAGE}')",  # noqa: S608 - constant
    "open_image": f"SELECT * FROM moderation.open_image('{IMAGE}')",  # noqa: S608 - constant
    "image_history of one image": (
        f"SELECT * FROM moderation.image_history WHERE image_id = '{IMAGE}'"  # noqa: S608 - constant
    ),
    "verdicts, first page": "SELECT * FROM moderation.verdicts LIMIT 50",
    "verdicts, flagged, two hours, by time": (
        "SELECT * FROM moderation.verdicts WHERE label = 'generated' "
        "AND scored_at > now() - interval '2 hours' ORDER BY scored_at DESC LIMIT 50"
    ),
    "verdicts, one label and source": (
        "SELECT * FROM moderation.verdicts WHERE label = 'generated' AND source = 'source-3' "
        "LIMIT 50"
    ),
    "verdicts, flagged, of one source": (
        "SELECT * FROM moderation.verdicts WHERE tier IN ('flag', 'flag_high') "
        "AND source = 'source-3' LIMIT 50"
    ),
}
#: Indexes of `verdicts` that serve reading only; the ledger itself needs the others.
READING = (
    "ix_verdicts_scored_at",
    "ix_verdicts_notable",
    "ix_verdicts_champion",
    "ix_verdicts_model_version_scored_at",
)
BATCH = 32
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


def timed(work: Callable[[], object], times: int) -> str:
    """Say the median and the least time of a call after one to warm up; slow ones have fewer.

    The least is what a machine that does nothing else would come close to.
    """
    work()
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < times and (len(taken) < 3 or time.perf_counter() - begun < ENOUGH_S):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return f"median {statistics.median(taken):8.2f} ms, least {min(taken):8.2f} ms"


def inserts_ms(connection: psycopg.Connection, model: str, batches: int) -> float:
    """Return the median time of inserting one batch of verdicts."""
    taken = []
    for batch in range(batches):
        start = time.perf_counter()
        connection.execute(INSERT, [model, batch * BATCH, BATCH])
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def bench(stack: LocalStack, rows: int, times: int) -> None:
    """Generate, measure and print."""
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
                if not moderator.execute(query).fetchall():
                    raise SystemExit(f"{name}: no rows, so nothing to measure")
                took = timed(lambda query=query: moderator.execute(query).fetchall(), times)
                tell(f"{name:<40} {took}")
        for name, sources in PEOPLE.items():
            tell(f"pages as a {'lead' if sources is None else 'moderator of ' + sources[0]}")
            for page, took in page_times(
                stack,
                name=name,
                password="bench",
                lead=sources is None,
                image=IMAGE,
                measure=lambda work: timed(work, times),
            ):
                tell(f"{page:<40} {took}")
        for name, setting in (("bare", "replica"), ("with policy, queue and keys", "origin")):
            superuser.execute(f"SET session_replication_role = {setting}")
            tell(f"insert of {BATCH} verdicts, {name}: {compare_inserts(superuser, times)}")


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
    with LocalStack.temporary() as stack:
        migrate(stack.owner_url())
        bench(stack, options.rows, options.times)


if __name__ == "__main__":
    main()
