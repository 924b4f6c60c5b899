"""A platform under test: it uploads images, sends their messages and looks at their rows."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PillowImage
from sqlalchemy import select

from tests.support.waiting import eventually
from worker.ledger.interface import State, Upload
from worker.ledger.postgres import PostgresLedger
from worker.ledger.tables import Image, VerdictRow
from worker.queue import names as queues
from worker.queue.app import build_app
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from typing import Any
    from uuid import UUID

    from sqlalchemy import Engine, Row

    from worker.settings import Settings


def png(value: int = 51, *, side: int = 64, corner: tuple[int, int, int] | None = None) -> bytes:
    """Return a grey PNG, perhaps with a colour in its corner."""
    pixels = np.full((side, side, 3), value, np.uint8)
    if corner is not None:
        pixels[0, 0] = corner
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Site:
    """A platform that uploads and looks at rows."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self.bucket = settings.s3.buckets[0]
        self.storage = S3Storage(settings.s3)
        self.ledger = PostgresLedger(engine)
        self.celery = build_app(settings)
        self._engine = engine

    def upload(
        self, key: str, body: bytes, *, content_type: str = "image/png", **fields: Any
    ) -> UUID:
        """Store an object, register it and send its message."""
        facts = self.storage.put(self.bucket, key, body, content_type=content_type)
        upload = Upload(
            **{
                "bucket": self.bucket,
                "key": key,
                "etag": facts.etag,
                "content_type": content_type,
                **fields,
            }
        )
        image_id = self.ledger.register([upload])[0].image_id
        self.send(image_id)
        return image_id

    def send(self, image_id: UUID, *, task: str = queues.SCORE_TASK) -> None:
        """Send a message for an image."""
        self.celery.send_task(task, args=[str(image_id)])
        self.ledger.mark_published([image_id])

    def row(self, image_id: UUID) -> Row[Any]:
        """Return an image's row."""
        with self._engine.begin() as connection:
            return connection.execute(select(Image.__table__).where(Image.id == image_id)).one()

    def wait_for_registration(self, key: str) -> UUID:
        """Wait until a bridge has registered an object and return the image's id."""
        wanted = select(Image.id).where(Image.bucket == self.bucket, Image.key == key)

        def found() -> UUID | None:
            with self._engine.begin() as connection:
                return connection.scalar(wanted)

        eventually(lambda: found() is not None, what=f"the registration of {key}")
        image_id = found()
        assert image_id is not None
        return image_id

    def verdicts(self, image_id: UUID) -> list[Row[Any]]:
        """Return an image's verdicts."""
        with self._engine.begin() as connection:
            wanted = select(VerdictRow.__table__).where(VerdictRow.image_id == image_id)
            return list(connection.execute(wanted))

    def wait_for(self, image_id: UUID, state: State = State.SCORED) -> Row[Any]:
        """Wait until an image has ended; it must have ended in this state."""
        eventually(lambda: self.row(image_id).state != State.PENDING, what=f"the end of {image_id}")
        row = self.row(image_id)
        assert row.state == state, (row.reason, row.detail)
        return row
