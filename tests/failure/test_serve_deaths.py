"""The HTTP service is killed under load: whoever was told 202 has a row."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import urllib3
from sqlalchemy import select

from tests.support.serving.serve_process import ServeProcess
from worker.ledger.tables import Image

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from worker.settings import Settings

CLIENTS = 8
#: So many answers come before the service is killed.
ENOUGH = 60


@pytest.mark.failure
def test_what_was_accepted_outlives_the_service(settings: Settings, engine: Engine) -> None:
    """Eight clients send uploads until the service is killed: every 202 names a row."""
    bucket = settings.s3.buckets[0]
    accepted: list[str] = []
    enough = threading.Event()

    def send(client: int, url: str, http: urllib3.PoolManager) -> None:
        for number in range(10_000):
            told = {"bucket": bucket, "key": f"{client}/{number}.jpg", "etag": "e"}
            try:
                answer = http.request("POST", f"{url}/v1/images", json=told)
            except urllib3.exceptions.HTTPError:
                return
            assert answer.status == 202, answer.data
            accepted.append(json.loads(answer.data)["id"])
            if len(accepted) >= ENOUGH:
                enough.set()

    with (
        ServeProcess(settings, ledger=True) as server,
        urllib3.PoolManager(maxsize=CLIENTS, retries=False) as http,
        ThreadPoolExecutor(CLIENTS) as threads,
    ):
        server.wait_until_ready()
        clients = [threads.submit(send, client, server.url, http) for client in range(CLIENTS)]
        assert enough.wait(120)
        server.process.kill()
        for client in clients:
            client.result(120)
    with engine.begin() as connection:
        rows = set(connection.execute(select(Image.id)).scalars())
    assert len(set(accepted)) == len(accepted) >= ENOUGH
    assert {UUID(one) for one in accepted} <= rows
