"""`unlatent up --all` as a person uses it: what it starts, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.waiting import eventually
from worker.demo.photographs import PHOTOGRAPHS
from worker.localstack import LocalStack
from worker.localstack.processes import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[LocalStack]:
    """The stack of a folder in which nothing runs yet; it is gone after the test."""
    stack = LocalStack(tmp_path / "stack")
    yield stack
    LocalStack(stack.folder).stop()
    if stack.exists:
        stack.delete()


@pytest.fixture(autouse=True)
def _quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Score with a bundle that loads at once."""
    bundle = build_tiny_bundle(tmp_path / "bundle")
    monkeypatch.setenv("UNLATENT_SCORING__BUNDLE", str(bundle.folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def unlatent(stack: LocalStack) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `unlatent --stack <folder of this test>`."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "worker", "--stack", str(stack.folder), *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=REPOSITORY,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _told_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    told = ""
    for line in process.stdout:
        told += line
        if words in line:
            return told
    pytest.fail(told + process.communicate()[1])


def _signs_in(told: str) -> bool:
    found = re.search(r"http://(\S+?):(\d+)/\s+sign in as (\S+), password (\S+)", told)
    assert found is not None, told
    host, port, name, password = found.groups()
    with closing(HTTPConnection(host, int(port), timeout=30)) as asking:
        asking.request(
            "POST",
            "/login",
            urlencode({"name": name, "password": password}),
            {
                "Sec-Fetch-Site": "same-origin",
                "Content-Type": "application/x-www-form-urlencoded",
            },
        )
        return asking.getresponse().status == 303


def _checks(told: str) -> bool:
    found = re.search(r"answers POST http://(\S+?):(\d+)(/\S+)", told)
    assert found is not None, told
    host, port, path = found.groups()
    with closing(HTTPConnection(host, int(port), timeout=60)) as asking:
        asking.request("POST", path, PHOTOGRAPHS[0].path.read_bytes())
        answer = json.loads(asking.getresponse().read())
    return answer["label"] in {"real", "unsure", "generated"}


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["Ctrl-C", "down", "a death"])
def test_everything_runs_until_it_is_ended(
    how: str, stack: LocalStack, unlatent: Callable[..., subprocess.Popen[str]]
) -> None:
    """The console takes the login that is printed; whatever ends one part ends all of them."""
    up = unlatent("up", "--all")
    told = _told_until(up, "serve     answers POST")
    if "takes uploads" not in told:
        told += _told_until(up, "takes uploads")
    assert _signs_in(told)
    assert _checks(told)
    found = {pidfile.stem: Process.read(pidfile) for pidfile in stack.folder.glob("*.pid")}
    running = {name for name, process in found.items() if process is not None}
    assert running == {"postgres", "redis", "s3", "worker", "bridge", "beat", "serve", "console"}

    if how == "Ctrl-C":
        up.send_signal(signal.SIGINT)
    elif how == "down":
        assert unlatent("down").wait() == 0
    else:
        with stack.bridge.log.open("a") as log:
            log.write("the last of its words\n")
        bridge = found["bridge"]
        assert bridge is not None
        bridge.kill()
    out, error = up.communicate()
    code = {"Ctrl-C": 128 + signal.SIGINT, "down": 0, "a death": 1}[how]
    assert (up.returncode, out.splitlines()[-1:] or [""]) == (
        code,
        [""] if how == "a death" else ["stopped"],
    ), error
    if how == "a death":
        assert "the last of its words\n" in error
        log = re.escape(str(stack.bridge.log))
        assert re.search(rf"unlatent: bridge ended by itself .*its log is {log}", error)
    else:
        assert error == ""
    for process in found.values():
        assert process is not None
        eventually(lambda process=process: not process.running, what="the end of all processes")
    assert not list(stack.folder.glob("*.pid"))
