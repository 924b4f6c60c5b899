"""`unlatent models`: the detector bundles on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from detection.errors import SettingsError

commands = typer.Typer()
models = typer.Typer(no_args_is_help=True, help="List, show, verify and export detector bundles.")
commands.add_typer(models, name="models")

Bundle = Annotated[str, typer.Argument(help="Embedded bundle's name, or a bundle's folder.")]


@models.command("list")
def list_() -> None:
    """List the embedded bundles with their model versions."""
    from detection.bundle import embedded_names, load_bundle

    for name in embedded_names():
        typer.echo(f"{name}  {load_bundle(name).model_version}")


@models.command()
def show(bundle: Bundle) -> None:
    """Print what a bundle says of itself, with its model version."""
    from detection.bundle import load_bundle

    loaded = load_bundle(bundle)
    content = {"model_version": loaded.model_version} | loaded.manifest.model_dump(mode="json")
    typer.echo(json.dumps(content, indent=1))


@models.command()
def verify(
    bundle: Bundle, device: Annotated[str, typer.Option(help='"cpu" or "cuda".')] = "cpu"
) -> None:
    """Check every file's hash, load the networks and score the bundle's golden image."""
    from detection.detector import Detector

    detector = Detector.load(bundle, device=device)
    detector.self_check()
    files = len(detector.bundle.manifest.files)
    typer.echo(
        f"{detector.model_version}: {files} files intact, the golden image scores as it must"
    )


@models.command()
def export(
    bundle: Bundle, folder: Annotated[Path, typer.Argument(help="New folder to copy it to.")]
) -> None:
    """Copy a verified bundle to a new folder, from where it can be served by path or uploaded."""
    from detection.bundle import load_bundle

    loaded = load_bundle(bundle)
    if folder.exists():
        raise SettingsError(f"{folder} exists already: name a new folder")
    shutil.copytree(loaded.folder, folder)
    typer.echo(f"{load_bundle(folder).model_version}  {folder}")
