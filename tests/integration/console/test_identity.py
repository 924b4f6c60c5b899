"""Who is believed to be who."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from tests.integration.console.conftest import HOST, SAME_ORIGIN
from worker.console.app import build_app
from worker.console.identity import COOKIE, ProxyHeader
from worker.settings import Console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from fastapi import FastAPI

    from tests.integration.console.conftest import Browser
    from tests.integration.moderation.conftest import Desk
    from worker.console.pictures import Pictures
    from worker.localstack import LocalStack
    from worker.settings import Settings


@pytest.fixture
def behind_proxy(
    stack: LocalStack,
    database: str,
    superuser: psycopg.Connection,
    settings: Settings,
    pictures: Pictures,
) -> Iterator[FastAPI]:
    """The application behind a proxy at 10.1.2.0/24."""
    password = uuid4().hex
    superuser.execute(
        psycopg.sql.SQL("ALTER ROLE unlatent_console LOGIN PASSWORD {}").format(
            psycopg.sql.Literal(password)
        )
    )
    url = stack.postgres.url(user="unlatent_console", password=password, database=database)
    console = Console(url=SecretStr(url), proxies=("10.1.2.0/24",))
    with closing(ProxyHeader(console, settings.postgres)) as identity:
        yield build_app(identity, pictures)


def _ask(app: FastAPI, address: str, headers: list[tuple[str, str]]) -> TestClient:
    client = TestClient(
        app, base_url=f"https://{HOST}", client=(address, 4711), follow_redirects=False
    )
    client.headers = [*SAME_ORIGIN.items(), *headers]
    return client


def test_a_proxy_names_the_moderator_and_the_audit_says_so(
    behind_proxy: FastAPI, desk: Callable[..., Desk], scored: Callable[..., UUID]
) -> None:
    """Rights and decisions are the named person's, who sees their own sources only."""
    image, hidden = scored(), scored(source="forum")
    kim, lead = desk("web"), desk(lead=True)
    asking = _ask(behind_proxy, "10.1.2.3", [("X-Forwarded-User", kim.name)])
    assert kim.name in asking.get("/").text
    assert asking.get(f"/images/{hidden}").status_code == 404
    asking.post(f"/images/{image}/decision", data={"choice": "real real_original"})
    assert lead.rows("SELECT moderator FROM moderation.decisions") == [(kim.name,)]
    assert lead.rows(
        "SELECT actor, detail ->> 'via' FROM moderation.audit_trail WHERE action = 'decide'"
    ) == [(kim.name, "unlatent_console")]


@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("10.1.3.3", ["X-Forwarded-User"]),
        ("testclient", ["X-Forwarded-User"]),
        ("10.1.2.3", []),
        ("10.1.2.3", ["X-Forwarded-User", "X-Forwarded-User"]),
        ("10.1.2.3", ["X-Forwarded-Email"]),
    ],
)
def test_nobody_else_is_believed(
    address: str, headers: list[str], behind_proxy: FastAPI, desk: Callable[..., Desk]
) -> None:
    """Another address, no header, two of them, or another one: the request is nobody's."""
    name = desk(lead=True).name
    asking = _ask(behind_proxy, address, [(header, name) for header in headers])
    assert asking.get("/").status_code == 401
    assert asking.post("/login", data={"name": name, "password": "x"}).status_code == 404


def test_somebody_whom_the_proxy_knows_and_the_database_does_not_sees_nothing(
    behind_proxy: FastAPI,
) -> None:
    """A name without a row is told that an operator has to let it in."""
    answer = _ask(behind_proxy, "10.1.2.3", [("X-Forwarded-User", "nobody")]).get("/")
    assert answer.status_code == 403
    assert "unlatent moderators allow" in answer.text


def test_a_session_is_a_cookie_that_scripts_and_other_sites_do_not_get(
    desk: Callable[..., Desk], browser: Callable[..., Browser]
) -> None:
    """It is bound to host and TLS, ends with the session, and is new with each login."""
    kim = desk()
    asking = browser()
    data = {"name": kim.name, "password": kim.connection.info.password}
    said = [asking.post("/login", data=data).headers["set-cookie"] for _ in range(2)]
    assert said[0] != said[1]
    assert said[0].startswith(f"{COOKIE}=")
    for part in ("HttpOnly", "Secure", "SameSite=strict", "Path=/"):
        assert part in said[0]
    assert "Max-Age" not in said[0]
    session = asking.cookies[COOKIE]
    asking.post("/logout")
    asking.cookies.set(COOKIE, session)
    assert asking.get("/").status_code == 303


def test_wrong_passwords_are_refused_and_then_not_tried(
    desk: Callable[..., Desk], browser: Callable[..., Browser]
) -> None:
    """After five the right one waits, too, and only for that name; the service's login is none."""
    kim, lee = desk(), desk()
    asking = browser()
    for _ in range(5):
        answer = asking.post("/login", data={"name": kim.name, "password": "wrong"})
        assert answer.status_code == 401
        assert "knows no such name and password" in answer.text
    data = {"name": kim.name, "password": kim.connection.info.password}
    assert asking.post("/login", data=data).status_code == 429
    asking.sign_in(lee)


def test_a_login_that_is_no_moderators_is_let_in_nowhere(
    browser: Callable[..., Browser], settings: Settings
) -> None:
    """The service's own login sees no page."""
    url = psycopg.conninfo.conninfo_to_dict(
        settings.postgres.url.get_secret_value().replace("+psycopg", "")
    )
    data = {"name": str(url["user"]), "password": str(url["password"])}
    answer = browser().post("/login", data=data)
    assert answer.status_code == 403


@pytest.mark.parametrize("next_page", ["https://evil.example", "//evil.example", "/\\evil.example"])
def test_the_login_leads_nowhere_else(
    next_page: str, desk: Callable[..., Desk], browser: Callable[..., Browser]
) -> None:
    """Where to go on is a path of the console."""
    kim = desk()
    data = {"name": kim.name, "password": kim.connection.info.password, "next": next_page}
    assert browser().post("/login", data=data).headers["location"] == "/"
