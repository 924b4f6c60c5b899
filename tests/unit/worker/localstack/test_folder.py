"""Only a folder with our marker is a stack's, and only our names are ever removed from it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from worker.localstack import LocalStack, LocalStackError
from worker.localstack.folder import MARKER, claim, claim_more, is_stack, locked, remove

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("stack.json", "s3", "redis.pid")
#: The keys of stack.json as releases before the marker wrote it.
EARLIER = {
    "superuser_password": "a",
    "owner_password": "b",
    "app_password": "c",
    "redis_password": "d",
    "s3_access_key_id": "e",
    "s3_secret_access_key": "f",
    "ports": {},
}


def tree(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Return every path below a folder, and the folder itself, with its mode and content."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() else None,
        )
        for path in (folder, *folder.rglob("*"))
    }


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A person's folder, whose names happen to look like ours."""
    folder = tmp_path / "home"
    (folder / "s3").mkdir(parents=True)
    (folder / "s3" / "bill.pdf").write_text("mine")
    (folder / "stack.json").write_text('{"version": 3}')
    (folder / "lock").write_text("mine")
    folder.chmod(0o700)
    return folder


@pytest.mark.parametrize("content", ["", "[]", "{", '{"superuser_password": "a"}', "\x00"])
def test_a_foreign_folder_is_left_as_it_is(home: Path, content: str) -> None:
    """Deleting, stopping and starting there change not one byte and no mode."""
    (home / "stack.json").write_text(content)
    before = tree(home)
    with pytest.raises(LocalStackError, match=f"it has no {MARKER}.*nothing was removed"):
        remove(home, NAMES)
    stack = LocalStack(home)
    assert not stack.exists
    stack.stop()
    with pytest.raises(LocalStackError, match="nothing was removed"):
        stack.delete()
    with pytest.raises(LocalStackError, match=r"holds s3, stack\.json: choose another"):
        stack.start()
    assert tree(home) == before


def test_a_link_to_a_marker_marks_nothing(home: Path, tmp_path: Path) -> None:
    """A marker is a file in the folder itself."""
    claim(tmp_path / "stack", NAMES)
    (home / MARKER).symlink_to(tmp_path / "stack" / MARKER)
    assert not is_stack(home)


def test_only_our_names_go(tmp_path: Path) -> None:
    """What a person put into a stack's folder stays, and with it the folder."""
    folder = tmp_path / "deep" / "stack"
    claim(folder, NAMES)
    (folder / "s3" / "objects").mkdir(parents=True)
    (folder / "redis.pid").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    (folder / "s3.tar").write_text("mine")
    assert remove(folder, NAMES) == ["notes.txt", "s3.tar"]
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "s3.tar"]
    assert not is_stack(folder)


def test_a_folder_without_anything_else_goes(tmp_path: Path) -> None:
    """Also where it is reached by a link, which then leads nowhere."""
    folder, link = tmp_path / "stack", tmp_path / "link"
    claim(folder, NAMES)
    link.symlink_to(folder)
    assert remove(link, NAMES) == []
    assert not folder.exists()


def test_what_a_link_leads_to_stays(tmp_path: Path, home: Path) -> None:
    """A link in place of our data is removed as a link."""
    folder = tmp_path / "stack"
    claim(folder, NAMES)
    (folder / "s3").symlink_to(home / "s3")
    assert remove(folder, NAMES) == []
    assert (home / "s3" / "bill.pdf").read_text() == "mine"


def test_a_folder_with_foreign_files_can_be_claimed_and_keeps_its_mode(tmp_path: Path) -> None:
    """Files with names of their own are in nobody's way."""
    (tmp_path / "notes.txt").write_text("mine")
    tmp_path.chmod(0o700)
    claim(tmp_path, NAMES)
    assert is_stack(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert remove(tmp_path, NAMES) == ["notes.txt"]


def test_a_stack_of_an_earlier_release_is_known_by_its_secrets(tmp_path: Path) -> None:
    """It gets its marker when it is next started or stopped, and loses its old lock."""
    (tmp_path / "stack.json").write_text(json.dumps(EARLIER))
    (tmp_path / "lock").touch()
    assert is_stack(tmp_path)
    with locked(tmp_path):
        assert (tmp_path / MARKER).read_text().startswith("This folder is a local stack")
    assert remove(tmp_path, NAMES) == []
    assert not tmp_path.exists()


def test_what_only_later_releases_make_is_not_ours_in_an_earlier_stack(tmp_path: Path) -> None:
    """Files that were there before a release made ones of that name stay; others become ours."""
    folder = tmp_path / "var"
    claim(folder, ["stack.json"])
    (folder / MARKER).write_text((folder / MARKER).read_text().splitlines()[0] + "\n")
    (folder / "run").mkdir()
    (folder / "run" / "bridge.alive").touch()
    (folder / "worker.log").write_text("mine")
    (folder / "redis").mkdir()
    stack = LocalStack(folder)
    claim_more(folder, stack._names)
    (folder / "beat.log").touch()
    assert stack.delete() == ["run", "worker.log"]
    assert (folder / "run" / "bridge.alive").exists()
    assert (folder / "worker.log").read_text() == "mine"


def test_of_two_who_make_a_stack_at_once_the_second_is_told(tmp_path: Path) -> None:
    """Whoever chose secrets before the first one's were written does not overwrite them."""
    first, second = LocalStack(tmp_path / "stack"), LocalStack(tmp_path / "stack")
    claim(first.folder, NAMES)
    first._agree()
    with pytest.raises(LocalStackError, match="another process has made a stack"):
        second._agree()
    assert LocalStack(first.folder).addresses.environment() == first.addresses.environment()
