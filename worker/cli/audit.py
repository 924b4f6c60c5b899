"""`unlatent audit`: what betrays the sides of a folder of labelled images, without any service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def audit(
    data: Annotated[Path, typer.Argument(help="Folder with manifest.tsv and the images it lists.")],
    bundle: Annotated[
        str, typer.Option(help="Bundle whose feature space distances are stated in; none without.")
    ] = "",
    report: Annotated[
        Path | None, typer.Option(help="Also write the report as JSON to this file.")
    ] = None,
) -> None:
    """Say whether anything but a decoder's artefacts tells real from generated images."""
    from rich.progress import track

    from training.data.manifest import load_manifest
    from training.evaluation.shortcut_audit import run_audit
    from training.evaluation.shortcut_features import source_files

    entries = load_manifest(data)
    features = None
    if bundle:
        from detection.bundle import load_bundle
        from training.evaluation.features import BundleFeatures

        features = BundleFeatures(load_bundle(bundle))
    files = track(source_files(entries), "reading", total=len(entries), transient=True)
    found = run_audit(files, features=features, space=features.name if features else "")
    typer.echo(found.to_markdown())
    if report is not None:
        report.write_text(found.to_json() + "\n", encoding="utf-8")
    if found.refusals:
        raise typer.Exit(1)
