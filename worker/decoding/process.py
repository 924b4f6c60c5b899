"""One process of the decode pool: untrusted bytes in, pixels and provenance out, under limits.

It is started with an empty environment (no secrets), imports neither the model nor the queue, and
speaks lines of JSON over one socket. Bytes and pixels travel as file descriptors of anonymous
memory, so that nothing large goes through the socket and nothing is left behind when either side is
killed. The kernel ends a decoding that outlives its time even when the parent is gone; otherwise
the process ends when the parent's end of the socket does.

A decoded image gets two answers: its pixels, then what the file says about its origin. So a file
whose metadata kills the reader has given its pixels already.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import resource
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.errors import PermanentError
from detection.intake.metadata.c2pa_manifest import TrustLists

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from detection.intake.decode import DecodedImage, IntakeLimits
    from detection.intake.provenance import ProvenanceRecord

#: More than the longest provenance takes: 100 texts of 200 characters, at 12 bytes each in JSON.
MAX_LINE_BYTES = 512 * 1024
#: Seconds after the parent's time limit at which the kernel ends the decoding instead.
GRACE_S = 2.0


def load_trust_lists(paths: Mapping[str, Iterable[str]]) -> TrustLists:
    """Read the PEM files of each list; raises `SettingsError` naming one that cannot be read."""
    return TrustLists.load(map(Path, paths["signers"]), map(Path, paths["time_stamp_authorities"]))


def anonymous_file() -> int:
    """Return a descriptor of memory that no path names; Linux can seal it against change."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("unlatent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write everything; one call may write less."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def send(connection: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    """Send one line of JSON and perhaps a descriptor with it."""
    line = json.dumps(message).encode("ascii") + b"\n"
    socket.send_fds(connection, [line], [] if descriptor is None else [descriptor])


def receive(connection: socket.socket) -> tuple[dict[str, Any], int | None]:
    """Receive one line and its descriptor; raises `EOFError` when the other side is gone."""
    line, descriptors, _, _ = socket.recv_fds(connection, MAX_LINE_BYTES, 1)
    descriptor = descriptors[0] if descriptors else None
    while not line.endswith(b"\n"):
        more = connection.recv(MAX_LINE_BYTES) if len(line) < MAX_LINE_BYTES else b""
        if not more:
            if descriptor is not None:
                os.close(descriptor)
            raise EOFError
        line += more
    return json.loads(line), descriptor


def main(config: dict[str, Any]) -> None:
    """Serve one parent until it hangs up."""
    connection = socket.socket(fileno=config["socket"])
    decoder: Callable[..., DecodedImage] = _named(config["decoder"])
    reader: Callable[..., ProvenanceRecord] = _named(config["provenance"])
    limits: IntakeLimits = importlib.import_module("detection.intake.decode").IntakeLimits(
        **config["limits"]
    )
    trust = load_trust_lists(config["trust"])
    importlib.import_module("c2pa")  # now, lest loading it counts against the first image
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (config["memory_bytes"], config["memory_bytes"]))
    send(connection, {"ready": True})
    # Codecs print what hostile files make them print; what broke the start is worth reading.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with suppress(EOFError, ConnectionError):  # the parent hung up
        while True:
            _serve(connection, config, decoder, partial(reader, trust=trust), limits)


def _serve(
    connection: socket.socket,
    config: dict[str, Any],
    decoder: Callable[..., DecodedImage],
    reader: Callable[..., ProvenanceRecord],
    limits: IntakeLimits,
) -> None:
    request, source = receive(connection)
    try:
        signal.setitimer(signal.ITIMER_REAL, config["timeout_s"] + GRACE_S)
        reply, result = _answer(decoder, limits, request, source)
        send(connection, reply, result)
        if result is not None:
            os.close(result)
            signal.setitimer(signal.ITIMER_REAL, config["signals_timeout_s"] + GRACE_S)
            send(connection, _provenance(reader, limits, source))
        signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        if source is not None:
            os.close(source)


def _named(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _answer(
    decoder: Callable[..., DecodedImage],
    limits: IntakeLimits,
    request: dict[str, Any],
    source: int | None,
) -> tuple[dict[str, Any], int | None]:
    try:
        image = decoder(_read(source), limits=limits, **request)
        result = anonymous_file()
        for frame in image.sample:
            write_all(result, frame.pixels.data)
    except PermanentError as error:
        return {"refused": error.reason, "message": str(error)[:1000]}, None
    except MemoryError:
        return {"refused": "decode_memory"}, None
    except Exception as error:  # noqa: BLE001 - a codec may raise anything; the parent is told what
        message = f"{type(error).__name__}: {error}"[:1000]
        return {"refused": "decode_error", "message": message}, None
    facts = {
        "sha256": image.sha256,
        "size": image.size_bytes,
        "format": image.format,
        "width": image.width,
        "height": image.height,
        "pdq": image.pdq.hex(),
        "pdq_quality": image.pdq_quality,
    }
    frames = [[frame.number, frame.share] for frame in image.sample]
    return {"facts": facts, "frames": frames}, result


def _provenance(
    reader: Callable[..., ProvenanceRecord], limits: IntakeLimits, source: int | None
) -> dict[str, Any]:
    try:
        found = reader(_read(source), max_metadata_bytes=limits.max_metadata_bytes)
        return {"provenance": found.as_dict()}
    except Exception as error:  # noqa: BLE001 - the image is decoded; the parent is told what
        return {"unread": f"{type(error).__name__}: {error}"[:1000]}


def _read(source: int | None) -> bytes:
    if source is None or os.fstat(source).st_size == 0:
        return b""
    with mmap.mmap(source, 0, access=mmap.ACCESS_READ) as view:
        return view[:]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
