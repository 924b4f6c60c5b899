"""A PgBouncer before the test's Postgres, in session or in transaction mode, as a strict one is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sqlalchemy import make_url

from tests.support.system_packages import program
from worker.localstack.processes import LOOPBACK, Server, accepts

if TYPE_CHECKING:
    from pathlib import Path

    from worker.localstack import LocalStack

CONFIGURATION = """
[databases]
* = host={host} port={postgres_port} auth_user=postgres

[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
pool_mode = {mode}
auth_type = scram-sha-256
auth_file = {folder}/users.txt
auth_query = SELECT usename, passwd FROM pg_shadow WHERE usename = $1
default_pool_size = {pool_size}
max_client_conn = 1000
; One transaction after another meets another connection: what is left behind on one shows.
server_round_robin = 1
; Who waits for a server that is away hears so before the test gives up.
server_login_retry = 1
query_wait_timeout = 10
server_connect_timeout = 3
"""


class PgBouncer(Server):
    """One pooler over every database and login of a stack; it keeps no logins of its own."""

    name: ClassVar[str] = "pgbouncer"

    def __init__(self, stack: LocalStack, mode: str, *, pool_size: int = 30) -> None:
        super().__init__(stack.folder)
        self.account = stack.postgres.account  # like Postgres it refuses to run as root
        self._postgres = stack.postgres
        self._mode = mode
        self._pool_size = pool_size

    def prepare(self) -> None:
        """Write the configuration, and the password of the superuser who looks up all others."""
        settings = CONFIGURATION.format(
            host=LOOPBACK,
            port=self.port,
            postgres_port=self._postgres.port,
            mode=self._mode,
            pool_size=self._pool_size,
            folder=self.working_directory(),
        )
        users = f'"postgres" "{self._postgres.password}"\n'
        for name, content in (("pgbouncer.ini", settings), ("users.txt", users)):
            path = self.working_directory() / name
            path.touch(mode=0o600)
            path.write_text(content)
            self._postgres._give(path)

    def working_directory(self) -> Path:
        """Return the directory that the server's account can enter."""
        return self._postgres.home

    def command(self) -> list[str]:
        """Return the server's arguments."""
        return [program("pgbouncer"), "--quiet", str(self.working_directory() / "pgbouncer.ini")]

    def ready(self) -> bool:
        """Whether the server accepts connections."""
        return accepts(self.port)

    def before(self, url: str) -> str:
        """Return the URL of a database with the pooler's address in it."""
        return make_url(url).set(port=self.port).render_as_string(hide_password=False)
