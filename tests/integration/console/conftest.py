"""Browsers without a window, over the real application, database and storage."""

from __future__ import annotations

import io
import time
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.integration.moderation.conftest import desk, scored, superuser
from worker.console.app import build_app
from worker.console.identity import DatabaseLogin
from worker.console.pictures import Pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from fastapi import FastAPI

    from tests.integration.moderation.conftest import Desk
    from worker.settings import Settings

__all__ = ["desk", "scored", "superuser"]

HOST = "console.example"
#: What a browser says of a request that a page of the console made.
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin", "Accept": "text/html"}


class Clock:
    """A clock that tests move on."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    """The clock of sessions."""
    return Clock()


@pytest.fixture
def pictures(settings: Settings) -> Iterator[Pictures]:
    """The pictures of this test's bucket."""
    with closing(Pictures.open(settings)) as opened:
        yield opened


@pytest.fixture
def console(settings: Settings, pictures: Pictures, clock: Clock) -> Iterator[FastAPI]:
    """The application, to which moderators sign in with their own logins."""
    with closing(DatabaseLogin(settings.postgres, idle_s=1800, clock=clock)) as identity:
        yield build_app(identity, pictures)


class Browser(TestClient):
    """A browser at the console; redirects are not followed."""

    def __init__(self, console: FastAPI) -> None:
        super().__init__(
            console, base_url=f"https://{HOST}", headers=SAME_ORIGIN, follow_redirects=False
        )

    def sign_in(self, moderator: Desk) -> Browser:
        """Sign in as somebody."""
        password = moderator.connection.info.password
        answer = self.post("/login", data={"name": moderator.name, "password": password})
        assert answer.status_code == 303, answer.text
        return self


@pytest.fixture
def browser(console: FastAPI) -> Callable[..., Browser]:
    """Make browsers: `browser(desk())` is signed in, `browser()` is not."""

    def make(moderator: Desk | None = None) -> Browser:
        made = Browser(console)
        return made if moderator is None else made.sign_in(moderator)

    return make


@pytest.fixture
def stored(
    scored: Callable[..., UUID], s3_client: Any, settings: Settings
) -> Callable[..., tuple[UUID, bytes]]:
    """Store a picture whose file says things beside its pixels; return its image and its bytes."""

    def store(**values: Any) -> tuple[UUID, bytes]:
        picture = Image.effect_noise((200, 120), 80).convert("RGB")
        exif = picture.getexif()
        exif[0x010F] = "SECRETMAKER"
        file = io.BytesIO()
        picture.save(file, "JPEG", exif=exif, comment=b"SECRETCOMMENT")
        key = f"{uuid4().hex}.jpg"
        put = s3_client.put_object(Bucket=settings.s3.buckets[0], Key=key, Body=file.getvalue())
        image = scored(key=key, etag=put["ETag"].strip('"'), **values)
        return image, file.getvalue()

    return store
