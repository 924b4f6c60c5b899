"""A hub of models on loopback, for those who hold a token: it serves folders as repositories."""

from __future__ import annotations

import hashlib
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from tests.support.http_server import HttpServer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"


def local_hub(repositories: Mapping[str, Path], token: str) -> HttpServer:
    """Return a server of these folders by repository, each at `REVISION`, to be `HF_ENDPOINT`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(self._begin())

        def do_HEAD(self) -> None:
            self._begin()

        def _begin(self) -> bytes:
            """Send status and headers; returns the body."""
            status, data = HTTPStatus.UNAUTHORIZED, b""
            if self.headers.get("Authorization") == f"Bearer {token}":
                found = _found(repositories, self.path.partition("?")[0].strip("/"))
                status = HTTPStatus.NOT_FOUND if found is None else HTTPStatus.OK
                data = found or b""
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{_oid(data)}"')
            self.send_header("X-Repo-Commit", REVISION)
            self.end_headers()
            return data

    return HttpServer(Handler)


def _found(repositories: Mapping[str, Path], path: str) -> bytes | None:
    for repository, folder in repositories.items():
        if path == f"api/models/{repository}":
            return json.dumps({"id": repository, "sha": REVISION, "siblings": []}).encode()
        if path == f"api/models/{repository}/tree/{REVISION}":
            return json.dumps(_tree(folder)).encode()
        name = path.removeprefix(f"{repository}/resolve/{REVISION}/")
        if name != path and (folder / name).is_file():
            return (folder / name).read_bytes()
    return None


def _tree(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "type": "file",
            "path": file.relative_to(folder).as_posix(),
            "size": file.stat().st_size,
            "oid": _oid(file.read_bytes()),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]


def _oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
