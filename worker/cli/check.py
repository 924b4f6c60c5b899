"""`unlatent check`: score files without any service."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detection.errors import PermanentError, SettingsError
from worker.cli.common.progress import show_progress
from worker.cli.common.rows import Format, FormatOption, print_rows
from worker.cli.context import ending
from worker.text import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from detection.detector import Detector
    from worker.cli.common.progress import Report
    from worker.scoring.file_scoring import ScoredFile

commands = typer.Typer()

#: Of CSV; JSON objects of files that could not be scored have some of these only.
_COLUMNS = (
    "path", "label", "distance_words", "distance", "score", "decided_by", "branches",
    "operating_point", "prior", "outside", "frame", "model_version", "evidence", "error", "reason",
)  # fmt: skip


@commands.command()
def check(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    format_: FormatOption = Format.TABLE,
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
    from worker.settings import load_settings

    settings = load_settings()
    files = list(find_files(paths))
    _refuse_what_is_not_there(paths, files)
    if evidence is not None:
        _make_folder(evidence)
    scoring = settings.scoring
    detector = _load(bundle or scoring.bundle, device or scoring.device, scoring.generators)
    counts = _Counts(files=len(files))
    limits = intake_limits(settings.intake)
    try:
        ending.insist()  # what loads a model may have swallowed it
        with _bar() as report:
            scored = check_files(files, detector, limits, batch=batch)
            _print(_records(scored, detector.model_version, evidence, counts, report), format_)
    except SystemExit:  # a signal's
        typer.echo(f"stopped after {counts.done} of {counts.files} files", err=True)
        raise
    if counts.failed:
        typer.echo(f"{counts.failed} of {counts.files} files could not be scored", err=True)
        raise typer.Exit(1)


@dataclass(slots=True)
class _Counts:
    files: int
    done: int = 0
    failed: int = 0


def _records(
    scored: Iterable[ScoredFile],
    model_version: str,
    evidence: Path | None,
    counts: _Counts,
    report: Report,
) -> Iterator[dict[str, Any]]:
    """Yield the record of each file; it is counted as done when the next one is asked for."""
    for checked in scored:
        record = _record(checked, model_version)
        if evidence is not None and checked.score is not None:
            record["evidence"] = str(_keep_evidence(evidence, checked))
        counts.failed += checked.error is not None
        yield record
        counts.done += 1
        report("scoring", counts.done, counts.files)
        ending.insist()


def _bar() -> AbstractContextManager[Report]:
    """Show a bar on a terminal that does not show the rows: they tell how far the work is."""
    if sys.stderr.isatty() and not sys.stdout.isatty():
        return show_progress()
    return nullcontext(lambda *_: None)


def _print(records: Iterable[dict[str, Any]], format_: Format) -> None:
    if format_ is not Format.TABLE:
        print_rows(records, _COLUMNS, format_)
        return
    typer.echo(_HEADER)  # its widths are fixed, so that rows are printed as they come
    for record in records:
        typer.echo(_row(record))


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


def _load(bundle: str, device: str, generators: Path | None) -> Detector:
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
    return Detector.load(bundle, device=device, generators=generators)


def _record(checked: ScoredFile, model_version: str) -> dict[str, Any]:
    if checked.score is None:
        error = checked.error
        record = {"path": str(checked.path), "error": f"{type(error).__name__}: {error}"}
        return record | ({"reason": error.reason} if isinstance(error, PermanentError) else {})
    from worker.scoring.score_record import score_record

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
