"""Erasing an image from the data sets that hold a copy of it: `worker.moderation`'s `Shards`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import exists, select

from training.data.shards import MANIFEST, remove_samples
from worker.database.engine import transaction
from worker.ledger.tables_training import TrainingRun
from worker.retraining.dataset_store import BucketStore
from worker.retraining.snapshots import Snapshots
from worker.storage.interface import remove

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Engine

    from worker.storage.interface import Storage


class SnapshotShards:
    """The data sets of all runs, in one bucket."""

    def __init__(self, engine: Engine, storage: Storage, bucket: str) -> None:
        self._engine, self._storage, self._bucket = engine, storage, bucket

    def erase(self, image_id: UUID) -> bool:
        """Cut the image out of every data set; False while a run may still be writing one.

        What a run left behind that ended before its data set was whole is removed altogether.
        """
        clean = True
        for uri in Snapshots(self._engine).holding(image_id):
            prefix = uri.removeprefix(f"s3://{self._bucket}/")
            store = BucketStore(self._storage, self._bucket, prefix)
            if store.read(MANIFEST) is not None:
                remove_samples(store, [str(image_id)], reason="erased", at=datetime.now(UTC))
                self._forget_hidden(prefix)
            elif self._running():
                clean = False
            else:
                remove(self._storage, list(self._storage.versions(self._bucket, prefix=prefix)))
        return clean

    def _forget_hidden(self, prefix: str) -> None:
        """Remove what a bucket with versions keeps of shards that were replaced or removed."""
        hidden = [
            one for one in self._storage.versions(self._bucket, prefix=prefix) if not one.latest
        ]
        remove(self._storage, hidden)

    def _running(self) -> bool:
        with transaction(self._engine) as connection:
            return bool(connection.scalar(select(exists().where(TrainingRun.state == "running"))))
