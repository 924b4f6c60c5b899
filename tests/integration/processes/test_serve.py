"""`unlatent serve` as a process: the score of every other door, and an orderly end."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
import urllib3

from detection.detector import Detector
from detection.intake.decode import decode
from tests.support.serving.http_service import in_thread
from tests.support.serving.serve_process import ServeProcess
from tests.support.waiting import eventually
from worker.demo.photographs import PHOTOGRAPHS
from worker.scoring.file_scoring import intake_limits
from worker.settings import Intake, Settings

if TYPE_CHECKING:
    from pathlib import Path

#: What a service without Postgres, Redis or storage is started with.
BARE = {"scoring": {"device": "cpu"}}
TOLERANCE = 1e-4


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


def test_an_address_that_others_reach_needs_keys(bare: Settings) -> None:
    """Without keys the service does not start on another address than loopback."""
    with ServeProcess(bare, host="0.0.0.0", module="worker", arguments=["serve"]) as server:  # noqa: S104
        assert server.process.wait(60) == 1
        assert "UNLATENT_HTTP__KEYS" in server.log.read_text()
