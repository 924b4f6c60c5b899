"""Who asks: the one seam between a request and the login that the database knows.

`DatabaseLogin` signs people in with their own database logins; `ProxyHeader` believes a proxy that
signed them in. Either way the database decides what they may do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import exc, make_url

from detection.errors import SettingsError
from worker.console.desk import Refused, open_desk
from worker.console.sessions import Sessions
from worker.database.engine import LedgerUnavailable, connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlalchemy import Engine
    from starlette.requests import Request

    from worker.console.desk import Desk
    from worker.settings import Console, Postgres

APPLICATION = "unlatent-console"
#: The prefix binds the cookie to this host and to TLS, but for the loopback interface.
COOKIE = "__Host-unlatent"
#: So many wrong passwords for one name within `WINDOW_S`, and the next tries are not passed on.
TRIES, WINDOW_S = 5, 60.0
#: Names whose wrong passwords are remembered; beyond, the oldest is forgotten.
_NAMES = 10_000


@dataclass(frozen=True, slots=True)
class Moderator:
    """Somebody who is signed in."""

    name: str
    engine: Engine
    #: Who asks, where the database's login is the console's and not theirs.
    caller: str | None = None

    def desk(self) -> AbstractContextManager[Desk]:
        """Open a transaction as this person."""
        return open_desk(self.engine, caller=self.caller)


class Identity(Protocol):
    """How a request is traced to a person."""

    #: Whether people sign in here, with a name and a password.
    has_form: bool

    def moderator(self, request: Request) -> Moderator | None:
        """Return who asks, or None for nobody we know."""

    def sign_in(self, name: str, password: str) -> str:
        """Begin a session and return its id; raises `Refused`."""

    def sign_out(self, request: Request) -> None:
        """End the session of a request."""

    def close(self) -> None:
        """Let go of every connection."""


class DatabaseLogin:
    """Signs people in with their logins of the database at `postgres.url`.

    Their passwords stay in this process: whoever restarts the console asks people to sign in again.
    """

    has_form = True

    def __init__(
        self, postgres: Postgres, *, idle_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._url = make_url(postgres.url.get_secret_value())
        self._postgres = postgres
        self._sessions = Sessions(idle_s=idle_s, clock=clock)
        self._failures = _Failures(clock)

    def moderator(self, request: Request) -> Moderator | None:
        """Return whose session the cookie names."""
        session = self._sessions.find(request.cookies.get(COOKIE))
        return None if session is None else Moderator(session.moderator, session.engine)

    def sign_in(self, name: str, password: str) -> str:
        """Connect as the login, and begin a session for a moderator; raises `Refused`."""
        if self._failures.too_many(name):
            raise Refused(
                f"{TRIES} wrong passwords for this name: wait a minute, then try again.", status=429
            )
        url = self._url.set(username=name, password=password)
        engine = connect(
            url.render_as_string(hide_password=False),
            pool_size=1,
            statement_timeout_s=self._postgres.statement_timeout_s,
            lock_timeout_s=self._postgres.lock_timeout_s,
            prepare_threshold=self._postgres.prepare_threshold,
            application_name=APPLICATION,
        )
        try:
            with open_desk(engine) as desk:
                return self._sessions.begin(desk.me.name, engine)
        except LedgerUnavailable as error:
            engine.dispose()
            if not _asked_for_password(error):
                raise
            self._failures.add(name)
            raise Refused("The database knows no such name and password.", status=401) from error
        except Refused:
            engine.dispose()
            raise

    def sign_out(self, request: Request) -> None:
        """End the session that the cookie names."""
        self._sessions.end(request.cookies.get(COOKIE))

    def close(self) -> None:
        """End every session."""
        self._sessions.close()


class ProxyHeader:
    """Believes a proxy, at one of the configured addresses, about who asks.

    The database is asked as role unlatent_console, which may name the moderator it asks for.
    Raises `SettingsError` for an address that is none, and without the role's URL.
    """

    has_form = False

    def __init__(self, console: Console, postgres: Postgres) -> None:
        if console.url is None:
            raise SettingsError(
                "UNLATENT_CONSOLE__URL is not set: behind a proxy the console asks the database as "
                "unlatent_console"
            )
        try:
            self._proxies = [ip_network(one) for one in console.proxies]
        except ValueError as error:
            raise SettingsError(f"UNLATENT_CONSOLE__PROXIES: {error}") from error
        self._header = console.user_header
        self._engine = connect(
            console.url.get_secret_value(),
            pool_size=postgres.pool_size,
            statement_timeout_s=postgres.statement_timeout_s,
            lock_timeout_s=postgres.lock_timeout_s,
            prepare_threshold=postgres.prepare_threshold,
            application_name=APPLICATION,
        )

    def moderator(self, request: Request) -> Moderator | None:
        """Return whom the header names, where a proxy of ours sent it, once."""
        named = request.headers.getlist(self._header)
        if len(named) != 1 or not named[0].strip() or not self._is_ours(request):
            return None
        name = named[0].strip()
        return Moderator(name, self._engine, caller=name)

    def sign_in(self, name: str, password: str) -> str:
        """Refuse: the proxy signs people in."""
        del name, password
        raise Refused("Sign in at the proxy before this console.", status=404)

    def sign_out(self, request: Request) -> None:
        """Do nothing: the session is the proxy's."""

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()

    def _is_ours(self, request: Request) -> bool:
        if request.client is None:
            return False
        try:
            address = ip_address(request.client.host)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._proxies)


def build_identity(console: Console, postgres: Postgres) -> Identity:
    """Return the identity that the settings ask for: a proxy's word, or logins of the database."""
    if console.proxies:
        return ProxyHeader(console, postgres)
    return DatabaseLogin(postgres, idle_s=60 * console.idle_minutes)


class _Failures:
    """Wrong passwords of the last minute, by name."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._at: dict[str, deque[float]] = {}

    def add(self, name: str) -> None:
        with self._lock:
            self._at.setdefault(name, deque(maxlen=TRIES)).append(self._clock())
            if len(self._at) > _NAMES:
                del self._at[next(iter(self._at))]

    def too_many(self, name: str) -> bool:
        with self._lock:
            at = self._at.get(name)
            return at is not None and len(at) == TRIES and self._clock() - at[0] < WINDOW_S


def _asked_for_password(error: LedgerUnavailable) -> bool:
    """Say whether the server asked for the password and did not like it."""
    cause = error.__cause__
    connection = getattr(getattr(cause, "orig", None), "pgconn", None)
    return isinstance(cause, exc.DBAPIError) and bool(getattr(connection, "used_password", False))
