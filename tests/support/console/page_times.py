"""The time in which the console's server has a page ready, over a database that is filled."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from starlette.testclient import TestClient

from worker.console.app import build_app
from worker.console.identity import DatabaseLogin
from worker.console.pictures import Pictures
from worker.decoding.pool import DecodePool
from worker.settings import Settings
from worker.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.localstack import LocalStack

PAGES = {
    "page: review": "/",
    "page: image, second opinion": "/images/{image}/opinion",
    "page: queue": "/queue",
    "page: queue, one cell": "/queue?queue=unsure&source=source-1",
    "page: queue, one label": "/queue?label=generated",
    "page: queue, unclaimed only": "/queue?free=yes",
    "page: image": "/images/{image}",
    "page: appeals": "/appeals",
    "page: lead, seven days": "/lead",
    "page: quality, 30 days": "/lead/quality",
}


def page_times(
    stack: LocalStack,
    *,
    name: str,
    password: str,
    lead: bool,
    image: str,
    measure: Callable[[Callable[[], object]], tuple[float, float]],
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield each page with what `measure` says of asking for it, but for those that are refused.

    Raises `httpx.HTTPStatusError` for a page that fails in any other way.
    """
    settings = Settings.model_validate({"postgres": {"url": stack.addresses.database_url()}})
    pool = DecodePool(settings.intake)
    with (
        closing(DatabaseLogin(settings.postgres, idle_s=3600)) as identity,
        closing(
            Pictures(MemoryStorage(["uploads"]), pool, max_bytes=settings.intake.max_bytes)
        ) as pictures,
        TestClient(
            build_app(identity, pictures),
            base_url="https://console.example",
            headers={"Sec-Fetch-Site": "same-origin"},
        ) as browser,
    ):
        browser.post("/login", data={"name": name, "password": password})
        yield "page: review, nothing claimed", measure(lambda: browser.get("/"))
        browser.post("/claim")
        pages = {page: path for page, path in PAGES.items() if lead or "/lead" not in path}
        for page, path in pages.items():
            address = path.format(image=image)
            answer = browser.get(address)
            if answer.status_code == 403:  # what one may not see takes no time
                continue
            answer.raise_for_status()
            yield page, measure(lambda address=address: browser.get(address))
