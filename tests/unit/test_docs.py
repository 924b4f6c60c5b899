"""What the documents tell people to type exists."""

from __future__ import annotations

import functools
import json
import re
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import typer.main

from tests.support.rendered_manifests import DEPLOY, OVERLAYS, REPOSITORY, pods
from worker.cli import build_app
from worker.ingest.events import OWN_EVENT_FIELDS, EventError, parse
from worker.ledger.interface import Upload
from worker.settings import Settings, in_force

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_IN_BLOCK = re.compile(r"^(?:.*-- |.*\$ )?\s*(unlatent [a-z][^\n|#]*)", re.MULTILINE)
_IN_LINE = re.compile(r"`(unlatent [a-z][^`]*)`")


def typed() -> Iterator[tuple[str, str]]:
    """Return every command line of ours with the page that has it."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        found = [line for block in _BLOCK.findall(text) for line in _IN_BLOCK.findall(block)]
        found += _IN_LINE.findall(_BLOCK.sub("", text))
        for line in dict.fromkeys(found):
            yield page.name, " ".join(line.split())


@functools.cache
def application() -> click.Command:
    """The command line, built once: it is asked for every line."""
    return typer.main.get_command(build_app())


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """Walk down the groups of commands; return the command and the words after it."""
    command = application()
    while words and words[0] in (below := getattr(command, "commands", {})):
        command, words = below[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize(
    ("page", "line"), [pytest.param(*one, id=f"{one[0]}: {one[1]}") for one in typed()]
)
def test_commands_and_their_options_exist(page: str, line: str) -> None:
    """The command is known, and so is each of its options."""
    first, *words = shlex.split(line.replace("…", ""))
    assert first == "unlatent"
    command, left = resolve(words)
    assert len(left) < len(words), f"{page}: {line}"
    known = {option for parameter in command.params for option in parameter.opts}
    known |= {option for parameter in command.params for option in parameter.secondary_opts}
    for word in left:
        if word.startswith("--"):
            assert word.partition("=")[0] in known | {"--help"}, f"{page}: {line}"


def test_settings_exist() -> None:
    """Every setting that a page names is one; `…` and a final `__` stand for several."""
    known = in_force(Settings.model_construct()).keys()
    for page in PAGES:
        for name in re.findall(r"UNLATENT_[A-Z0-9_]+", page.read_text()):
            assert any(one.startswith(name) if name.endswith("_") else one == name for one in known)


def test_secrets_exist() -> None:
    """The page makes the secrets that the manifests read, with their keys and no others."""
    page = (REPOSITORY / "docs" / "deploy.md").read_text().replace("\\\n", " ")
    made = {
        (name, key)
        for name, rest in re.findall(r"create secret generic (\S+)(.*)", page)
        for key in re.findall(r"--from-literal=(\w+)=", rest)
    }
    read = {
        (reference["name"], reference["key"])
        for overlay in OVERLAYS
        for pod in pods(overlay)
        for entry in pod.container.get("env", ())
        for reference in [entry["valueFrom"]["secretKeyRef"]]
    }
    # Only while one changes, and only where there are several endpoints.
    assert made == read - {("unlatent-webhooks", key) for key in ("previous_secret", "secrets")}


def test_files_exist() -> None:
    """Every path below deploy/ that the deployment page names is there; a Deployment is no path."""
    for path in re.findall(
        r"(?<![\w/])deploy/(?!unlatent-)[\w./-]+", (REPOSITORY / "docs" / "deploy.md").read_text()
    ):
        assert (DEPLOY.parent / path.rstrip(".")).exists(), path


def test_the_architecture_names_files_that_exist_and_every_room() -> None:
    """Every path on the page is there, and every folder of the three packages is in the picture."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:detection|training|worker|tests|deploy|migrations)/[\w./-]*)`", page)
    assert named
    assert [path for path in named if not (REPOSITORY / path).exists()] == []
    picture = page.partition("```")[2].partition("```")[0]
    for package in ("detection", "training", "worker"):
        part = picture[picture.index(f"{package}/ ") :]
        rooms = {
            folder.name
            for folder in (REPOSITORY / package).iterdir()
            if (folder / "__init__.py").is_file()
        }
        assert {room for room in rooms if f" {room}/" not in part} == set()


def own_event_rows() -> dict[str, tuple[str, str]]:
    """Return bounds and example of every field of our own event, from the table of the page."""
    page = (REPOSITORY / "docs" / "events.md").read_text()
    table = page.partition("## Our own event")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| `")
    ]
    return {name.strip("`"): (bounds, example.strip("`")) for name, _, bounds, _, example in rows}


def own_event(**changes: object) -> Upload:
    """Parse the event that the examples of the table make, with some fields changed."""
    values = {name: json.loads(example) for name, (_, example) in own_event_rows().items()}
    (event,) = parse(json.dumps(values | changes).encode(), buckets=["uploads"])
    assert isinstance(event, Upload)
    return event


def test_every_field_of_our_own_event_is_documented() -> None:
    """The table has the fields that are read, and its examples make an event with all of them."""
    assert own_event_rows().keys() == OWN_EVENT_FIELDS
    event = own_event()
    for name in OWN_EVENT_FIELDS - {"v", "id", "uploaded_at"}:
        assert getattr(event, name) == json.loads(own_event_rows()[name][1]), name
    assert event.uploaded_at == datetime(2026, 1, 31, 11, tzinfo=UTC)


@pytest.mark.parametrize("name", sorted(OWN_EVENT_FIELDS))
def test_the_documented_bounds_of_our_own_event_hold(name: str) -> None:
    """The longest value that the table allows is read, a longer one is refused."""
    bounds = own_event_rows()[name][0]
    longest = re.search(r"(\d+) (bytes|hexadecimal digits)", bounds)
    if longest:
        limit = int(longest[1])
        assert own_event(**{name: "a" * limit}) if name != "bucket" else own_event()
        with pytest.raises(EventError):
            own_event(**{name: "a" * (limit + 1)})
    if bounds.startswith("required"):
        with pytest.raises(EventError):
            own_event(**{name: None})
    if name == "size":
        low, high = (int(number) for number in bounds.split(" to "))
        assert [own_event(size=size).size for size in (low, high)] == [low, high]
        for size in (low - 1, high + 1):
            with pytest.raises(EventError):
                own_event(size=size)


def test_every_reason_to_ignore_is_documented() -> None:
    """The table of reasons has those that the code gives, and no others."""
    page = (REPOSITORY / "docs" / "events.md").read_text()
    table = page.partition("## What is ignored")[2].partition("\n### ")[0]
    documented = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    sources = (
        "".join(path.read_text() for path in (REPOSITORY / "worker" / "ingest").rglob("*.py"))
        + (REPOSITORY / "detection" / "intake" / "declared_type.py").read_text()
    )
    given = set(re.findall(r'Ignored\(reason="(\w+)"', sources)) | {"content_type", "extension"}
    assert documented == given


def test_no_room_is_crowded() -> None:
    """A folder holds at most 15 modules of its own, so that a newcomer can read the list."""
    folders = {
        path.parent
        for package in ("client", "detection", "training", "worker", "migrations", "tests")
        for path in (REPOSITORY / package).rglob("*.py")
    }
    counts = {
        folder.relative_to(REPOSITORY).as_posix(): len(
            [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        )
        for folder in folders
    }
    assert {name: count for name, count in counts.items() if count > 15} == {}
