"""An HTTP server on loopback for tests, which a handler of theirs gives its answers."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

    from worker.settings import S3


class HttpServer:
    """Answers on a free port while it is entered; every request has a thread of its own."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        quiet = type("Quiet", (handler,), {"log_message": lambda *_: None})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def s3_settings(self, **changes: Any) -> S3:
        """Return the settings of a client of object storage that this server stands for."""
        from worker.settings import S3

        return S3.model_validate(
            {
                "endpoint_url": self.url,
                "access_key_id": "k",
                "secret_access_key": "s",
                "buckets": ("b",),
                **changes,
            }
        )
