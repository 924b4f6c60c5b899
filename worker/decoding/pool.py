"""Killable spawned processes that decode untrusted images and read what files say of themselves.

An image can cost itself and one process, never the worker and never its neighbours:

* out of time: its process is killed, the image fails as `decode_timeout`;
* out of memory: the image fails as `decode_memory`, its process is replaced;
* its process dies: the image is decoded once more with the whole pool to itself, in case a
  neighbour's appetite had it killed; dying again fails it as `decoder_crashed`. This is a failed
  image and not a death, because the worker lived and knows the culprit;
* provenance that takes too long or kills its reader is left out, and the image goes on.

The bytes of decoded images in flight stay under a budget. A process is held until the budget has
room for what it decoded, so the most that exists is the budget and one image a process.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import structlog

from detection.errors import PermanentError, TransientError, UnlatentError
from detection.intake.animation import SLOTS, ShownFrame, longest
from detection.intake.errors import ImageRejected
from detection.intake.provenance import ProvenanceRecord
from worker.decoding.byte_budget import ByteBudget
from worker.decoding.process import anonymous_file, load_trust_lists, receive, send, write_all
from worker.ledger.interface import ImageFacts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from worker.settings import Intake

_log = structlog.get_logger(__name__)

_START_TIMEOUT_S = 60.0
#: How long a process that hung up may take to leave its exit status.
_DYING_S = 1.0
#: Codecs leak; a process is replaced after this many images.
_IMAGES_PER_PROCESS = 1000


class DecodeTimeout(PermanentError):
    """Decoding the image took longer than the limit."""

    reason: ClassVar[str] = "decode_timeout"


class DecodeMemory(PermanentError):
    """Decoding the image took more memory than the limit."""

    reason: ClassVar[str] = "decode_memory"


class DecoderCrashed(PermanentError):
    """Decoding the image killed the decoding process, twice."""

    reason: ClassVar[str] = "decoder_crashed"


class DecodeError(PermanentError):
    """The decoder failed on the image in a way it does not foresee."""

    reason: ClassVar[str] = "decode_error"


class DecodeBusy(TransientError):
    """No decoding process came free in time."""


class DecoderUnavailable(TransientError):
    """A decoding process did not start."""


class _ProcessDied(UnlatentError):
    """The decoding process died."""


_REFUSALS: tuple[type[PermanentError], ...] = (
    DecodeMemory,
    DecodeError,
    *ImageRejected.__subclasses__(),
)
_ERRORS: dict[str, type[PermanentError]] = {error.reason: error for error in _REFUSALS}


@dataclass(slots=True)
class Decoded:
    """One decoded image: the frames to be judged, and what was learnt of it.

    A context manager; leaving it gives the image's bytes back to the budget.
    """

    sample: tuple[ShownFrame, ...]
    facts: ImageFacts
    _budget: ByteBudget | None = field(default=None, repr=False)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The picture, uint8 (height, width, 3); of an animation the frame shown longest."""
        return longest(self.sample).pixels

    def frame(self, number: int) -> NDArray[np.uint8]:
        """Return the pixels of a frame of the sample by its number."""
        return next(frame.pixels for frame in self.sample if frame.number == number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._budget is not None:
            self._budget.release(sum(frame.pixels.nbytes for frame in self.sample))
            self._budget = None


class _Process:
    """One decoding process and this side of its socket."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "worker.decoding.process",
                    json.dumps({**config, "socket": theirs.fileno()}),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                # No secrets, and one thread each: the pool is the parallelism.
                env={
                    "PYTHONPATH": os.pathsep.join(str(Path(path).resolve()) for path in sys.path),
                    "OMP_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                },
                process_group=0,
            )
        self._ready = False
        self._images = 0

    @property
    def usable(self) -> bool:
        """Whether the process lives and has not served its time."""
        return self._images < _IMAGES_PER_PROCESS and self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Raise `DecoderUnavailable` when the process does not come up."""
        if self._ready:
            return
        self._connection.settimeout(_START_TIMEOUT_S)
        try:
            receive(self._connection)
        except (EOFError, OSError) as error:
            message = f"A decoding process did not start (exit status {self._reap()})."
            raise DecoderUnavailable(message) from error
        self._ready = True

    def ask(
        self, request: dict[str, Any], data: bytes, *, timeout_s: float
    ) -> tuple[dict[str, Any], int | None]:
        """Send one image and wait for the answer; raises `TimeoutError` or `_ProcessDied`."""
        self._images += 1
        source = anonymous_file()
        try:
            with self._answering(timeout_s):
                write_all(source, data)
                send(self._connection, request, source)
                return receive(self._connection)
        finally:
            os.close(source)

    def read_answer(self, *, timeout_s: float) -> dict[str, Any]:
        """Wait for the second answer on an image; raises `TimeoutError` or `_ProcessDied`."""
        with self._answering(timeout_s):
            answer, unasked = receive(self._connection)
        if unasked is not None:
            os.close(unasked)
        return answer

    @contextmanager
    def _answering(self, timeout_s: float) -> Iterator[None]:
        self._connection.settimeout(timeout_s)
        try:
            yield
        except TimeoutError:
            self.kill()
            raise
        except (EOFError, OSError, ValueError) as error:
            status = self._reap()
            if status == -signal.SIGALRM:
                raise TimeoutError from error
            message = f"The decoding process died (exit status {status})."
            raise _ProcessDied(message) from error

    def kill(self) -> None:
        """End the process now."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _reap(self) -> int:
        # A process that died by itself keeps its own exit status: it names the signal.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_DYING_S)
        self.kill()
        return self._process.returncode


@dataclass(slots=True, eq=False)
class _Slot:
    """A place for one process, filled when it is first needed."""

    config: dict[str, Any]
    process: _Process | None = None

    def filled(self) -> _Process:
        """Return a process that is ready to decode; raises `DecoderUnavailable`."""
        if self.process is None or not self.process.usable:
            self.clear()
            self.process = _Process(self.config)
        self.process.wait_until_ready()
        return self.process

    def clear(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process = None


class DecodePool:
    """Decodes for many threads in `settings.processes` processes of its own.

    `decoder` and `provenance` name the functions that the processes run, as "module:function".
    Raises `SettingsError` for a trust list that cannot be read.
    """

    def __init__(
        self,
        settings: Intake,
        *,
        decoder: str = "detection.intake.decode:decode",
        provenance: str = "detection.intake.provenance:read_provenance",
    ) -> None:
        trust = {
            "signers": [str(path) for path in settings.c2pa_signers],
            "time_stamp_authorities": [str(path) for path in settings.c2pa_time_stamp_authorities],
        }
        load_trust_lists(trust)  # here a wrong path has a reader; the processes have none
        self._timeout_s = settings.timeout_s
        self._provenance_timeout_s = settings.signals_timeout_s
        config = {
            "decoder": decoder,
            "provenance": provenance,
            "timeout_s": settings.timeout_s,
            "signals_timeout_s": settings.signals_timeout_s,
            "memory_bytes": settings.memory_bytes,
            "trust": trust,
            "limits": {
                "max_bytes": settings.max_bytes,
                "max_pixels": settings.max_pixels,
                "max_frames": settings.max_frames,
                "max_metadata_bytes": settings.max_metadata_bytes,
            },
        }
        self.budget = ByteBudget(settings.in_flight_bytes)
        self._slots = [_Slot(config) for _ in range(settings.processes)]
        self._idle: queue.LifoQueue[_Slot] = queue.LifoQueue()
        for slot in self._slots:
            self._idle.put(slot)
        self._sole = threading.Lock()

    def start(self) -> None:
        """Start the processes ahead of the first image; raises `DecoderUnavailable`."""
        for slot in self._slots:
            slot.process = _Process(slot.config)
        for slot in self._slots:
            slot.filled()

    def close(self) -> None:
        """End every process; an image that is being decoded fails as a crash of its process."""
        for slot in self._slots:
            slot.clear()

    def decode(
        self,
        data: bytes,
        *,
        declared_type: str | None = None,
        key: str | None = None,
        sha256: str | None = None,
        alone: bool = False,
        wait_s: float,
    ) -> Decoded:
        """Decode one image; raises `PermanentError` for the image, `TransientError` for the pool.

        `wait_s` bounds the waits for a process and for room in the budget; the decoding itself is
        bounded by the pool's own limit. `alone` decodes while no other image is.
        """
        request = {"declared_type": declared_type, "key": key, "sha256": sha256}
        try:
            return self._decode(data, request, alone=alone, wait_s=wait_s)
        except _ProcessDied as error:
            _log.warning("decoder_died", key=key, error=str(error))
        try:
            return self._decode(data, request, alone=True, wait_s=wait_s)
        except _ProcessDied as error:
            raise DecoderCrashed(f"Decoding the image killed its process twice. {error}") from error

    def _decode(
        self, data: bytes, request: dict[str, Any], *, alone: bool, wait_s: float
    ) -> Decoded:
        deadline = time.monotonic() + wait_s
        with self._all_slots(deadline) if alone else self._one_slot(deadline) as slot:
            try:
                process = slot.filled()
                reply, result = process.ask(request, data, timeout_s=self._timeout_s)
            except TimeoutError as error:
                message = f"Decoding the image took longer than {self._timeout_s:g} s."
                raise DecodeTimeout(message) from error
            if result is None:
                error_type = _ERRORS.get(reply["refused"], DecodeError)
                if error_type is DecodeMemory:
                    slot.clear()  # what a failed allocation leaves behind is not worth trusting
                raise error_type(reply.get("message"))
            try:
                provenance = self._provenance(process, key=request["key"])
                facts = replace(_facts(reply["facts"]), provenance=provenance)
                # No more than intake gives, whatever a process that was taken over says.
                shown = [(int(n), float(share)) for n, share in reply["frames"][:SLOTS]]
                size_bytes = len(shown) * facts.width * facts.height * 3
                self.budget.acquire(size_bytes, wait_s=max(0.0, deadline - time.monotonic()))
                try:
                    return Decoded(_sample(result, facts, shown), facts, self.budget)
                except BaseException:
                    self.budget.release(size_bytes)
                    raise
            finally:
                os.close(result)

    def _provenance(self, process: _Process, *, key: str | None) -> ProvenanceRecord | None:
        """Read what the file says of its origin; a failure here costs only that."""
        try:
            answer = process.read_answer(timeout_s=self._provenance_timeout_s)
            if "unread" not in answer:
                return ProvenanceRecord.from_dict(answer["provenance"])
            why = answer["unread"]
        except (TimeoutError, _ProcessDied, LookupError, TypeError, ValueError) as error:
            process.kill()
            why = f"{type(error).__name__}: {error}"
        _log.warning("provenance_read_failed", key=key, error=why)
        return None

    @contextmanager
    def _one_slot(self, deadline: float) -> Iterator[_Slot]:
        slot = self._take(deadline)
        try:
            yield slot
        finally:
            self._idle.put(slot)

    @contextmanager
    def _all_slots(self, deadline: float) -> Iterator[_Slot]:
        if not self._sole.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise DecodeBusy
        taken: list[_Slot] = []
        try:
            while len(taken) < len(self._slots):
                taken.append(self._take(deadline))
            yield taken[0]
        finally:
            for slot in taken:
                self._idle.put(slot)
            self._sole.release()

    def _take(self, deadline: float) -> _Slot:
        try:
            return self._idle.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty as error:
            raise DecodeBusy from error


def _facts(told: dict[str, Any]) -> ImageFacts:
    return ImageFacts(
        sha256=told["sha256"],
        size=told["size"],
        format=told["format"],
        width=told["width"],
        height=told["height"],
        pdq=bytes.fromhex(told["pdq"]),
        pdq_quality=told["pdq_quality"],
    )


def _sample(
    descriptor: int, facts: ImageFacts, shown: Sequence[tuple[int, float]]
) -> tuple[ShownFrame, ...]:
    # Sealed before it is measured: a hostile process that shrank the memory after we mapped it
    # would kill this one with SIGBUS, and one that changed it could show us two images.
    if hasattr(fcntl, "F_ADD_SEALS"):
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        try:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        except OSError as error:
            raise DecodeError("The decoder did not let go of its pixels.") from error
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes != len(shown) * facts.width * facts.height * 3 or not size_bytes:
        message = (
            f"The decoder gave {size_bytes} bytes for {len(shown)} frames of {facts.width} x "
            f"{facts.height} pixels."
        )
        raise DecodeError(message)
    # A private mapping: arrays that cannot be written to are refused by some of what reads them.
    view = mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_COPY)
    pixels = np.frombuffer(view, np.uint8).reshape(len(shown), facts.height, facts.width, 3)
    return tuple(
        ShownFrame(number, share, frame)
        for (number, share), frame in zip(shown, pixels, strict=True)
    )
