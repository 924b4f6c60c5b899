"""The folder of a local stack: what makes it ours, and what in it may be removed.

Only a folder with our marker is a stack's, and only names that a stack makes and that its marker
lists are ever removed: a mistyped path costs nothing. The list grows as later releases make more.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from typing import TYPE_CHECKING

from worker.localstack.processes import LocalStackError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

MARKER = ".unlatent-stack"
_MARK = (
    "This folder is a local stack of unlatent; `unlatent --stack FOLDER down --delete` ends it.\n"
)

#: What stacks make whose marker lists no names yet.
_EARLIER_NAMES = frozenset(
    {"pgdata", "pgpassword", "binaries", "redis", "s3"}
    | {
        f"{server}.{kind}"
        for server in ("postgres", "redis", "s3")
        for kind in ("pid", "partial", "log")
    }
    | {
        name
        for file in ("stack.json", "stack.env", "pgpass")
        for name in (file, f".{file}.partial")
    }
)
#: What stacks had before there was a marker: the secrets in their stack.json, and one more file.
_EARLIER_SECRETS = {
    "superuser_password",
    "owner_password",
    "app_password",
    "redis_password",
    "s3_access_key_id",
    "s3_secret_access_key",
}
_EARLIER_LOCK = "lock"


def is_stack(folder: Path) -> bool:
    """Whether a stack was started in the folder; one of a release without markers counts."""
    marker = folder / MARKER
    return (marker.is_file() and not marker.is_symlink()) or _is_earlier_stack(folder)


def claim(folder: Path, names: Collection[str]) -> None:
    """Make the folder a stack's: a new one, or one in which nothing has a name of ours.

    Raises `LocalStackError` otherwise: what is there would later be taken for the stack's.
    """
    if is_stack(folder):
        return
    try:
        folder.mkdir(parents=True)
        folder.chmod(0o711)  # secrets have their own modes; `nobody` must get to its data
    except FileExistsError:
        if not folder.is_dir():
            raise LocalStackError(f"{folder} is no folder: choose another one") from None
        foreign = sorted({path.name for path in folder.iterdir()}.intersection(names))
        if foreign:
            what = ", ".join(foreign)
            message = f"{folder} is no local stack and holds {what}: choose another folder"
            raise LocalStackError(message) from None
    _list_names(folder, names)


def claim_more(folder: Path, names: Collection[str]) -> None:
    """List names as the stack's that its marker does not, but for those that are in use."""
    listed = _listed_names(folder)
    free = {name for name in names if not os.path.lexists(folder / name)}
    if free - listed:
        _list_names(folder, free | listed)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from starting and stopping the stack of the folder meanwhile."""
    with (folder / MARKER).open("a") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        if _is_earlier_stack(folder) and marker.tell() == 0:
            (folder / MARKER).write_text(_MARK)
            (folder / _EARLIER_LOCK).unlink(missing_ok=True)
        yield


def remove(folder: Path, names: Collection[str]) -> list[str]:
    """Remove our names that are listed, the marker last, and the folder if it is empty then.

    Returns the names of what is left. Links are removed, never what they lead to. Raises
    `LocalStackError`, and removes nothing, in a folder that is no stack's.
    """
    if not is_stack(folder):
        message = f"{folder} is no local stack (it has no {MARKER}): nothing was removed"
        raise LocalStackError(message)
    listed = _listed_names(folder)
    remove_names(folder, [*(name for name in names if name in listed), MARKER])
    left = sorted(path.name for path in folder.iterdir())
    if not left:
        folder.resolve().rmdir()
    return left


def remove_names(folder: Path, names: Collection[str]) -> None:
    """Remove files and folders of these names, in this order, from a folder that is ours."""
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _list_names(folder: Path, names: Collection[str]) -> None:
    # In place: whoever waits for the lock has this very file open.
    (folder / MARKER).write_text(_MARK + "".join(f"{name}\n" for name in sorted(names)))


def _listed_names(folder: Path) -> frozenset[str]:
    try:
        lines = (folder / MARKER).read_text().splitlines()[1:]
    except FileNotFoundError:
        lines = []
    return frozenset(lines) or _EARLIER_NAMES


def _is_earlier_stack(folder: Path) -> bool:
    try:
        found = json.loads((folder / "stack.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.keys() >= _EARLIER_SECRETS
