"""`unlatent bundle`: train a bundle from a folder of labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detection.errors import SettingsError
from worker.logs import configure
from worker.settings import load_settings

commands = typer.Typer()


@commands.command()
def bundle(
    data: Annotated[Path, typer.Option(help="Folder with manifest.tsv and the images it lists.")],
    out: Annotated[Path, typer.Option(help="Where the bundle is written.")] = Path("out/bundle"),
    run: Annotated[
        Path, typer.Option(help="Checkpoints and intermediate results; a run resumes from it.")
    ] = Path("out/run"),
    taef2: Annotated[
        Path | None, typer.Option(help="Folder of the TAEF2 autoencoder, to make pairs with.")
    ] = None,
    licence: Annotated[
        str, typer.Option(help="The terms of the images, for the bundle's card.")
    ] = "not stated",
) -> None:
    """Train, calibrate and write a bundle from images of one's own; takes hours on a CPU.

    The manifest has the columns path, label (real or generated), set, and optionally family and
    group.
    """
    from training.finishing import release
    from training.manifest import load_manifest
    from training.recipe import BundleRecipe, Workshop, write_recipe
    from training.taef2 import taef2_aligner

    configure(load_settings().observability)
    entries = load_manifest(data)
    if len({entry.label for entry in entries}) == 1:
        raise SettingsError(f"{data} holds {entries[0].label} images only: both kinds are needed")
    run.mkdir(parents=True, exist_ok=True)
    recipe = BundleRecipe()
    write_recipe(recipe, run / "recipe.json")
    aligners = [] if taef2 is None else [taef2_aligner(taef2)]
    released = release(Workshop(entries, run, recipe, aligners), out, data_licence=licence)
    typer.echo(f"{released.folder}: model version {released.model_version}")
