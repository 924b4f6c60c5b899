"""A proxy in front of a server that misbehaves when told to."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from worker.localstack.processes import LOOPBACK

if TYPE_CHECKING:
    from types import TracebackType

#: Handles one request in the server's place: takes the client's socket, the request's first bytes
#: and the server's socket; returns whether the connection goes on.
Fault = Callable[[socket.socket, bytes, socket.socket], bool]

_CHUNK_BYTES = 64 * 1024


def status(line: str, body: str = "") -> Fault:
    """Answer every request with a status line and an S3 error document."""
    document = f"<?xml version='1.0'?><Error>{body}</Error>".encode()
    head = f"HTTP/1.1 {line}\r\nContent-Type: application/xml\r\nContent-Length: {len(document)}"

    def answer(client: socket.socket, _request: bytes, _server: socket.socket) -> bool:
        client.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode() + document)
        return False

    return answer


def bare(body: bytes) -> Fault:
    """Answer every request with an object that has a date and neither etag nor length."""
    head = b"HTTP/1.1 200 OK\r\nLast-Modified: Wed, 21 Oct 2026 07:28:00 GMT\r\nConnection: close"

    def answer(client: socket.socket, request: bytes, _server: socket.socket) -> bool:
        client.sendall(head + b"\r\n\r\n" + (b"" if request.startswith(b"HEAD") else body))
        return False

    return answer


def reset_in_body(client: socket.socket, request: bytes, server: socket.socket) -> bool:
    """Pass on the head and a part of the body, then reset the connection."""
    client.sendall(_head_and_some(request, server))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def trickle(client: socket.socket, request: bytes, server: socket.socket) -> bool:
    """Pass on the head, then a byte at a time until the client has had enough."""
    answer = _head_and_some(request, server)
    tick = threading.Event()
    with suppress(OSError):
        for index in range(len(answer)):
            client.sendall(answer[index : index + 1])
            tick.wait(0.05)
        # Nothing more comes; the client's own patience ends this.
        client.recv(1)
    return False


def _head_and_some(request: bytes, server: socket.socket) -> bytes:
    server.sendall(request)
    answer = server.recv(_CHUNK_BYTES)
    while b"\r\n\r\n" not in answer:
        answer += server.recv(_CHUNK_BYTES)
    head, _, body = answer.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n" + body[: len(body) // 2]


class Proxy:
    """Listens on a port of its own and passes on to another; `fault` applies from the next request.

    `choose`, if set, names the fault of one request by its first bytes. `hits` counts the requests
    that met a fault, `before` is called with each request that does not, ahead of passing it on.
    """

    def __init__(self, port: int) -> None:
        self._target = (LOOPBACK, port)
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self.fault: Fault | None = None
        self.choose: Callable[[bytes], Fault | None] | None = None
        self.before: Callable[[bytes], object] | None = None
        self.hits = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for open_socket in (self._listener, *self._open):
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
            open_socket.close()
        for thread in self._threads:
            thread.join()

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            self._open += [client, server]
            self._spawn(self._requests, client, server)

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError), client, server:
            answers: threading.Thread | None = None
            while request := client.recv(_CHUNK_BYTES):
                fault = self.fault or (self.choose and self.choose(request))
                if fault:
                    self.hits += 1
                    # The answers' thread, if any, waits for what this request never causes.
                    with socket.create_connection(self._target) as fresh:
                        if not fault(client, request, fresh):
                            break
                    continue
                if self.before is not None:
                    self.before(request)
                server.sendall(request)
                if answers is None:
                    answers = threading.Thread(target=_answers, args=(server, client), daemon=True)
                    answers.start()
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            if answers is not None:
                answers.join()


def _answers(server: socket.socket, client: socket.socket) -> None:
    with suppress(OSError):
        while answer := server.recv(_CHUNK_BYTES):
            client.sendall(answer)
