"""The addresses of a local stack, with passwords: as URLs, variables, settings and files."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import SecretStr

from worker.localstack.identity import APP, DATABASE, MODERATOR, OPERATOR, OWNER, write_private
from worker.localstack.processes import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from worker.localstack.identity import Identity
    from worker.localstack.servers import PostgresServer, S3Server, ValkeyServer
    from worker.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class StackAddresses:
    """The addresses of a stack's servers, for each who may sign in.

    They hold once the servers run. The files are in the stack's folder.
    """

    folder: Path
    identity: Identity
    postgres: PostgresServer
    redis: ValkeyServer
    s3: S3Server

    @property
    def env_file(self) -> Path:
        """The stack's addresses and secrets as `UNLATENT_…` settings, readable by its user only."""
        return self.folder / "stack.env"

    @property
    def password_file(self) -> Path:
        """The moderator's password, as libpq's PGPASSFILE, readable by its user only."""
        return self.folder / "pgpass"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that `write` makes."""
        return (self.env_file, self.password_file)

    def write(self, settings: Mapping[str, str]) -> None:
        """Write both files; `settings` are further variables."""
        variables = self.environment() | dict(settings)
        # Quoted for shells, and for the settings' reader.
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in variables.items()]
        write_private(self.env_file, "".join(lines))
        write_private(
            self.password_file,
            f"{LOOPBACK}:{self.postgres.port}:*:{MODERATOR}:{self.moderator_password()}\n",
        )

    def environment(self) -> dict[str, str]:
        """Return the settings that point a process at this stack."""
        return {
            "UNLATENT_POSTGRES__URL": self.database_url(),
            "UNLATENT_POSTGRES__OWNER_URL": self.owner_url(),
            "UNLATENT_POSTGRES__MODERATOR_URL": self.moderator_url(),
            "UNLATENT_POSTGRES__OPERATOR_URL": self.operator_url(),
            "UNLATENT_REDIS__URL": self.redis.url,
            "UNLATENT_S3__ENDPOINT_URL": self.s3.endpoint_url,
            "UNLATENT_S3__REGION": self.s3.region,
            "UNLATENT_S3__ACCESS_KEY_ID": self.s3.access_key_id,
            "UNLATENT_S3__SECRET_ACCESS_KEY": self.s3.secret_access_key,
            "UNLATENT_SQS__ACCESS_KEY_ID": self.s3.access_key_id,
            "UNLATENT_SQS__SECRET_ACCESS_KEY": self.s3.secret_access_key,
        }

    def database_url(self, database: str = DATABASE) -> str:
        """Return the service role's URL for a database of this stack."""
        return self._url(APP, database)

    def owner_url(self, database: str = DATABASE) -> str:
        """Return the owner's URL, for migrations, for a database of this stack."""
        return self._url(OWNER, database)

    def moderator_url(self, database: str = DATABASE) -> str:
        """Return the URL of a moderator's login; what it may see, `moderators.allow` says."""
        return self._url(MODERATOR, database)

    def operator_url(self, database: str = DATABASE) -> str:
        """Return the URL of the operator, who says who moderates and which policy rules."""
        return self._url(OPERATOR, database)

    def pointed_here(
        self, settings: Settings, *, buckets: Sequence[str], evidence: str | None
    ) -> Settings:
        """Return the settings with this stack's addresses and buckets instead of theirs.

        `evidence` names one of the buckets, or None where no evidence is kept.
        """
        return settings.model_copy(
            update={
                "postgres": settings.postgres.model_copy(
                    update={
                        "url": SecretStr(self.database_url()),
                        "owner_url": SecretStr(self.owner_url()),
                    }
                ),
                "redis": settings.redis.model_copy(update={"url": SecretStr(self.redis.url)}),
                "s3": settings.s3.model_copy(
                    update={
                        "endpoint_url": self.s3.endpoint_url,
                        "region": self.s3.region,
                        "access_key_id": SecretStr(self.s3.access_key_id),
                        "secret_access_key": SecretStr(self.s3.secret_access_key),
                        "buckets": tuple(buckets),
                    }
                ),
                "moderation": settings.moderation.model_copy(update={"evidence_bucket": evidence}),
            }
        )

    def moderator_password(self) -> str:
        """Return the password of the moderator's login."""
        return self.identity.password(MODERATOR)

    def _url(self, role: str, database: str) -> str:
        password = self.identity.password(role)
        return self.postgres.url(user=role, password=password, database=database)
