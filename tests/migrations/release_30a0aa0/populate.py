"""Fills every table of a database with the code of revision 30a0aa0 and dumps it.

The README beside it says how it was run. It is a test of that revision, whose fixtures it uses; the
suite of today does not collect it.
"""

from __future__ import annotations

import gzip
import os
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from detection.signals import C2pa, Exif, ManifestState, Signals
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from training.collect import Label, Selected, Selection, Side, Why
from worker.ledger_postgres import PostgresLedger
from worker.models_registry import ModelsRegistry, ModelVersion
from worker.storage_s3 import S3Storage

from tests.integration.moderation.conftest import verdict_of
from worker import drift
from worker.ledger import Lease, Purpose, Removal, Role, State, Upload
from worker.moderation import configuration, policies, provenance
from worker.moderation.retention import Keeper, request_erasure
from worker.retraining.runs import Ending, Runs
from worker.retraining.snapshots import Snapshots
from worker.settings import Drift

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import Engine

    from worker.localstack import LocalStack
    from worker.settings import Settings

OUT = Path(os.environ["OUT"])
SIGNALS = Signals(
    exif=Exif(make="Canon", model="EOS R6", software="GIMP", taken_at="2026:01:31 12:00:00"),
    iptc_digital_source_type="trainedAlgorithmicMedia",
    iptc_asserts_ai=True,
    c2pa=C2pa(state=ManifestState.INVALID, problems=("assertion.dataHash.mismatch",)),
)


class NoShards:
    """Training shards that hold no image."""

    def erase(self, _image_id: UUID) -> bool:
        """Say that no shard holds the image."""
        return True


def test_populate(  # noqa: PLR0915 - one database from top to bottom
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    engine: Engine,
    settings: Settings,
    stack: LocalStack,
    database: str,
) -> None:
    """Every table of schema app gets rows, and all of it becomes a dump."""
    assert settings.postgres.owner_url is not None
    owner_url = settings.postgres.owner_url.get_secret_value()
    webhooks = settings.webhooks.model_copy(update={"url": "https://hooks.example/unlatent"})
    configuration.write(owner_url, settings.model_copy(update={"webhooks": webhooks}))
    ledger = PostgresLedger(engine)
    bucket = settings.s3.buckets[0]
    policies.enact(
        engine,
        policies.Draft(source="forum", review=0.3, flag=0.8, flag_high=0.95),
        reason="stricter for the forum",
    )
    registry = ModelsRegistry(engine)
    for digest in ("model-1", "model-2"):
        registry.register(ModelVersion(digest=digest, name=digest, uri=f"s3://training/{digest}"))
    registry.promote("model-1", actor="operator", reason="first", forced=True)
    registry.put_in_shadow("model-2", actor="operator", reason="challenger")

    rng = np.random.default_rng(0)
    ids = [
        scored(
            float(rng.uniform()),
            source=("web", "forum")[n % 2],
            pdq=bytes(rng.integers(0, 256, 32, dtype=np.uint8)),
        )
        for n in range(24)
    ]
    high = [scored(0.99, evidence_uri=f"s3://evidence/{n}.png") for n in range(8)]
    twins = [scored(0.97, sha256="ab" * 32, pdq=bytes(range(32))) for _ in range(2)]
    shadow_of(ledger, high[0])
    with engine.begin() as connection:
        provenance.store(connection, {high[0]: SIGNALS})

    lead, someone = desk(lead=True), desk("web")
    lead.rows("SELECT * FROM moderation.claim_next(3)")
    someone.value("SELECT moderation.decide(%s, 'real', 'real_plausible', 'looks real')", high[0])
    someone.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", high[1])
    appeal = lead.value("SELECT moderation.open_appeal(%s, 'the author wrote')", high[1])
    lead.value(
        "SELECT moderation.close_appeal(%s, 'overturned', 'real_original', 'a raw file')",
        appeal,
    )
    lead.value("SELECT moderation.open_appeal(%s, 'waits')", twins[0])
    lead.value("SELECT moderation.place_hold(%s, 'a court asked')", high[2])
    held = lead.value("SELECT moderation.place_hold(%s, 'a mistake')", high[3])
    assert held
    lead.value("SELECT moderation.lift_hold(%s, 'mistaken')", high[3])

    unlike = {name: other_end(ledger, bucket, name) for name in ("failed", "superseded")}
    ledger.register([Upload(bucket=bucket, key="waits.png", etag="e", source="web")])
    gone = ledger.register([Upload(bucket=bucket, key="gone.png", etag="e", sequencer="01")])
    ledger.withdraw([Removal(bucket=bucket, key="gone.png", sequencer="02")])
    ledger.withdraw([Removal(bucket=bucket, key="never-seen.png", sequencer="02")])
    assert gone
    assert unlike
    request_erasure(engine, ids[0], reason="the uploader asked")
    storage = S3Storage(settings.s3)
    Keeper(engine, storage, settings.retention, shards=NoShards()).run()
    request_erasure(engine, ids[1], reason="not done yet")

    readings = drift.measure(engine, Drift())
    assert readings
    drift.record(engine, readings)
    runs = Runs(engine, holder="trainer-1", lease=timedelta(minutes=5))
    run = runs.begin("calendar:1", trigger="calendar")
    assert run is not None
    runs.end(run.id, Ending.FINISHED)
    chosen = Selected(
        image_id=str(high[4]),
        sha256="ef" * 32,
        source="web",
        label=Label.REAL,
        why=Why.DECISION,
        group="g",
        side=Side.TRAINING,
        weight=1.0,
    )
    snapshots = Snapshots(engine)
    snapshot = snapshots.save(
        Selection(items=(chosen,), left_out={"uploader_cap": 2}), uri="s3://training/snapshots/1"
    )
    snapshots.seal(snapshot, digest="cd" * 32, report={"shortcut_auc": 0.5})
    owner = create_engine(owner_url, poolclass=NullPool)
    with owner.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO app.breakers (source, policy_id, images, flag_share) "
                "SELECT 'forum', max(id), 200, 0.5 FROM app.policies"
            )
        )
        tables = connection.scalars(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'app' ORDER BY 1")
        ).all()
        counts = {
            table: connection.scalar(text(f"SELECT count(*) FROM app.{table}"))  # noqa: S608
            for table in tables
        }
    assert all(counts.values()), counts
    dump(stack, database, {one.name: f"moderator_{n}" for n, one in enumerate((lead, someone), 1)})


