"""Prometheus itself on our rules and queries; needs Debian's package `prometheus`."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.processes.worker_process import WorkerProcess
from tests.support.rendered_manifests import DEPLOY, alerts, find, rules
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.ledger.interface import Upload
from worker.ledger.postgres import PostgresLedger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from worker.settings import Settings

pytestmark = pytest.mark.deploy
UNIT_TESTS = [Path(__file__).with_name(name) for name in ("rules.yaml", "rules_of_weeks.yaml")]
OVERDUE_WORK = Path(__file__).with_name("overdue_work.sql")


def tool(name: str) -> str:
    """Find a program of Debian's package."""
    found = shutil.which(name)
    assert found is not None, f"{name} is missing: apt-get install prometheus"
    return found


@pytest.fixture
def rules_file(tmp_path: Path) -> Path:
    """The rules as Prometheus reads them."""
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump(rules()))
    return file


def test_rules_are_valid(rules_file: Path) -> None:
    """Prometheus takes every rule."""
    subprocess.run([tool("promtool"), "check", "rules", rules_file], check=True)


@pytest.mark.timeout(900)
def test_alerts_fire_when_they_must_and_only_then(rules_file: Path) -> None:
    """Promtool plays each fault and a healthy day."""
    tests = [shutil.copy(file, rules_file.parent) for file in UNIT_TESTS]
    done = subprocess.run(
        [tool("promtool"), "test", "rules", *tests], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_played() -> None:
    """No alert is left without a case in which it fires."""
    text = "".join(file.read_text() for file in UNIT_TESTS)
    played = set(re.findall(r'alertname="(Unlatent\w+)"\}\', value: 1', text))
    assert {alert["alert"] for alert in alerts()} == played


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Prometheus:
    """A running server and its answers."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the result of an instant query; raises when Prometheus refuses it."""
        address = f"{self._address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(address) as answer:  # noqa: S310 - our own server
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return result


@pytest.fixture
def prometheus(rules_file: Path, tmp_path: Path, ports: tuple[int, int]) -> Iterator[Prometheus]:
    """A Prometheus that scrapes one worker and one bridge every second, with our rules."""
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(rules_file)],
                "scrape_configs": [
                    {
                        "job_name": "unlatent",
                        "static_configs": [
                            {
                                "targets": [f"127.0.0.1:{port}"],
                                "labels": {"namespace": "unlatent", "pod": f"unlatent-{role}-0"},
                            }
                            for role, port in zip(("worker", "bridge"), ports, strict=True)
                        ],
                    }
                ],
            }
        )
    )
    port = free_port()
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={configuration}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    server = Prometheus(port)

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "prometheus.log").read_text()
        try:
            server.ask("1")
        except OSError:
            return False
        return True

    try:
        eventually(answers, what="Prometheus")
        yield server
    finally:
        process.terminate()
        process.wait(30)


def leave_work_overdue(engine: Engine) -> None:
    """Leave undone what people, webhooks, retention and training have to do; lose four workers."""
    ledger = PostgresLedger(engine)
    for key in "abcd":
        lost = ledger.register([Upload(bucket="b", key=key, etag="e")])[0].image_id
        ledger.lease(lost, worker="dead", duration=timedelta(seconds=-1))
    with engine.begin() as connection:
        # Several statements at once need the driver's simple protocol, without parameters.
        connection.connection.cursor().execute(OVERDUE_WORK.read_text())


@pytest.fixture
def ports() -> tuple[int, int]:
    """The ports of the worker's and the bridge's metrics."""
    return free_port(), free_port()


def boards() -> list[Path]:
    """Return the dashboards of what runs here, which `serve` does not."""
    files = sorted((DEPLOY / "components/monitoring/dashboards").glob("*.json"))
    return [file for file in files if file.stem != "serve"]


def triggers() -> list[dict[str, Any]]:
    """Return the triggers that scale what runs here."""
    return [
        trigger
        for scaled in find("production-gpu", "ScaledObject")
        if scaled["spec"]["scaleTargetRef"]["name"] != "unlatent-serve"
        for trigger in scaled["spec"]["triggers"]
    ]


@pytest.mark.timeout(900)
def test_panels_and_triggers_show_a_running_fleet(
    settings: Settings, engine: Engine, ports: tuple[int, int], prometheus: Prometheus
) -> None:
    """A real Prometheus scrapes a real worker and bridge: panels are answered, alerts are raised.

    An alert counts once it is active; how long it must last before it fires is promtool's to play.
    """

    def watched(port: int, folder: str) -> Settings:
        observability = settings.observability.model_copy(
            update={
                "metrics_port": port,
                "run_dir": settings.observability.run_dir.with_name(folder),
            }
        )
        return settings.model_copy(update={"observability": observability})

    site = Site(settings, engine)
    with (
        WorkerProcess(watched(ports[0], "worker")) as worker,
        WorkerProcess(watched(ports[1], "bridge"), module="worker", arguments=["bridge"]) as bridge,
    ):
        worker.wait_until_ready()
        for index in range(12):
            now = datetime.now(UTC)
            site.wait_for(site.upload(f"{index}.png", png(index), uploaded_at=now))
            if not index:
                # A rate is known only of what grew between two scrapes.
                eventually(
                    lambda: bool(prometheus.ask("unlatent_verdicts_total")),
                    timeout_s=120,
                    what="a scrape of the first verdict",
                )
        leave_work_overdue(engine)
        eventually(
            lambda: (
                bool(prometheus.ask("rate(unlatent_verdicts_total[5m]) > 0"))
                and bool(prometheus.ask("unlatent_backlog_images"))
            ),
            timeout_s=120,
            what="a scrape of both",
        )
        eventually(
            lambda: bool(prometheus.ask("unlatent_training_stages")),
            timeout_s=120,
            what="a reading of what was neglected",
        )
        unanswered = set()
        for file in boards():
            for panel in json.loads(file.read_text())["panels"]:
                answers = [prometheus.ask(target["expr"]) for target in panel["targets"]]
                if not any(answers):
                    unanswered.add(panel["title"])
        for trigger in triggers():
            assert len(prometheus.ask(trigger["metadata"]["query"])) == 1, trigger["name"]
        # Nothing failed, was retried or refused, there is no challenger, and every image was real,
        # of which no evidence is kept.
        assert unanswered <= {
            "Given back for another try",
            "Images without a verdict a second, by reason",
            "Share of images left unsure",
            "Share of images called generated",
            "Objectives: late checks and errors, one hour",
            "Checks for the challenger a second",
            "Evidence pictures a second",
            "How far beyond its time the oldest object is kept",
            "Changes of model in an hour",
            "Agreement of champion and challenger",
            "Time in shadow",
        }

        def active() -> set[str]:
            return {one["metric"]["alertname"] for one in prometheus.ask("ALERTS")}

        wanted = {
            "UnlatentBreakerOpen",
            "UnlatentDeaths",
            "UnlatentErasuresWait",
            "UnlatentNoBeat",
            "UnlatentReviewsWait",
            "UnlatentSourceDrift",
            "UnlatentTrainingStuck",
            "UnlatentWebhooksWait",
        }
        eventually(lambda: wanted <= active(), timeout_s=120, what="every alert that was caused")
        assert bridge.stop() == 0
        eventually(
            lambda: "UnlatentBacklogUnknown" in active(), timeout_s=120, what="a missing bridge"
        )
        assert worker.stop() == 0
