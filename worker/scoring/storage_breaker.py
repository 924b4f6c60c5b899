"""Storage breaker: tells trouble with one object from storage that gives nothing to anybody.

A denied object next to one that this worker may read is a fault of the object: the image fails as
`access_denied`. Credentials that expired deny everything, and would fail every image in the queue;
a store that is away would use up the tries of every image. After `limit` distinct objects in a row
the worker is paused instead. It takes no more messages, gives back what it holds, and asks for
those objects again until it is given one.

Trouble is judged at once when this worker, or any before it, has read something: it asks for that
again. Until one has, trouble is undecided and its images are tried again: denials and unusable
answers `tries` times at most, storage that does not answer for as long as the budget lasts.

The objects that it was paused over may be the only ones in trouble. So a paused worker goes back to
its queue now and then, ever more rarely: one object that it can read ends the doubt, the first
other one that it cannot read pauses it again.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import structlog

from detection.errors import PermanentError, TransientError
from worker.storage.interface import (
    AccessDenied,
    AnswerUnusable,
    StorageForbidden,
    StorageUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.ledger.interface import Removal, Upload
    from worker.storage.interface import Storage

_log = structlog.get_logger(__name__)

_TRIES = 3
_FIRST_TRIAL_S = 60.0
_LONGEST_TRIAL_S = 600.0

_Object = tuple[str, str, str | None]


class DenialUndecided(TransientError):
    """Object storage denied the object; whether it denies everything is not known yet."""


class OutageSuspected(StorageUnavailable):
    """Object storage did not give the object; whether it gives any is not known yet."""


class StorageBreaker:
    """`pause` and `resume` are called once each time the worker is paused and resumed.

    `last_read` names an upload that any worker has read; it is asked while this one has read none.
    `probe_every_s` is how often a paused worker asks for what it was refused.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        limit: int,
        pause: Callable[[], None],
        resume: Callable[[], None],
        last_read: Callable[[], Upload | None] = lambda: None,
        probe_every_s: float = 10.0,
        first_trial_s: float = _FIRST_TRIAL_S,
        tries: int = _TRIES,
    ) -> None:
        self._storage = storage
        self._limit = limit
        self._pause = pause
        self._resume = resume
        self._last_read = last_read
        self._probe_every_s = probe_every_s
        self._first_trial_s = self._trial_s = first_trial_s
        self._tries = tries
        self._lock = threading.Lock()
        self._readable: _Object | None = None
        #: The latest objects in trouble, `limit` at most, the oldest first.
        self._troubled: dict[_Object, None] = {}
        self._paused = False
        self._stopping = threading.Event()
        self._prober: threading.Thread | None = None

    @property
    def is_open(self) -> bool:
        """Whether storage gives nothing, as far as is known."""
        return self._paused or len(self._troubled) >= self._limit

    @property
    def is_paused(self) -> bool:
        """Whether nothing is asked for but by the breaker itself."""
        return self._paused

    def raise_if_paused(self) -> None:
        """Raise `StorageForbidden` while the worker is paused."""
        if self._paused:
            raise StorageForbidden

    def record_success(self, upload: Upload | Removal) -> None:
        """Note that an object could be read."""
        with self._lock:
            self._readable = _object(upload)
            self._end_doubt()

    def judge(
        self, upload: Upload | Removal, error: AccessDenied | StorageUnavailable, *, attempt: int
    ) -> Exception:
        """Judge trouble with an object: return the error to raise in its place.

        It is `error` itself when the fault is the object's own.
        """
        if self._paused:
            return StorageForbidden()
        readable = self._readable or self._read_by_others()
        if readable is not None and self._is_given(readable):
            with self._lock:
                self._readable = readable
                self._end_doubt()
            return error
        with self._lock:
            doubtful = len(self._troubled) >= self._limit
            paused = self._note_trouble(_object(upload), error)
        if paused:
            return StorageForbidden()
        alone = readable is None and not doubtful
        last_try = attempt >= self._tries and isinstance(error, (AccessDenied, AnswerUnusable))
        if alone and last_try:
            return error
        if isinstance(error, AccessDenied):
            return DenialUndecided()
        return OutageSuspected(str(error))

    def stop(self) -> None:
        """End the probing."""
        self._stopping.set()
        if self._prober is not None:
            self._prober.join()

    def _read_by_others(self) -> _Object | None:
        try:
            upload = self._last_read()
        except TransientError:
            return None
        return None if upload is None else _object(upload)

    def _note_trouble(self, wanted: _Object, error: Exception) -> bool:
        """Remember an object in trouble; return whether the worker is paused now."""
        repeated = wanted in self._troubled
        self._troubled[wanted] = None
        if len(self._troubled) > self._limit:
            del self._troubled[next(iter(self._troubled))]
        if len(self._troubled) >= self._limit and not repeated and not self._paused:
            self._open(error)
        return self._paused

    def _open(self, error: Exception) -> None:
        self._paused = True
        _log.error("storage_gives_nothing", objects=len(self._troubled), error=str(error))
        self._pause()
        self._prober = threading.Thread(target=self._probe, name="breaker", daemon=True)
        self._prober.start()

    def _end_doubt(self) -> None:
        self._troubled.clear()
        self._trial_s = self._first_trial_s

    def _probe(self) -> None:
        trial_at = time.monotonic() + self._trial_s
        while not self._stopping.wait(self._probe_every_s):
            with self._lock:
                suspects = [self._readable, *self._troubled]
            given = any(
                self._is_given(suspect)
                for suspect in suspects
                if suspect is not None and not self._stopping.is_set()
            )
            if not given and time.monotonic() < trial_at:
                continue
            with self._lock:
                if given:
                    self._end_doubt()
                else:
                    self._trial_s = min(2 * self._trial_s, _LONGEST_TRIAL_S)
                self._paused = False
            _log.warning("storage_access_restored" if given else "storage_tried_with_others")
            self._resume()
            return

    def _is_given(self, wanted: _Object) -> bool:
        """Ask for an object as a check does, and read nothing of it."""
        bucket, key, version_id = wanted
        try:
            self._storage.fetch(bucket, key, version_id=version_id, max_bytes=0)
        except (AccessDenied, TransientError):
            return False
        except PermanentError:
            return True  # "too large for nothing", and "not there" is an answer too
        return True


def _object(upload: Upload | Removal) -> _Object:
    return upload.bucket, upload.key, upload.version_id
