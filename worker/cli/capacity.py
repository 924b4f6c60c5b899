"""`unlatent capacity`: how many workers a load needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detection.errors import SettingsError
from worker.cli.common.rows import Format, FormatOption, print_fields

commands = typer.Typer()


@commands.command()
def capacity(
    peak: Annotated[float, typer.Option(help="Images a second at the peak.", min=0.001)],
    metrics: Annotated[
        str | None, typer.Option(help="A busy worker's metrics: file or http address.")
    ] = None,
    per_worker: Annotated[
        float | None, typer.Option(help="Instead: images a second of one worker.", min=0.001)
    ] = None,
    wait: Annotated[float, typer.Option(help="Longest wait allowed, in s.", min=1)] = 60,
    ready: Annotated[float, typer.Option(help="Until an added worker scores, in s.", min=0)] = 180,
    busy: Annotated[
        float, typer.Option(help="Share of time that devices may be busy.", min=0.1, max=0.95)
    ] = 0.7,
    price: Annotated[float | None, typer.Option(help="Price of one worker's hour.", min=0)] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Say how many workers a load needs, from what a worker was measured to do."""
    from worker.monitoring.capacity import Load, measured, plan

    if (metrics is None) == (per_worker is None):
        raise SettingsError("give either --metrics or --per-worker")
    speed = per_worker if metrics is None else measured(_page(metrics))
    assert speed is not None  # noqa: S101 - one of the two is given
    load = Load(peak_per_s=peak, wait_s=wait, ready_s=ready, busy=busy)
    wanted = plan(load, per_worker_per_s=speed)
    rows = {
        "one worker": f"{wanted.per_worker_per_s:.1f} images/s",
        "minReplicaCount": f"{wanted.min_workers}",
        "maxReplicaCount": f"{wanted.max_workers}",
        "threshold of the trigger `images`": f"{wanted.images_per_worker}",
        "catching up": f"{wanted.catch_up_s_per_outage_s:.1f} s for each second of an outage",
    }
    if price is not None:
        rows["1,000 images"] = f"{wanted.cost_per_1000(price, load):.4f}"
    print_fields(rows, format_, line="{name:<34} {value}")


def _page(where: str) -> str:
    if where.startswith(("http://", "https://")):
        from urllib.request import urlopen

        try:
            with urlopen(where, timeout=10) as answer:  # noqa: S310 - only http, see above
                return str(answer.read().decode())
        except OSError as error:
            raise SettingsError(f"{where} does not answer: {error}") from error
    try:
        return Path(where).read_text()
    except OSError as error:
        raise SettingsError(f"{where} cannot be read: {error.strerror}") from error
