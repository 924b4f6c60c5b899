"""The three ways to a verdict in README.md work as they stand there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.waiting import eventually
from worker.demo.photographs import PHOTOGRAPHS
from worker.localstack import LocalStack
from worker.localstack.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Start = Callable[[str], "Terminal"]

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)
LABELS = {"real", "unsure", "generated"}


def ways() -> dict[str, list[str]]:
    """Return the command lines of README.md by the way that they show."""
    section = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = section.partition("\n## Three ways to a verdict\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\*\*(.+?)\*\*.*?\n```\n(.*?)```", section, re.MULTILINE | re.DOTALL)
    return {name: block.splitlines() for name, block in found}


@pytest.fixture(autouse=True)
def _newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a picture, programs where README.md has them, and a bundle that loads fast."""
    for name in [name for name in os.environ if name.startswith("UNLATENT_")]:
        monkeypatch.delenv(name)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "unlatent").symlink_to(Path(sys.executable).with_name("unlatent"))
    shutil.copy(PHOTOGRAPHS[0].path, tmp_path / "photo.jpg")
    bundle = build_tiny_bundle(tmp_path / "bundle")
    monkeypatch.setenv("UNLATENT_SCORING__BUNDLE", str(bundle.folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


class Terminal:
    """A line of a document that runs by itself, and what it has printed so far."""

    def __init__(self, line: str, log: Path) -> None:
        self._log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(["bash", "-c", f"exec {line}"], stdout=out, stderr=out)

    @property
    def printed(self) -> str:
        """What it has printed."""
        return self._log.read_text()

    def wait_for(self, *words: str) -> str:
        """Return what it has printed once all these words are in it."""
        eventually(
            lambda: self.process.poll() is not None or all(word in self.printed for word in words),
            what=" and ".join(words),
        )
        assert all(word in self.printed for word in words), self.printed
        return self.printed

    def wait(self) -> int:
        """Return the exit code."""
        eventually(lambda: self.process.poll() is not None, what="the end of the line")
        return self.process.returncode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a line in a terminal of its own; it gets Ctrl-C at the end."""
    started: list[Terminal] = []

    def run(line: str) -> Terminal:
        started.append(Terminal(line, tmp_path / f"terminal-{len(started)}"))
        return started[-1]

    yield run
    for terminal in started:
        terminal.process.send_signal(signal.SIGINT)
        try:
            terminal.wait()
        finally:
            terminal.process.kill()
    stack = LocalStack(tmp_path / "var" / "stack")
    if stack.exists:
        stack.stop()


def told(line: str) -> str:
    """Run a line that must succeed and return what it prints."""
    with subprocess.Popen(
        ["bash", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as done:
        try:
            eventually(lambda: done.poll() is not None, what=f"the end of {line}")
        finally:
            done.kill()
        out, error = done.communicate()
    assert done.returncode == 0, error
    return out


def test_a_file(tmp_path: Path) -> None:
    """`check` prints a label for people, then a record and a picture of what decided."""
    table, record = map(told, ways()["A file"])
    assert table.splitlines()[1].split()[0] in LABELS
    assert json.loads(record)["label"] in LABELS
    assert list((tmp_path / "evidence").iterdir())


def test_a_post(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` answers curl with a label."""
    serve, curl = ways()["A POST"]
    assert "http://127.0.0.1:8700" in serve
    # Another program of this machine may have that port.
    port = str(free_port())
    monkeypatch.setenv("UNLATENT_HTTP__PORT", port)
    # curl gives up after a minute, which a busy machine may need to load the model.
    start(serve).wait_for("serve_ready")
    assert json.loads(told(curl.replace("8700", port)))["label"] in LABELS


def test_a_bucket(start: Start) -> None:
    """A file that is submitted gets a verdict that the status and the moderator see."""
    up, submit, status, verdicts = ways()["A bucket"]
    seen = start(up).wait_for("takes uploads", "answers POST")
    console = re.search(r"http://(\S+?):(\d+)/\s+sign in as \S+, password \S+", seen)
    assert console is not None, seen
    image_id = told(submit).strip()
    eventually(lambda: "last verdict" in told(status), what="a verdict")
    assert "0 announced, 0 waiting, 0 refused" in told(status)
    assert image_id in told(verdicts)
    asking = HTTPConnection(console[1], int(console[2]), timeout=30)
    asking.request("GET", "/login")
    assert asking.getresponse().status == 200
    asking.close()
