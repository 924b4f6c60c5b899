"""The platform of the retraining demo: it uploads, decides, and looks at rows."""

from __future__ import annotations

import mimetypes
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import psycopg
from psycopg import sql
from sqlalchemy import text

from worker.client import Client
from worker.database.engine import build_engine
from worker.demo.deployment import BUCKET, DemoError
from worker.moderation import moderators, policies
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from uuid import UUID

    from worker.demo.deployment import Deployment
    from worker.demo.retrain_images import ScenarioUpload

POLL_S = 0.5
#: So long without anything new, and something is wrong.
STALL_S = 600.0
MODERATORS = ("demo_ada", "demo_ben")


class RetrainPlatform:
    """Uploads, decisions and queries over a running deployment."""

    def __init__(self, deployment: Deployment) -> None:
        settings = deployment.settings
        self._deployment = deployment
        self._storage = S3Storage(settings.s3)
        self._client = Client(
            settings.redis.url.get_secret_value(),
            settings.postgres.url.get_secret_value(),
            settings.redis.key_prefix,
        )
        self.engine = build_engine(settings.postgres, application_name="unlatent-demo")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.engine.dispose()
        self._client.close()
        self._storage.close()

    def upload(self, upload: ScenarioUpload, *, folder: str = "past") -> UUID:
        """Store an object and submit it."""
        facts = self._storage.put(
            BUCKET,
            f"{folder}/{upload.name}",
            upload.data,
            content_type=mimetypes.guess_type(upload.name)[0] or "application/octet-stream",
        )
        return self._client.submit(
            bucket=BUCKET, key=facts.key, etag=facts.etag, source=upload.source
        )

    def audit_all(self, source: str) -> None:
        """Draw every image of a source into the random audit, and flag none by itself."""
        draft = policies.PolicyDraft(
            source=source, review=1.0, flag=1.0, flag_high=1.0, audit_share=1.0, max_flag_share=1.0
        )
        policies.activate(self.engine, draft, reason="the demo's moderators look at everything")

    def decide(self, decisions: Sequence[tuple[UUID, str]]) -> None:
        """Have moderators with logins of their own decide on images, in turn."""
        dsn = self._deployment.stack.postgres.dsn(
            self._deployment.settings.postgres.url.get_secret_value().rpartition("/")[2]
        )
        for number, name in enumerate(MODERATORS):
            password = uuid4().hex
            with psycopg.connect(dsn, autocommit=True) as superuser:
                superuser.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE moderator").format(
                        sql.Identifier(name), sql.Literal(password)
                    )
                )
            moderators.allow(self.engine, name, sources=None)
            login = psycopg.conninfo.make_conninfo(dsn, user=name, password=password)
            with psycopg.connect(login) as desk:
                for image, label in decisions[number :: len(MODERATORS)]:
                    desk.execute(
                        "SELECT moderation.decide(%s, %s, (SELECT code FROM moderation.reasons"
                        " WHERE decision = %s ORDER BY code LIMIT 1))",
                        (image, label, label),
                    )

    def rows(self, query: str, **values: Any) -> Sequence[Any]:
        """Run a query as the service."""
        with self.engine.connect() as connection:
            return connection.execute(text(query), values).all()

    def wait(self, done: Callable[[], bool], seen: Callable[[], object], *, what: str) -> None:
        """Poll until it is done; raises `DemoError` when `seen` has not changed for too long."""
        before, moved = seen(), time.monotonic()
        while not done():
            self._deployment.check()
            now = seen()
            if now != before:
                before, moved = now, time.monotonic()
            if time.monotonic() - moved > STALL_S:
                raise DemoError(f"{what}: nothing moved for {STALL_S:g} s; the logs say why")
            time.sleep(POLL_S)

    def report(self, bucket: str, prefix: str) -> dict[str, bytes]:
        """Fetch the files of a run's report by name."""
        settings = self._deployment.settings.s3
        both = settings.model_copy(update={"buckets": (BUCKET, bucket)})
        with closing(S3Storage(both)) as storage:
            return {
                found.key.removeprefix(prefix): storage.fetch(bucket, found.key, max_bytes=2**24)
                for found in list(storage.list(bucket, prefix=prefix))
            }
