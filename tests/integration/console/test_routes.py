"""Every route, asked by everybody who might ask it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.integration.console.conftest import HOST, SAME_ORIGIN
from worker.console.pages.images import ASKED
from worker.console.protection import HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from fastapi import FastAPI

    from tests.integration.console.conftest import Browser, Clock
    from tests.integration.moderation.conftest import Desk

CHOICE = {"choice": "generated generated_artefacts"}
WHY = {"note": "why"}
DECIDE = "SELECT moderation.decide(%s, 'real', 'real_original')"
APPEAL = "SELECT moderation.open_appeal(%s)"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One route: its fields, what the asker does before, and what each asker gets.

    `other` may see another source only. Whoever is not signed in gets 303 (to the login) from a
    page and 401 from a form; a form that another site sends gets 403.
    """

    moderator: int
    lead: int
    other: int
    fields: dict[str, str] = field(default_factory=dict)
    before: str = ""


def page(*, moderator: int = 200, lead: int = 200, other: int = 200) -> Case:
    """A page."""
    return Case(moderator=moderator, lead=lead, other=other)


def form(
    moderator: int = 303,
    lead: int = 303,
    other: int = 404,
    before: str = "",
    **fields: str,
) -> Case:
    """A form about an image."""
    return Case(moderator=moderator, lead=lead, other=other, fields=fields, before=before)


CASES = {
    "GET /": page(),
    "GET /queue": page(),
    "GET /appeals": page(),
    "GET /settings": page(),
    "GET /lead": page(moderator=403, other=403),
    "GET /lead/quality": page(moderator=403, other=403),
    "GET /lead/decisions.csv": page(moderator=403, other=403),
    "GET /lead/audit.csv": page(moderator=403, other=403),
    "GET /images/{image}": page(other=404),
    "GET /images/{image}/change": page(other=404),
    "GET /images/{image}/opinion": page(other=404),
    "GET /images/{image}/preview": page(other=404),
    "GET /images/{image}/map": page(moderator=404, lead=404, other=404),
    "POST /claim": form(other=303),
    "POST /settings": form(other=303, theme="dark"),
    "POST /logout": form(other=303),
    "POST /images/{image}/decision": form(**CHOICE),
    "POST /images/{image}/skip": form(),
    "POST /images/{image}/opinion": form(**CHOICE),
    "POST /images/{image}/change": form(**CHOICE, before=DECIDE),
    "POST /images/{image}/claim": form(),
    "POST /images/{image}/extend": form(409, 409),  # nobody holds it
    "POST /images/{image}/release": form(),
    "POST /images/{image}/appeal": form(**WHY),
    "POST /images/{image}/review": form(**WHY),
    "POST /images/{image}/report": form(**WHY),
    "POST /images/{image}/hold": form(403, 303, **WHY),
    "POST /images/{image}/lift": form(403, 303, **WHY),
    "POST /images/{image}/erasure": form(403, 303, **WHY),
    "POST /appeals/{appeal}": form(before=APPEAL, choice="upheld", other=404),
}
#: Routes for whoever is not signed in.
OPEN = {"GET /login", "POST /login"}


def test_every_route_is_in_the_table(console: FastAPI) -> None:
    """A new route has to say who may ask it."""
    known = {
        f"{method.upper()} {path}"
        for path, methods in console.openapi()["paths"].items()
        for method in methods
    }
    known |= {f"POST /images/{{image}}/{name}" for name in ASKED}
    known.discard("POST /images/{image}/{asked}")
    assert known == set(CASES) | OPEN


@pytest.mark.parametrize("role", ["moderator", "lead", "other"])
def test_somebody_signed_in_gets_what_sql_gives_them(
    role: str,
    desk: Callable[..., Desk],
    browser: Callable[..., Browser],
    stored: Callable[..., tuple[UUID, bytes]],
) -> None:
    """A moderator of the source, a lead, and a moderator of another source only."""
    owner = desk("web", lead=True)
    one = {
        "moderator": lambda: desk("web"),
        "lead": lambda: desk("web", lead=True),
        "other": lambda: desk("forum"),
    }[role]()
    found = {}
    asking = browser(one)
    for name, case in CASES.items():
        image, _ = stored()
        if case.before and not (role == "other" and case.before != APPEAL):
            asker = owner if case.before == APPEAL else one
            asker.rows(case.before, image)
        appeal = owner.value("SELECT appeal_id FROM moderation.appeals WHERE image_id = %s", image)
        method, _, path = name.partition(" ")
        path = path.replace("{image}", str(image)).replace("{appeal}", str(appeal))
        answer = asking.request(method, path, data=case.fields or None)
        if path == "/logout":
            asking.sign_in(one)
        found[name] = answer.status_code
        for header, value in HEADERS.items():
            assert answer.headers[header] == value, (name, header)
        assert answer.headers["cache-control"] == "no-store", name
    assert found == {name: getattr(case, role) for name, case in CASES.items()}


@pytest.mark.parametrize("how", ["anonymous", "expired"])
def test_nobody_gets_nothing(
    how: str,
    desk: Callable[..., Desk],
    browser: Callable[..., Browser],
    clock: Clock,
    scored: Callable[..., UUID],
) -> None:
    """Without a session, or with one that idled for too long, a page leads to the login."""
    image = scored()
    asking = browser(desk() if how == "expired" else None)
    clock.ahead_s += 1801
    for name, case in CASES.items():
        method, _, path = name.partition(" ")
        path = path.replace("{image}", str(image)).replace("{appeal}", str(image))
        answer = asking.request(method, path, data=case.fields or None)
        assert answer.status_code == (303 if method == "GET" else 401), name
        if method == "GET":
            assert answer.headers["location"].startswith("/login?next="), name
    assert asking.get("/healthz").status_code == 200
    assert asking.get("/login").status_code == 200


@pytest.mark.parametrize(
    "said",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": f"https://{HOST}.evil.example"},
        {"Origin": "null"},
        {},
    ],
)
def test_a_form_of_another_site_does_nothing(
    said: dict[str, str],
    desk: Callable[..., Desk],
    browser: Callable[..., Browser],
    scored: Callable[..., UUID],
) -> None:
    """Whatever a browser says of where a form came from, unless it is here, the form is refused."""
    image, lead = scored(), desk(lead=True)
    asking = browser(lead)
    for header in SAME_ORIGIN:
        del asking.headers[header]
    asking.headers.update(said)
    for name, case in CASES.items():
        method, _, path = name.partition(" ")
        if method == "POST":
            path = path.replace("{image}", str(image)).replace("{appeal}", str(image))
            assert asking.post(path, data=case.fields).status_code == 403, name
    assert asking.post("/login", data={"name": "a", "password": "b"}).status_code == 403
    assert lead.value("SELECT count(*) FROM moderation.audit_trail") == 0


def test_a_form_of_this_origin_is_taken_by_browsers_without_fetch_metadata(
    desk: Callable[..., Desk], browser: Callable[..., Browser]
) -> None:
    """Origin alone is enough when it is the console's own."""
    asking = browser(desk())
    del asking.headers["Sec-Fetch-Site"]
    asking.headers["Origin"] = f"https://{HOST}"
    assert asking.post("/claim").status_code == 303


def test_a_large_body_is_refused(
    desk: Callable[..., Desk], browser: Callable[..., Browser]
) -> None:
    """No form here is so long."""
    assert browser(desk()).post("/claim", data={"queue": "x" * 70_000}).status_code == 413
