"""`unlatent stress`: load for a deployment, and a gate for a release."""

from __future__ import annotations

import json
import secrets
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli import context as cli

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worker.settings import Settings
    from worker.stress.load import Item
    from worker.stress.report import StressLimits
    from worker.stress.run import StressOutcome

commands = typer.Typer()


@commands.command()
def stress(
    context: typer.Context,
    load: Annotated[str, typer.Option(help="RATExSECONDS, several with commas: 5x60,10x60.")] = (
        "2x30"
    ),
    bad: Annotated[float, typer.Option(help="Share of broken files.", min=0, max=1)] = 0.02,
    duplicates: Annotated[
        float, typer.Option(help="Share of uploads announced twice.", min=0, max=1)
    ] = 0.05,
    priority: Annotated[float, typer.Option(help="Share of priority uploads.", min=0, max=1)] = 0,
    after: Annotated[
        str | None, typer.Option(help="RATExSECONDS to send when all of the load has ended.")
    ] = None,
    drain: Annotated[float, typer.Option(help="Longest wait for the rest, in s.", min=0)] = 120,
    seed: Annotated[
        int | None,
        typer.Option(
            help="The same seed sends the same uploads, to be scored by a fresh ledger only.",
            show_default="a new one",
        ),
    ] = None,
    max_p95: Annotated[float | None, typer.Option(help="Limit on p95, in s.")] = None,
    max_p99: Annotated[float | None, typer.Option(help="Limit on p99, in s.")] = None,
    max_priority_p95: Annotated[
        float | None, typer.Option(help="Limit on p95 of the priority uploads, in s.")
    ] = None,
    max_after_p95: Annotated[
        float | None, typer.Option(help="Limit on p95 of what --after sends, in s.")
    ] = None,
    min_rate: Annotated[float | None, typer.Option(help="Least uploads ended a second.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for stress.json and stress.png.")] = None,
) -> None:
    """Send uploads at a given rate, wait for their ends, report; exit 1 when a limit is broken.

    An upload lost or ended twice always breaks one. Objects stay under stress/ in the first bucket.
    """
    from worker.stress.load import items, parse_steps
    from worker.stress.report import StressLimits

    # Bytes that have a verdict keep it, so that a second run of one seed would measure nothing.
    chosen = secrets.randbelow(2**32) if seed is None else seed
    sent = items(
        parse_steps(load),
        bad_share=bad,
        duplicate_share=duplicates,
        priority_share=priority,
        after=parse_steps(after) if after else (),
        seed=chosen,
    )
    limits = StressLimits(
        p95_s=max_p95,
        p99_s=max_p99,
        priority_p95_s=max_priority_p95,
        calm_p95_s=max_after_p95,
        min_rate_per_s=min_rate,
    )
    outcome = _send(cli.of(context).settings(), sent, drain_s=drain)
    raise typer.Exit(_report(outcome, limits, seed=chosen, out=out))


def _send(settings: Settings, load: Iterable[Item], *, drain_s: float) -> StressOutcome:
    from redis import Redis

    from worker.database.engine import build_engine
    from worker.storage.s3 import S3Storage
    from worker.stress.run import Stress

    engine = build_engine(settings.postgres, application_name="unlatent-stress")
    try:
        with (
            closing(S3Storage(settings.s3)) as storage,
            Redis.from_url(settings.redis.url.get_secret_value(), socket_timeout=10) as redis,
        ):
            run = Stress(settings, engine=engine, redis=redis, storage=storage)
            return run.run(load, drain_s=drain_s)
    finally:
        engine.dispose()


def _report(outcome: StressOutcome, limits: StressLimits, *, seed: int, out: Path | None) -> int:
    """Print and write the numbers; return the exit status."""
    from worker.stress import report

    numbers = {"seed": seed, **report.summary(outcome)}
    typer.echo(report.table(numbers))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "stress.json").write_text(json.dumps(numbers, indent=1) + "\n")
        report.plot(outcome, out / "stress.png")
    problems = report.broken(numbers, limits)
    for problem in problems:
        typer.echo(f"limit broken: {problem}", err=True)
    return 1 if problems else 0
