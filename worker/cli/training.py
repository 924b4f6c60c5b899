"""`unlatent bundle`, `evaluate`: train a bundle on labelled images, measure one on others."""

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
    folds: Annotated[
        bool, typer.Option(help="Also measure on generator families left out in turn.")
    ] = True,
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
    released = release(
        Workshop(entries, run, recipe, aligners), out, data_licence=licence, with_folds=folds
    )
    typer.echo(f"{released.folder}: model version {released.model_version}")


@commands.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="Folder with manifest.tsv and the images it lists.")],
    bundle: Annotated[
        str, typer.Option(help="Embedded bundle's name, or a bundle's folder.")
    ] = "small",
    out: Annotated[
        Path, typer.Option(help="Where the report is written; a run resumes from it.")
    ] = Path("out/quality"),
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images a set.")] = None,
    device: Annotated[str, typer.Option(help='"cpu", "cuda", "cuda:1" …')] = "cpu",
) -> None:
    """Measure a bundle on labelled images: figures with intervals, tables and plots.

    Thresholds are the bundle's own. Whether it was trained on an image cannot be known from a
    bundle: the report says what it could tell.
    """
    from detection.detector import Detector
    from training.quality import evaluate as run_evaluation

    detector = Detector.load(bundle, device=device)
    quality = run_evaluation(detector, data, out, limit=limit, on_progress=_show_progress)
    for warning in quality.warnings:
        typer.echo(f"Mind: {warning}", err=True)
    typer.echo(f"{out / 'quality.md'}: model version {quality.model_version}")


def _show_progress(form: str, done: int, total: int) -> None:
    typer.echo(f"{form}: {done} of {total} images scored", err=True)