def shadow_of(ledger: PostgresLedger, image_id: UUID) -> None:
    """Give a scored image a challenger's verdict too."""
    lease = ledger.lease_for_rescore(
        image_id,
        model_version="model-2",
        worker="w",
        duration=timedelta(minutes=2),
        purpose=Purpose.SHADOW,
    )
    assert isinstance(lease, Lease)
    said = verdict_of(
        lease, 0.4, "real", None, None, None, model_version="model-2", role=Role.SHADOW
    )
    ledger.record([said])


def other_end(ledger: PostgresLedger, bucket: str, name: str) -> UUID:
    """Take an upload to an end without a verdict."""
    image_id = ledger.register([Upload(bucket=bucket, key=f"{name}.png", etag="e")])[0].image_id
    lease = ledger.lease(image_id, worker="w", duration=timedelta(minutes=2))
    assert isinstance(lease, Lease)
    reasons = {State.FAILED: "undecodable", State.SUPERSEDED: "object_replaced"}
    state = State(name)
    ledger.end(lease, state=state, reason=reasons[state], detail="as a test says")
    return image_id


def dump(stack: LocalStack, database: str, names: dict[str, str]) -> None:
    """Write the database as SQL, without psql's own commands and with plain names."""
    written = subprocess.run(
        [
            os.environ["PG_DUMP"],
            "--inserts",
            "--schema=app",
            "--schema=moderation",
            f"--dbname={stack.postgres.dsn(database)}",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name, plain in names.items():
        written = written.replace(name, plain)
    lines = [line for line in written.splitlines() if not line.startswith(("\\", "--"))]
    sql = "\n".join(line for line in lines if line) + "\n"
    OUT.write_bytes(gzip.compress(sql.encode(), 9, mtime=0))
