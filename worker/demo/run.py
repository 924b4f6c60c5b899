"""One run of the demo: start everything, upload, wait, show, stop."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

from redis import Redis
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from detection.detector import Detector
from detection.score import Label
from worker.database.engine import build_engine
from worker.demo.contact_sheet import draw_sheet
from worker.demo.deployment import BUCKET, DemoError, Deployment
from worker.demo.photographs import PHOTOGRAPHS
from worker.demo.report import Row, summary, table, write_json
from worker.demo.uploads import broken, hook_event, own, photographs, remade
from worker.ledger.interface import Role, State
from worker.ledger.tables import Image, VerdictRow
from worker.scoring.file_scoring import intake_limits
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.progress import TaskID
    from sqlalchemy import Engine

    from worker.demo.uploads import DemoUpload
    from worker.settings import Settings

POLL_S = 0.2
#: So long without one more terminal row, and something is wrong.
STALL_S = 120.0


def run_demo(
    settings: Settings,
    *,
    folder: Path | None,
    out: Path,
    console: Console,
    begun: float,
    desk: bool = False,
) -> bool:
    """Upload `folder`'s pictures, or the demo's own, and leave what came of them in `out`.

    `begun` is the monotonic time at which the command was given. `desk` also starts the moderators'
    console, and everything runs until Ctrl-C.

    Returns whether every upload ended, and ended as it must. Raises `UnlatentError` when a part of
    the service could not be started, died, or made no progress.
    """
    out.mkdir(parents=True, exist_ok=True)
    uploads = None if folder is None else own(folder)
    # The bundle is loaded here as well: it makes the demo's images and, at the end, the maps.
    detector = Detector.load(settings.scoring.bundle)
    with ExitStack() as exits:
        with _progress(console) as progress:
            starting = progress.add_task(
                "starting PostgreSQL, Redis, S3, worker, bridge, beat", total=2
            )
            deployment = exits.enter_context(Deployment(settings, logs=out / "logs", evidence=desk))
            progress.advance(starting)
            if uploads is None:
                uploads = _own_uploads(detector, out / "images", progress)
            deployment.wait_until_ready()
            progress.advance(starting)
            _upload(uploads, deployment.settings, progress)
            rows = _follow(uploads, deployment, progress)
            if not desk:
                exits.close()
            sheet, difference = _draw(rows, detector, settings, out, progress)
        as_expected = _report(rows, detector, out, console, begun, sheet, difference)
        if desk:
            _wait_at_console(deployment, console)
        else:
            console.print("\nEverything is stopped again.", highlight=False)
    return as_expected


def _draw(
    rows: Sequence[Row], detector: Detector, settings: Settings, out: Path, progress: Progress
) -> tuple[Path, float]:
    drawing = progress.add_task("drawing the contact sheet", total=1)
    sheet = out / "contact-sheet.png"
    difference = draw_sheet(
        sheet,
        rows,
        detector,
        intake_limits(settings.intake),
        title=f"unlatent demo, bundle {detector.bundle.manifest.name}"
        f" {detector.model_version[:12]}: {len(rows)} uploads",
    )
    progress.advance(drawing)
    return sheet, difference


def _report(
    rows: Sequence[Row],
    detector: Detector,
    out: Path,
    console: Console,
    begun: float,
    sheet: Path,
    difference: float,
) -> bool:
    lines = summary(rows, detector.bundle.manifest)
    seconds = time.monotonic() - begun
    as_expected = all(row.as_expected for row in rows)
    write_json(
        out / "demo.json",
        rows,
        as_expected=as_expected,
        contact_sheet=str(sheet),
        model_version=detector.model_version,
        summary=lines,
        recomputed_difference=difference,
        seconds=round(seconds, 1),
    )
    console.print(table(rows))
    for line in lines:
        console.print(f"\n{line}", highlight=False)
    console.print(
        f"\n{len(rows)} uploads, {sum(row.state == State.SCORED for row in rows)} verdicts,"
        f" {seconds:.0f} s in all. The same bytes scored without any service: at most"
        f" {difference:.1g} apart.",
        highlight=False,
    )
    # Paths must stay whole, so that they can be copied.
    for name, file in (("table as JSON", out / "demo.json"), ("contact sheet", sheet)):
        console.print(f"{name}: {file}", soft_wrap=True, highlight=False)
    return as_expected


def _wait_at_console(deployment: Deployment, console: Console) -> None:
    address, name, password = deployment.start_console()
    console.print(
        f"\nConsole: {address}\nsign in as {name}, password {password}\nCtrl-C stops everything.",
        soft_wrap=True,
        highlight=False,
    )
    while True:  # Ctrl-C raises `SystemExit`
        deployment.check()
        time.sleep(POLL_S)


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


def _own_uploads(detector: Detector, folder: Path, progress: Progress) -> list[DemoUpload]:
    count = len(PHOTOGRAPHS)
    making = progress.add_task("remaking them with the bundle's generator", total=count)
    fakes = []
    for upload in remade(detector.bundle, folder):
        fakes.append(upload)
        progress.advance(making)
    fakes.sort(key=lambda upload: upload.kind)
    return [*photographs(), *fakes, *broken(folder)]


def _upload(uploads: Sequence[DemoUpload], settings: Settings, progress: Progress) -> None:
    """Store each file and tell of it as a MinIO server would."""
    storing = progress.add_task("uploading to S3", total=len(uploads))
    ingest = settings.redis.key_prefix + settings.redis.ingest_key
    with (
        closing(S3Storage(settings.s3)) as storage,
        Redis.from_url(settings.redis.url.get_secret_value()) as redis,
    ):
        for upload in uploads:
            try:
                body = upload.path.read_bytes()
            except OSError as error:
                raise DemoError(f"{upload.path} cannot be read: {error.strerror}") from error
            facts = storage.put(BUCKET, upload.key, body, content_type=upload.content_type)
            redis.rpush(ingest, hook_event(facts))
            progress.advance(storing)


def _follow(uploads: Sequence[DemoUpload], deployment: Deployment, progress: Progress) -> list[Row]:
    """Watch the ledger until every upload ended."""
    checking = progress.add_task("checking", total=len(uploads))
    engine = build_engine(deployment.settings.postgres, application_name="unlatent-demo")
    try:
        return _ended(uploads, engine, deployment, progress, checking)
    finally:
        engine.dispose()


def _ended(
    uploads: Sequence[DemoUpload],
    engine: Engine,
    deployment: Deployment,
    progress: Progress,
    checking: TaskID,
) -> list[Row]:
    done, moved = 0, time.monotonic()
    while True:
        rows = _rows(uploads, engine)
        ended = sum(row.state != State.PENDING for row in rows)
        progress.update(checking, completed=ended)
        if ended == len(uploads):
            return rows
        if ended > done:
            done, moved = ended, time.monotonic()
        deployment.check()
        if time.monotonic() - moved > STALL_S:
            message = f"only {ended} of {len(uploads)} uploads ended"
            raise DemoError(f"{message} and none within {STALL_S:g} s; the logs say why")
        time.sleep(POLL_S)


def _rows(uploads: Sequence[DemoUpload], engine: Engine) -> list[Row]:
    """Read every upload's row; one that has none yet is pending."""
    verdict = and_(VerdictRow.image_id == Image.id, VerdictRow.role == Role.CHAMPION)
    wanted = select(Image, VerdictRow).outerjoin(VerdictRow, verdict)
    with Session(engine) as session:
        found = {image.key: (image, given) for image, given in session.execute(wanted)}
    return [_row(upload, *found.get(upload.key, (None, None))) for upload in uploads]


def _row(upload: DemoUpload, image: Image | None, verdict: VerdictRow | None) -> Row:
    return Row(
        upload=upload,
        state=State.PENDING if image is None else State(image.state),
        reason=None if image is None else image.reason,
        detail=None if image is None else image.detail,
        score=None if verdict is None else verdict.score,
        label=None if verdict is None else Label(verdict.label),
        distance=None if verdict is None else verdict.distance,
        outside=None if verdict is None else verdict.inapplicable_reason,
        model_version=None if verdict is None else verdict.model_version,
    )
