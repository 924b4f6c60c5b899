"""An object store on loopback that answers each key in its own way, as servers and proxies do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tests.support.http_server import HttpServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.settings import S3


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer; `length` says how the end of the body is told: its size, chunks or a close."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: str = "size"


def refusal(status: int, code: str = "", **headers: str) -> Answer:
    """Return an error document of S3; without a code the body is empty."""
    document = f"<Error><Code>{code}</Code><Message>m</Message></Error>" if code else ""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status=status, headers=named, body=document.encode())


class OddStore(HttpServer):
    """Answers by key; `answers` maps a key to what each request for it gets.

    A key that it does not hold is missing. `asked` counts the requests by method and key;
    `conditions` keeps the If-Match of each GET.
    """

    def __init__(self, bucket: str = "b") -> None:
        self.bucket = bucket
        self.answers: dict[str, Answer | Callable[[str, Mapping[str, str]], Answer]] = {}
        self.asked: Counter[tuple[str, str]] = Counter()
        self.conditions: list[str | None] = []
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                key = unquote(self.path.partition("?")[0]).removeprefix(f"/{store.bucket}/")
                store.asked[self.command, key] += 1
                if self.command == "GET":
                    store.conditions.append(self.headers.get("If-Match"))
                found = store.answers.get(key, refusal(404, "NoSuchKey"))
                answer = found if isinstance(found, Answer) else found(self.command, self.headers)
                self.send(answer)

            do_HEAD = do_GET  # noqa: N815 - the name that http.server asks for

            def send(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.length == "size":
                    self.send_header("Content-Length", str(len(answer.body)))
                elif answer.length == "chunks":
                    self.send_header("Transfer-Encoding", "chunked")
                else:
                    self.send_header("Connection", "close")
                    self.close_connection = True
                self.end_headers()
                if self.command == "HEAD":
                    return
                body = answer.body
                if answer.length == "chunks":
                    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
                self.wfile.write(body)

        super().__init__(Handler)

    def settings(self, **changes: object) -> S3:
        """Return the settings of a client of this store."""
        return self.s3_settings(buckets=(self.bucket,), **({"read_timeout_s": 2.0} | changes))
