"""`unlatent bundle`, `train`, `evaluate`, `audit`: on a folder of labelled images, no service."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detection.errors import SettingsError
from worker.cli.common.progress import show_progress
from worker.cli.common.training_options import (
    AlignerPresets,
    BackboneWeights,
    BundleData,
    BundleName,
    BundleOut,
    BundleRun,
    BundleTaef2,
    CalibrationMethod,
    CalibrationShare,
    Conditioning,
    DataFolder,
    DespiteAudit,
    Device,
    DrawCodec,
    EvaluationShare,
    Folds,
    GeneratorPreset,
    GeneratorsFolder,
    Licence,
    RecipeName,
    Shaders,
    Smoke,
    StayPositive,
    Steady,
    TrainOut,
    TrainSteps,
    TrainTaef2,
)
from worker.cli.presets import DEFAULT_PINS, Pins, Variant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from detection.bundle import Bundle
    from training.bundles.preset_generator import PresetGenerator, PresetPlace
    from training.bundles.recipe import BundleRecipe
    from training.bundles.training_run.run import BundleTrainingRun
    from training.data.aligners import Aligner, AutoencoderReconstruction
    from training.data.manifest import Entry
    from training.evaluation.calibration import CalibrationKind
    from training.evaluation.shortcut_features import SourceFile
    from training.retraining.folder_run import FolderRunOptions
    from worker.cli.common.progress import Report

commands = typer.Typer()


@commands.command()
def bundle(
    data: BundleData = None,
    out: BundleOut = None,
    run: BundleRun = None,
    recipe: RecipeName = "small",
    generator: GeneratorPreset = None,
    aligners: AlignerPresets = "",
    generators: GeneratorsFolder = None,
    conditioning: Conditioning = None,
    variant: Variant = None,
    pins: Pins = DEFAULT_PINS,
    backbone_weights: BackboneWeights = None,
    taef2: BundleTaef2 = None,
    licence: Licence = "not stated",
    folds: Folds = True,
    calibration: CalibrationMethod = "temperature",
    stay_positive: StayPositive = False,
    steady: Steady = False,
    smoke: Smoke = False,
    device: Device = "cpu",
) -> None:
    """Train, calibrate and write a bundle from images of one's own; takes hours on a CPU.

    The manifest has the columns path, label (real or generated), set, and optionally family, kind,
    source and group; folds.tsv beside it states the folds.
    """
    from training.bundles.smoke import draw_images, smoke_recipe
    from training.fit.data_parallel import process_group

    _configure_logs()
    if smoke == (data is not None):
        raise typer.BadParameter("either --data names the images, or --smoke draws some")
    decoders = taef2 is not None or stay_positive or not folds
    _refuse_ignored(recipe, backbone_weights, presets=bool(generator or aligners), traces=decoders)
    _refuse_without_presets(variant, pins, aligners, generator, conditioning)
    out, run = _bundle_folders(out, run, Path("out/smoke" if smoke else "out"))
    entries = [] if data is None else _usable_entries(data)
    place = _place(pins, generators, variant)
    with process_group(device) as leads:
        if not leads:
            return
        parts = _presets(place, generator, aligners, conditioning, device)
        resolved = _resolved(
            recipe, parts, calibration=calibration, stay_positive=stay_positive, steady=steady
        )
        if smoke:
            resolved = smoke_recipe(resolved)
        if data is None:
            data = run / "images"
            entries = draw_images(data)
        training_run = _training_run(
            resolved, data, entries, run, parts, taef2, backbone_weights, device=device
        )
        released = _build(training_run, out, data, licence=licence, folds=folds)
    typer.echo(f"{released.folder}: model version {released.model_version}")


def _refuse_ignored(
    recipe: str, backbone_weights: Path | None, *, presets: bool, traces: bool
) -> None:
    """Refuse the options that a recipe would ignore."""
    from training.bundles.recipe import RECIPES

    headed = RECIPES[recipe].backbone is not None
    if headed and traces:
        raise typer.BadParameter(
            f"--taef2, --stay-positive and --no-folds are for the other recipes: `{recipe}` makes"
            " no pairs, has no aligned head, and rests its thresholds on the folds"
        )
    if headed and presets:
        raise typer.BadParameter(
            f"--generator and --aligners are for the other recipes: `{recipe}` computes no error"
            " maps and makes no pairs"
        )
    if not headed and backbone_weights is not None:
        raise typer.BadParameter(f"--backbone-weights is not for --recipe {recipe}")


def _refuse_without_presets(
    variant: str | None,
    pins: Path,
    aligners: str,
    generator: str | None = None,
    conditioning: Path | None = None,
) -> None:
    """Refuse the options on presets where no preset is named that they could be of."""
    if conditioning is not None and not generator:
        raise typer.BadParameter("--conditioning is of a --generator, and none is named")
    if (variant is not None or pins != DEFAULT_PINS) and not (generator or aligners):
        raise typer.BadParameter("--variant and --pins are of presets, and no option names one")


def _bundle_folders(out: Path | None, run: Path | None, base: Path) -> tuple[Path, Path]:
    """Return where the bundle and its run go; raises `SettingsError` for an `out` that stays."""
    from training.bundles.writer import require_replaceable

    out, run = out or base / "bundle", run or base / "run"
    require_replaceable(out, run)
    return out, run


def _configure_logs() -> None:
    from worker.settings import load_settings
    from worker.telemetry.logs import configure

    configure(load_settings().observability)


def _presets(
    place: PresetPlace,
    generator: str | None,
    aligners: str,
    conditioning: Path | None,
    device: str,
) -> tuple[PresetGenerator | None, list[AutoencoderReconstruction]]:
    """Load the presets that a run is made on; raises `PresetError` naming what is missing."""
    from detection.generators.presets import find_preset
    from training.bundles.preset_generator import load_preset_generator

    chosen = None
    if generator:
        chosen = load_preset_generator(find_preset(generator), place, conditioning=conditioning)
    return chosen, _preset_aligners(place, aligners, device=device)


def _place(pins: Path, generators: Path | None, variant: str | None) -> PresetPlace:
    from training.bundles.preset_generator import PresetPlace
    from worker.settings import load_settings

    folder = generators or load_settings().scoring.generators
    return PresetPlace(pins=pins, generators=folder, variant=variant)


def _preset_aligners(
    place: PresetPlace, names: str, *, device: str
) -> list[AutoencoderReconstruction]:
    """Load the autoencoders of presets, named with commas between; raises `PresetError`."""
    from detection.generators.presets import find_preset

    named = [name for name in names.split(",") if name]
    return [place.aligner(find_preset(name), device=device) for name in named]


def _resolved(
    recipe: str,
    parts: tuple[PresetGenerator | None, list[AutoencoderReconstruction]],
    *,
    calibration: CalibrationKind,
    stay_positive: bool,
    steady: bool,
) -> BundleRecipe:
    """Return the recipe with what the options change of it."""
    from training.bundles.recipe import RECIPES
    from training.fit.stay_positive import HEAD_LOOP

    chosen, aligners = parts
    resolved = replace(
        RECIPES[recipe],
        calibration=calibration,
        positive_head_loop=HEAD_LOOP if stay_positive else None,
        steady=steady,
        aligners=tuple(one.identity for one in aligners),
    )
    return resolved if chosen is None else resolved.on_preset(chosen)


def _training_run(
    recipe: BundleRecipe,
    data: Path,
    entries: Sequence[Entry],
    run: Path,
    parts: tuple[PresetGenerator | None, list[AutoencoderReconstruction]],
    taef2: Path | None,
    backbone_weights: Path | None,
    *,
    device: str,
) -> BundleTrainingRun:
    from training.bundles.recipe import write_recipe
    from training.bundles.training_run.run import BundleTrainingRun
    from training.data.folds import folds_digest
    from training.data.manifest import listing_digest
    from training.data.taef2 import taef2_aligner

    run.mkdir(parents=True, exist_ok=True)
    folders = {"autoencoders": taef2, "weights of the backbone": backbone_weights}
    inputs = {name: str(folder and folder.resolve()) for name, folder in folders.items()}
    # With --no-folds too: a later run with folds goes on in the same folder.
    inputs |= {"images": listing_digest(entries), "folds": folds_digest(data)}
    write_recipe(recipe, run / "recipe.json", inputs)
    chosen, aligners = parts
    made = [*aligners, *([] if taef2 is None else [taef2_aligner(taef2)])]
    return BundleTrainingRun(
        entries,
        run,
        recipe,
        made,
        device,
        backbone_weights=backbone_weights,
        preset=chosen,
    )


def _usable_entries(data: Path) -> list[Entry]:
    """Read a manifest; raises `SettingsError` unless it lists usable images of both labels."""
    from training.data.manifest import load_manifest
    from training.data.samples import check_images

    entries = load_manifest(data)
    if len({entry.label for entry in entries}) == 1:
        raise SettingsError(f"{data} holds {entries[0].label} images only: both kinds are needed")
    if refused := check_images(entries, data).refused:
        name, why = next(iter(refused.items()))
        raise SettingsError(
            f"{data}: {len(refused)} of the images listed cannot be used ({name}: {why}):"
            " take them out of manifest.tsv"
        )
    return entries


def _build(
    training_run: BundleTrainingRun, out: Path, data: Path, *, licence: str, folds: bool
) -> Bundle:
    from training.bundles.backbone_build import build_backbone_bundle
    from training.bundles.build import build_bundle
    from training.data.folds import load_folds

    found = load_folds(data, training_run.entries) if folds else []
    build = build_bundle if training_run.recipe.backbone is None else build_backbone_bundle
    with show_progress() as training_run.on_progress:
        return build(training_run, out, data_licence=licence, folds=found)


@commands.command()
def train(
    data: DataFolder,
    champion: BundleName = "small",
    out: TrainOut = Path("out/train"),
    steps: TrainSteps = 300,
    taef2: TrainTaef2 = None,
    aligners: AlignerPresets = "",
    generators: GeneratorsFolder = None,
    variant: Variant = None,
    pins: Pins = DEFAULT_PINS,
    evaluation: EvaluationShare = 0.15,
    calibration: CalibrationShare = 0.15,
    shaders: Shaders = 0,
    draw_codec: DrawCodec = False,
    despite_audit: DespiteAudit = False,
    licence: Licence = "not stated",
    device: Device = "cpu",
) -> None:
    """Train a bundle further on labelled images, and compare the result with it.

    The images are divided by group into those trained on, calibrated on and evaluated on; other
    shares need another --out. Exits with 1 when the promotion gate refuses the challenger; its
    bundle is written all the same.
    """
    from training.data.selection import CollectPolicy
    from training.data.taef2 import taef2_aligner
    from training.fit.data_parallel import process_group
    from training.retraining.folder_run import FolderRunOptions

    _configure_logs()
    _refuse_without_presets(variant, pins, aligners)
    with process_group(device) as leads:
        if not leads:
            return
        place = _place(pins, generators, variant)
        named: list[Aligner] = [*_preset_aligners(place, aligners, device=device)]
        options = FolderRunOptions(
            data_licence=licence,
            aligners=[*named, *([] if taef2 is None else [taef2_aligner(taef2)])],
            generators=place.generators,
            shares=CollectPolicy(evaluation=evaluation, calibration=calibration),
            shaders=shaders,
            draw_codec=draw_codec,
            despite_audit=despite_audit,
        )
        _train(data, champion, out, options, steps=steps, device=device)


def _train(
    data: Path, champion: str, out: Path, options: FolderRunOptions, *, steps: int, device: str
) -> None:
    from detection.bundle import load_bundle
    from training.bundles.challenger import ChallengerRecipe
    from training.retraining.folder_run import run_on_folder

    recipe = ChallengerRecipe().at_most(steps)
    with show_progress() as report:
        outcome = run_on_folder(
            data, load_bundle(champion), out, recipe, options, device=device, on_progress=report
        )
    for reason in outcome.decision.reasons:
        typer.echo(f"{'Passed' if outcome.decision.passed else 'Refused'}: {reason}")
    typer.echo(f"{outcome.bundle.folder}: model version {outcome.bundle.model_version}")
    typer.echo(f"{outcome.report}")
    if not outcome.decision.passed:
        raise typer.Exit(1)


@commands.command()
def evaluate(
    data: DataFolder,
    bundle: BundleName = "small",
    out: Annotated[
        Path, typer.Option(help="Where the report is written; a run resumes from it.")
    ] = Path("out/quality"),
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of images of a set.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Measure a bundle on labelled images: figures with intervals, tables and plots.

    Thresholds are the bundle's own. Whether it was trained on an image cannot be known from a
    bundle: the report says what it could tell.
    """
    from detection.detector import Detector
    from training.evaluation.quality.run import evaluate_bundle as run_evaluation
    from worker.settings import load_settings

    generators = load_settings().scoring.generators
    detector = Detector.load(bundle, device=device, generators=generators)
    with show_progress() as report:
        quality = run_evaluation(detector, data, out, limit=limit, on_progress=report)
    for warning in quality.warnings:
        typer.echo(f"Mind: {warning}", err=True)
    typer.echo(f"{out / 'quality.md'}: model version {quality.model_version}")


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
    from training.data.manifest import load_manifest
    from training.evaluation.shortcut_audit import run_audit
    from training.evaluation.shortcut_features import source_files

    entries = load_manifest(data)
    features = None
    if bundle:
        from detection.bundle import load_bundle
        from training.evaluation.feature_space import BundleFeatures

        features = BundleFeatures(load_bundle(bundle))
    with show_progress() as report_progress:
        files = _reported(source_files(entries), len(entries), report_progress)
        found = run_audit(files, features=features, space=features.name if features else "")
    typer.echo(found.to_markdown())
    if report is not None:
        report.write_text(found.to_json() + "\n", encoding="utf-8")
    if found.refusals:
        raise typer.Exit(1)


def _reported(files: Iterable[SourceFile], total: int, report: Report) -> Iterator[SourceFile]:
    for done, file in enumerate(files, 1):
        yield file
        report("reading", done, total)
