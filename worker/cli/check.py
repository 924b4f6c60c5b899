"""`unlatent check`: score files without any service."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detection.errors import PermanentError, SettingsError
from worker.cli.context import ending
from worker.scoring.score_record import score_record
from worker.settings import load_settings
from worker.text import escape_controls

if TYPE_CHECKING:
    from detection.detector import Detector
    from worker.scoring.file_scoring import ScoredFile

commands = typer.Typer()


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSONL = "jsonl"


@commands.command()
def check(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    format_: Annotated[
        Format, typer.Option("--format", help="A table, or one JSON object a line.")
    ] = Format.TABLE,
    evidence: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a picture of what decided, of each image; of a bundle with a lare"
            " branch, also for the error map."
        ),
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(help="Embedded bundle's name, or a bundle's folder.")
    ] = None,
    device: Annotated[str | None, typer.Option(help='"auto", "cpu", "cuda", "cuda:1" …')] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 8,
) -> None:
    """Score image files, and the image files in folders, without any service.

    Exits with 0 when every file was scored and with 1 when some could not be. Ctrl-C keeps the
    lines that were printed.
    """
    from worker.scoring.file_scoring import check_files, find_files, intake_limits

    settings = load_settings()
    files = list(find_files(paths))
    _refuse_what_is_not_there(paths, files)
    if evidence is not None:
        _make_folder(evidence)
    detector = _load(bundle or settings.scoring.bundle, device or settings.scoring.device)
    if format_ is Format.TABLE:
        typer.echo(_HEADER)
    done = failed = 0
    try:
        ending.insist()  # what loads a model may have swallowed it
        for checked in check_files(files, detector, intake_limits(settings.intake), batch=batch):
            record = _record(checked, detector.model_version)
            if evidence is not None and checked.score is not None:
                record["evidence"] = str(_keep_evidence(evidence, checked))
            failed += checked.error is not None
            typer.echo(json.dumps(record) if format_ is Format.JSONL else _row(record))
            done += 1
            ending.insist()
    except SystemExit:  # a signal's
        typer.echo(f"stopped after {done} of {len(files)} files", err=True)
        raise
    if failed:
        typer.echo(f"{failed} of {len(files)} files could not be scored", err=True)
        raise typer.Exit(1)


def _refuse_what_is_not_there(paths: list[Path], files: list[Path]) -> None:
    """Raise `SettingsError` when nothing can be scored; one path among others costs its line."""
    if any(file.exists() for file in files):
        return
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise SettingsError(f"no such file or folder: {', '.join(missing)}")
    raise SettingsError(f"no image files in {', '.join(map(str, paths))}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--evidence {folder}: {error.strerror}") from error


def _load(bundle: str, device: str) -> Detector:
    import torch

    from detection.detector import Detector
    from worker.scoring.torch_scorer import choose_device

    device = choose_device(device)
    try:
        known = torch.device(device)
    except RuntimeError as error:
        raise SettingsError(f"no device named {device!r}: auto, cpu or cuda") from error
    if known.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError("this machine has no CUDA device: use --device cpu")
    return Detector.load(bundle, device=device)


def _record(checked: ScoredFile, model_version: str) -> dict[str, Any]:
    if checked.score is None:
        error = checked.error
        record = {"path": str(checked.path), "error": f"{type(error).__name__}: {error}"}
        return record | ({"reason": error.reason} if isinstance(error, PermanentError) else {})
    return {
        "path": str(checked.path),
        **score_record(checked.score, model_version=model_version),
    }


_HEADER = (
    f"{'label':<9}  {'point of accusation':<19}  {'distance':>8}  {'score':>6}"
    f"  {'decided by':<10}  path"
)


def _row(record: dict[str, Any]) -> str:
    path = escape_controls(record["path"])
    if "error" in record:
        why = escape_controls(record["error"])
        return f"{'error':<9}  {'-':<19}  {'-':>8}  {'-':>6}  {'-':<10}  {path}: {why}"
    away = "-" if record["distance"] is None else f"{record['distance']:+.2f}"
    why = f" ({record['outside']})" if record["outside"] else ""
    return (
        f"{record['label']:<9}  {record['distance_words']:<19}  {away:>8}  {record['score']:6.3f}"
        f"  {record['decided_by']:<10}  {path}{why}"
    )


def _keep_evidence(folder: Path, checked: ScoredFile) -> Path:
    import numpy as np

    from detection.evidence import error_at_image_scale, flat_picture, make_evidence

    assert checked.image is not None  # noqa: S101  # the caller saw a score
    assert checked.score is not None  # noqa: S101  # likewise
    image, score = checked.image, checked.score
    # Files of one name in different folders must not overwrite each other.
    file = folder / f"{checked.path.stem}-{image.sha256[:12]}.png"
    file.write_bytes(flat_picture(make_evidence(image.frame(score.frame), score)))
    if score.error_map is not None:
        errors = error_at_image_scale(score.error_map, image.height, image.width)
        np.savez_compressed(file.with_suffix(".npz"), error=errors)
    return file
