"""`unlatent serve` as a process: the score of every other door, an orderly end, and a kill."""

from __future__ import annotations

import json
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import urllib3
from sqlalchemy import select

from detection.detector import Detector
from detection.intake.decode import decode
from tests.support.serving.http_service import in_thread
from tests.support.serving.serve_process import ServeProcess
from tests.support.waiting import eventually
from worker.demo.photographs import PHOTOGRAPHS
from worker.ledger.tables import Image
from worker.scoring.file_scoring import intake_limits
from worker.settings import Intake, Settings

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

#: What a service without Postgres, Redis or storage is started with.
BARE = {"scoring": {"device": "cpu"}}
TOLERANCE = 1e-4
CLIENTS = 8
#: So many answers come before the service is killed.
ENOUGH = 60


@pytest.fixture
def bare(tmp_path: Path) -> Settings:
    """Settings that name no service."""
    return Settings.model_validate(BARE | {"observability": {"run_dir": tmp_path / "run"}})


def test_a_file_gets_the_score_of_every_other_door(bare: Settings) -> None:
    """Photographs sent all at once to the shipped bundle score as the detector alone scores them.

    Neither Postgres, Redis nor storage is there.
    """
    files = [photograph.path.read_bytes() for photograph in PHOTOGRAPHS[:6]]
    limits = intake_limits(Intake())
    detector = Detector.load("small")
    alone = [detector.score([decode(file, limits=limits).pixels])[0] for file in files]
    with (
        ServeProcess(bare, module="worker", arguments=["serve"]) as server,
        urllib3.PoolManager(num_pools=1, maxsize=len(files)) as http,
    ):
        server.wait_until_ready()
        asked = [
            in_thread(http.request, "POST", f"{server.url}/v1/check", body=file) for file in files
        ]
        answers = [json.loads(one.result(120).data) for one in asked]
    assert [one["label"] for one in answers] == [score.label for score in alone]
    assert [one["score"] for one in answers] == pytest.approx(
        [score.probability for score in alone], abs=TOLERANCE
    )
    assert {one["model_version"] for one in answers} == {detector.model_version}


def test_sigterm_answers_what_was_asked(bare: Settings) -> None:
    """A request that is under way when the service is told to stop still gets its answer."""
    file = PHOTOGRAPHS[0].path.read_bytes()
    with (
        ServeProcess(bare, arguments=["1.0"]) as server,
        urllib3.PoolManager(retries=False) as http,
    ):
        server.wait_until_ready()
        answer = in_thread(http.request, "POST", f"{server.url}/v1/check", body=file)

        def decoded() -> bool:
            metrics = http.request("GET", f"{server.url}/metrics").data.decode()
            return "unlatent_decode_seconds_count 1.0" in metrics

        eventually(decoded, timeout_s=60, what="an image on its way to the detector")
        server.process.send_signal(signal.SIGTERM)
        assert answer.result(60).status == 200
        server.process.wait(60)


def test_a_port_that_is_taken_is_named_at_once(bare: Settings) -> None:
    """It ends with one line that says which setting to change, before any model is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with ServeProcess(bare, port=port, module="worker", arguments=["serve"]) as server:
            assert server.process.wait(60) == 1
            *_, last = server.log.read_text().splitlines()
    assert last.startswith(f"unlatent: 127.0.0.1:{port} cannot be listened on")
    assert "UNLATENT_HTTP__PORT" in last


def test_an_address_that_others_reach_needs_keys(bare: Settings) -> None:
    """Without keys the service does not start on another address than loopback."""
    with ServeProcess(bare, host="0.0.0.0", module="worker", arguments=["serve"]) as server:  # noqa: S104
        assert server.process.wait(60) == 1
        assert "UNLATENT_HTTP__KEYS" in server.log.read_text()


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
