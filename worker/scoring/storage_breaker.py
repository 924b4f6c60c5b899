"""Storage breaker: tells one denied object from credentials that are denied everything.

A denied object next to one that this worker may read is a fault of the object: the image fails as
`access_denied`. Credentials that expired deny everything, and would fail every image in the queue:
after `limit` distinct objects in a row the worker is paused instead. It takes no more messages,
gives back what it holds, and asks for those objects again until one answer is no denial.

A denial is judged at once when this worker has read something before: it asks for that again. Until
it has, denials are undecided and their images are tried again, `_TRIES` times at most.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

from detection.errors import PermanentError, TransientError
from worker.storage.interface import AccessDenied, StorageForbidden

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.ledger.interface import Lease, Upload
    from worker.storage.interface import Storage

_log = structlog.get_logger(__name__)

_TRIES = 3

_Object = tuple[str, str, str | None]


class DenialUndecided(TransientError):
    """Object storage denied the object; whether it denies everything is not known yet."""


class StorageBreaker:
    """`pause` and `resume` are called once each time the worker is paused and resumed."""

    def __init__(
        self,
        storage: Storage,
        *,
        limit: int,
        pause: Callable[[], None],
        resume: Callable[[], None],
        probe_every_s: float = 10.0,
    ) -> None:
        self._storage = storage
        self._limit = limit
        self._pause = pause
        self._resume = resume
        self._probe_every_s = probe_every_s
        self._lock = threading.Lock()
        self._readable: _Object | None = None
        self._denied: dict[_Object, None] = {}
        self._open = False
        self._stopping = threading.Event()
        self._prober: threading.Thread | None = None

    @property
    def is_open(self) -> bool:
        """Whether the worker is paused."""
        return self._open

    def raise_if_open(self) -> None:
        """Raise `StorageForbidden` while the worker is paused."""
        if self._open:
            raise StorageForbidden

    def record_success(self, upload: Upload) -> None:
        """Note that an object could be read."""
        with self._lock:
            self._readable = _object(upload)
            self._denied.clear()

    def record_denial(self, lease: Lease, error: AccessDenied) -> Exception:
        """Judge a denial: return the error to raise in its place."""
        if self._open:
            return StorageForbidden()
        readable = self._readable
        everything = readable is not None and self._is_denied(readable)
        if readable is not None and not everything:
            return error
        with self._lock:
            self._denied[_object(lease.upload)] = None
            if not self._open and len(self._denied) >= self._limit:
                self._open = True
                _log.error("storage_denies_everything", denied=len(self._denied), error=str(error))
                self._pause()
                self._prober = threading.Thread(target=self._probe, name="breaker", daemon=True)
                self._prober.start()
            if self._open:
                return StorageForbidden()
        return DenialUndecided() if everything or lease.attempt < _TRIES else error

    def stop(self) -> None:
        """End the probing."""
        self._stopping.set()
        if self._prober is not None:
            self._prober.join()

    def _probe(self) -> None:
        while not self._stopping.wait(self._probe_every_s):
            with self._lock:
                suspects = [self._readable, *self._denied]
            if all(self._is_denied(suspect) for suspect in suspects if suspect is not None):
                continue
            with self._lock:
                self._denied.clear()
                self._open = False
            _log.warning("storage_access_restored")
            self._resume()
            return

    def _is_denied(self, wanted: _Object) -> bool:
        bucket, key, version_id = wanted
        try:
            self._storage.head(bucket, key, version_id=version_id)
        except (AccessDenied, TransientError):
            return True
        except PermanentError:
            return False  # "not there" is an answer too
        return False


def _object(upload: Upload) -> _Object:
    return upload.bucket, upload.key, upload.version_id
