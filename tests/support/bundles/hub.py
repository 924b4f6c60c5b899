"""A stand-in for the hub: the requests that `huggingface_hub` makes for one owner's repositories.

Of the endpoints in https://huggingface.co/docs/hub/api and the Git LFS batch API it answers what
`model_info`, `hf_hub_download`, `create_repo` and `create_commit` call. Xet storage is left out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tests.support.http_server import HttpServer

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "hf_a-token-that-may-write"
LARGE = ".safetensors"


def git_blob_id(content: bytes) -> str:
    """Return the id that git gives a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class FakeHub:
    """Repositories by their names: every commit with its files, and branches that point to one."""

    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    #: Files whose transfer ends after its first half.
    broken: set[str] = field(default_factory=set)
    #: Bytes that are stated of a file in the place of its own.
    misstated: dict[str, int] = field(default_factory=dict)
    url: str = ""

    @property
    def large_url(self) -> str:
        """Where large files are: at another host, which no token may reach."""
        return self.url.replace("127.0.0.1", "localhost")

    def commit(self, repository: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit of these very files to a branch and return its id."""
        commits = self.commits.setdefault(repository, {})
        told = json.dumps([len(commits), sorted((k, git_blob_id(v)) for k, v in files.items())])
        revision = hashlib.sha1(told.encode(), usedforsecurity=False).hexdigest()
        commits[revision] = dict(files)
        self.branches.setdefault(repository, {})[branch] = revision
        return revision

    def head(self, repository: str, branch: str = "main") -> dict[str, bytes]:
        """Return the files of a branch."""
        return self.commits[repository][self.branches[repository][branch]]

    def find(self, repository: str, revision: str) -> str | None:
        """Return the commit that a branch or a commit's id names."""
        found = self.branches.get(repository, {}).get(revision, revision)
        return found if found in self.commits.get(repository, {}) else None


def serve(hub: FakeHub) -> HttpServer:
    """Return a server of the hub, to be entered; its address is then the hub's."""
    server = HttpServer(type("Bound", (_Handler,), {"hub": hub}))
    hub.url = server.url
    return server


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        """Answer a question or a download."""
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append((self.command, path, token))
        try:
            for pattern, answer in _ROUTES:
                if found := re.fullmatch(pattern, path):
                    answer(self, body, **found.groupdict())
                    return
            raise _Refused(404, "NoSuchRoute", path)
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": str(refused)}
            self._send(refused.status, json.dumps({"error": str(refused)}).encode(), headers)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, sent: int = -1
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent < 0 else body[:sent])

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _may_write(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(403, "Forbidden", "this token may not write")

    def _found(self, repository: str, revision: str) -> str:
        hidden = repository in self.hub.private and "Authorization" not in self.headers
        if repository not in self.hub.commits or hidden:
            raise _Refused(404, "RepoNotFound", "Repository not found")
        found = self.hub.find(repository, revision)
        if found is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def info(self, _body: bytes, repository: str, revision: str = "main") -> None:
        commit = self._found(repository, revision)
        files = self.hub.commits[repository][commit].items()
        siblings = [
            {
                "rfilename": name,
                "size": self.hub.misstated.get(name, len(content)),
                "blobId": git_blob_id(content),
            }
            for name, content in files
        ]
        self._json({"id": repository, "sha": commit, "siblings": siblings, "tags": []})

    def resolve(self, _body: bytes, repository: str, revision: str, name: str) -> None:
        commit = self._found(repository, revision)
        content = self.hub.commits[repository][commit].get(name)
        if content is None:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_blob_id(content)}"'}
        if name.endswith(LARGE):
            oid = hashlib.sha256(content).hexdigest()
            self.hub.large[oid] = content
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            self._send(
                302, b"", {**headers, "Location": f"{self.hub.large_url}/large/{oid}/{name}"}
            )
            return
        self._transfer(name, content, headers)

    def _transfer(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        sent = len(content) // 2 if name in self.hub.broken else -1
        self._send(200, content, headers, sent)

    def create(self, body: bytes) -> None:
        self._may_write()
        wanted = json.loads(body)
        repository = f"{wanted['organization']}/{wanted['name']}"
        if repository in self.hub.commits:
            raise _Refused(409, "RepoAlreadyExists", "You already created this model repo")
        self.hub.commit(repository, {".gitattributes": b"*.safetensors filter=lfs\n"})
        if wanted.get("visibility") == "private" or wanted.get("private"):
            self.hub.private.add(repository)
        self._json({"url": f"{self.hub.url}/{repository}"})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        if not content.startswith("---\n"):
            self._json({"warnings": [{"message": "empty metadata"}], "errors": []})
            return
        self._json({"warnings": [], "errors": []})

    def preupload(self, body: bytes, repository: str, revision: str) -> None:
        self._may_write()
        files = self.hub.commits[repository][self._found(repository, revision)]
        self._json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        "oid": _oid(file["path"], files.get(file["path"])),
                    }
                    for file in json.loads(body)["files"]
                ]
            }
        )

    def batch(self, body: bytes, repository: str) -> None:
        self._may_write()
        self._found(repository, "main")
        objects = [
            {
                **wanted,
                "actions": {
                    "upload": {"href": f"{self.hub.large_url}/large/{wanted['oid']}/upload"}
                },
            }
            for wanted in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str, name: str) -> None:
        if self.command != "PUT":
            self._transfer(name, self.hub.large[oid], {"ETag": f'"{oid}"'})
            return
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "BadDigest", "these bytes have another sha256")
        self.hub.large[oid] = body
        self._send(200)

    def add_commit(self, body: bytes, repository: str, revision: str) -> None:
        self._may_write()
        parent = self._found(repository, revision)
        files = dict(self.hub.commits[repository][parent])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit", parent) != parent:
                        raise _Refused(412, "PreconditionFailed", "the branch has moved")
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = self.hub.commit(repository, files, revision)
        url = f"{self.hub.url}/{repository}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url})


def _oid(name: str, content: bytes | None) -> str | None:
    if content is None:
        return None
    return hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else git_blob_id(content)


_REPOSITORY = r"(?P<repository>[^/]+/[^/]+)"
_ROUTES = (
    (r"/api/repos/create", _Handler.create),
    (r"/api/validate-yaml", _Handler.validate),
    (rf"/api/models/{_REPOSITORY}", _Handler.info),
    (rf"/api/models/{_REPOSITORY}/revision/(?P<revision>.+)", _Handler.info),
    (rf"/api/models/{_REPOSITORY}/preupload/(?P<revision>.+)", _Handler.preupload),
    (rf"/api/models/{_REPOSITORY}/commit/(?P<revision>.+)", _Handler.add_commit),
    (rf"/{_REPOSITORY}\.git/info/lfs/objects/batch", _Handler.batch),
    (rf"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
    (r"/large/(?P<oid>[0-9a-f]{64})/(?P<name>.+)", _Handler.store),
)
