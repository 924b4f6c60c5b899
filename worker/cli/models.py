"""`unlatent models`, `drift`: bundles, which of them serves, and whether it still sees the same."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detection.errors import SettingsError
from worker.cli import context as cli
from worker.cli.common.rows import Format, FormatOption, print_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from worker.models.registry import ModelsRegistry

commands = typer.Typer()
models = typer.Typer(
    no_args_is_help=True, help="Detector bundles, and which of them is champion or in shadow."
)
commands.add_typer(models, name="models")

Bundle = Annotated[str, typer.Argument(help="Embedded bundle's name, or a bundle's folder.")]
Digest = Annotated[str, typer.Argument(help="A registered model version, or how it begins.")]
Address = Annotated[str, typer.Argument(help="hf://owner/name@revision.")]
Reason = Annotated[str, typer.Option(help="Why, for the audit.")]
By = Annotated[str, typer.Option(help="Who, for the audit; the database login is noted too.")]


@contextmanager
def _engine(context: typer.Context) -> Iterator[Engine]:
    from worker.database.engine import build_engine

    engine = build_engine(cli.of(context).settings().postgres, application_name="unlatent-cli")
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _registry(context: typer.Context) -> Iterator[ModelsRegistry]:
    from worker.models.registry import ModelsRegistry

    with _engine(context) as engine:
        yield ModelsRegistry(engine)


@models.command("list")
def list_(context: typer.Context, format_: FormatOption = Format.TABLE) -> None:
    """List the embedded bundles, then the registered ones with their roles."""
    from detection.bundle import embedded_names, load_bundle
    from worker.database.engine import LedgerUnavailable

    rows: list[dict[str, str | None]] = [
        {"model_version": load_bundle(name).model_version, "name": name, "role": "embedded"}
        for name in embedded_names()
    ]
    try:
        with _registry(context) as registry:
            active, known = registry.active(), registry.versions()
    except LedgerUnavailable as error:
        typer.echo(f"no registry: {error}", err=True)
        known = []
    else:
        roles = {
            model.digest: role
            for role, model in (("shadow", active.shadow), ("champion", active.champion))
            if model is not None
        }
        rows += [
            {
                "model_version": model.digest,
                "name": model.name,
                "role": roles.get(model.digest),
                "uri": model.uri,
            }
            for model in known
        ]
        for model in known:
            if model.digest in roles and model.threshold_warning:
                typer.echo(f"warning: {model.name}: {model.threshold_warning}", err=True)
    print_rows(rows, ("model_version", "name", "role", "uri"), format_)


@models.command()
def register(context: typer.Context, bundle: Bundle) -> None:
    """Verify a bundle, store it in the training bucket and add it to the registry."""
    from detection.bundle import load_bundle
    from worker.models.bundle_store import model_of, open_bundles

    loaded = load_bundle(bundle)
    with open_bundles(cli.of(context).settings()) as bundles:
        uri = bundles.upload(loaded)
    with _registry(context) as registry:
        registry.register(model_of(loaded, uri))
    typer.echo(f"{loaded.model_version}  {uri}")


@models.command()
def promote(
    context: typer.Context,
    digest: Digest,
    reason: Reason,
    by: By = "cli",
    force: Annotated[
        bool, typer.Option("--force", help="Though no gate was passed; the audit says so.")
    ] = False,
) -> None:
    """Make a model version champion; running workers load it and swap without a restart.

    Before that it says on standard error what `preview` does.
    """
    from worker.models.registry import ModelsRegistry

    with _engine(context) as engine:
        registry = ModelsRegistry(engine)
        wanted = registry.find_by_prefix(digest).digest
        for line in _preview_lines(engine, wanted):
            typer.echo(line, err=True)
        registry.promote(wanted, actor=by, reason=reason, forced=force)
    typer.echo(f"champion {wanted}")


@models.command()
def preview(context: typer.Context, digest: Digest) -> None:
    """Say how many recent images would change tier under a model version; nothing is changed.

    What it judged in shadow in the last 30 days is held against the verdicts of the champion.
    """
    from worker.models.registry import ModelsRegistry

    with _engine(context) as engine:
        wanted = ModelsRegistry(engine).find_by_prefix(digest).digest
        for line in _preview_lines(engine, wanted):
            typer.echo(line)


def _preview_lines(engine: Engine, digest: str) -> Iterator[str]:
    from worker.models.promotion_preview import preview_promotion

    seen = preview_promotion(engine, digest)
    if not seen.images:
        yield (
            "change of tiers: not known, it has judged no image in shadow in the last 30 days"
            f" (unlatent models challenge {digest[:12]} --reason …)"
        )
        return
    moved = sum(change.images for change in seen.changes)
    share = moved / seen.images
    yield f"{moved} of {seen.images} images that both judged would change tier ({share:.1%})"
    for change in seen.changes:
        examples = " ".join(map(str, change.examples))
        yield f"{change.before} → {change.after}: {change.images}, for example {examples}"


@models.command()
def rollback(context: typer.Context, reason: Reason, by: By = "cli") -> None:
    """Make the champion before this one champion again."""
    with _registry(context) as registry:
        typer.echo(f"champion {registry.roll_back(actor=by, reason=reason)}")


@models.command()
def challenge(context: typer.Context, digest: Digest, reason: Reason, by: By = "cli") -> None:
    """Put a model version in shadow: it judges a share of the images beside the champion."""
    with _registry(context) as registry:
        wanted = registry.find_by_prefix(digest).digest
        registry.put_in_shadow(wanted, actor=by, reason=reason)
    typer.echo(f"shadow {wanted}")


@models.command()
def dismiss(context: typer.Context, reason: Reason, by: By = "cli") -> None:
    """Take whatever is in shadow out of it."""
    with _registry(context) as registry:
        registry.end_shadow(actor=by, reason=reason)
    typer.echo("nothing is in shadow")


@models.command()
def shadow(context: typer.Context) -> None:
    """Tell how far the challenger in shadow agrees with the champion."""
    from worker.models.registry import ModelsRegistry
    from worker.models.shadow import agreement

    with _engine(context) as engine:
        active = ModelsRegistry(engine).active()
        if active.shadow is None or active.shadow_since is None:
            typer.echo("nothing is in shadow")
            return
        found = agreement(engine, active.shadow.digest, since=active.shadow_since)
    typer.echo(f"{active.shadow.digest}  in shadow since {active.shadow_since:%Y-%m-%d %H:%M}")
    typer.echo(f"images judged by both: {found.images}")
    if found.disagreement is not None:
        typer.echo(
            f"another label: {found.disagreements} ({found.disagreement:.1%}); newly generated"
            f" {found.accused}, no longer generated {found.acquitted}"
        )
    if found.correlation is not None:
        typer.echo(f"correlation of the scores: {found.correlation:.3f}")


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
    from worker.settings import load_settings

    generators = load_settings().scoring.generators
    detector = Detector.load(bundle, device=device, generators=generators)
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


@models.command()
def pull(
    address: Address,
    out: Annotated[
        Path | None,
        typer.Option(help="New folder for it.", show_default="one in var/bundles"),
    ] = None,
    pins: Annotated[
        Path, typer.Option(help="File that keeps the commits that were pulled.")
    ] = Path("var/bundles.json"),
) -> None:
    """Download a bundle from a hub, check every hash, and print its model version and folder.

    A revision that is a commit is pinned: without a revision, that commit is pulled again.
    """
    from worker.models.hub import HubAddress, HubBundles
    from worker.models.hub_pins import HubPins
    from worker.settings import load_settings

    hub = HubBundles(load_settings().hub)
    pulled = hub.pull(HubAddress.parse(address), HubPins(pins), out)
    if not pulled.pinned:
        typer.echo(f"not pinned, {address} may change: this is {pulled.address}", err=True)
    typer.echo(f"{pulled.bundle.model_version}  {pulled.bundle.folder}")


@models.command()
def push(
    bundle: Bundle,
    address: Address,
    create: Annotated[
        bool, typer.Option("--create", help="Make the repository, a private one, if it is missing.")
    ] = False,
) -> None:
    """Commit a verified bundle to a hub, with its card as the page; print the commit's address."""
    from detection.bundle import load_bundle
    from worker.models.hub import HubAddress, HubBundles
    from worker.settings import load_settings

    hub = HubBundles(load_settings().hub)
    pushed = hub.push(load_bundle(bundle), HubAddress.parse(address), create=create)
    typer.echo(pushed)


@commands.command()
def drift(context: typer.Context, format_: FormatOption = Format.TABLE) -> None:
    """Compare each source's recent verdicts with those of when the model was new."""
    from worker.models.score_drift import DriftMeasurement, measure_drift

    settings = cli.of(context).settings().drift
    with _engine(context) as engine:
        readings = measure_drift(engine, settings)
    if not readings:
        typer.echo(f"no verdicts in the last {settings.window_s / 3600:g} h", err=True)
    columns = [field.name for field in fields(DriftMeasurement)]
    # The digest is wide and the same in every row: it comes last.
    columns.append(columns.pop(columns.index("model_version")))
    rows = [asdict(one) for one in readings]
    if format_ is Format.TABLE:
        rows = [
            row | {name: "too few" for name in ("psi", "ks") if row[name] is None} for row in rows
        ]
    print_rows(rows, columns, format_)
