"""`unlatent demo`, `demo-retrain`: the whole service on this machine for a few minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def demo(
    folder: Annotated[
        Path | None, typer.Argument(help="Your own pictures, recursively, instead of the demo's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results and the logs.")] = Path(
        "out/demo"
    ),
    bundle: Annotated[
        str | None, typer.Option(help="Embedded bundle's name, or a bundle's folder.")
    ] = None,
    desk: Annotated[
        bool, typer.Option("--console", help="Leave it running for a look at the console.")
    ] = False,
) -> None:
    """Start everything, follow images from upload to verdict, show them, stop everything.

    With --console it stops when you press Ctrl-C. Exits with 0 when every upload ended as it
    must. Services of your own are left alone.
    """
    begun = time.monotonic()
    from rich.console import Console

    from worker.demo.run import run_demo
    from worker.settings import load_settings

    settings = load_settings()
    if bundle is not None:
        scoring = settings.scoring.model_copy(update={"bundle": bundle})
        settings = settings.model_copy(update={"scoring": scoring})
    if not run_demo(settings, folder=folder, out=out, console=Console(), begun=begun, desk=desk):
        raise typer.Exit(1)


@commands.command("demo-retrain")
def demo_retrain(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Your own pictures instead of the demo's: labelled by manifest.tsv, or all of them"
            " photographs."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results and the logs.")] = Path(
        "out/demo-retrain"
    ),
    images: Annotated[
        int, typer.Option(min=20, help="So many images of each kind are made for the demo.")
    ] = 160,
    bundle: Annotated[
        str | None, typer.Option(help="Embedded bundle's name, or a bundle's folder.")
    ] = None,
) -> None:
    """Show the retraining loop: decisions, a challenger, the gate, shadow, promotion, rollback.

    Services of your own are left alone. With fewer than 160 images of each kind, or of your own,
    the gate may find fewer than the 50 of each that it decides on. A branch is taught for at most
    100 steps; UNLATENT_TRAINING__STEPS makes them fewer.
    """
    begun = time.monotonic()
    from rich.console import Console

    from worker.demo.retrain import run_retrain_demo
    from worker.settings import load_settings

    settings = load_settings()
    if bundle is not None:
        scoring = settings.scoring.model_copy(update={"bundle": bundle})
        settings = settings.model_copy(update={"scoring": scoring})
    run_retrain_demo(
        settings, folder=folder, out=out.absolute(), images=images, console=Console(), begun=begun
    )
