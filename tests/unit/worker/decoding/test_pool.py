"""The pool of decoding processes, against decoders that misbehave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from detection.errors import SettingsError
from detection.intake.errors import Truncated
from tests.support.images.signed_files import Authority
from tests.support.waiting import eventually
from worker.decoding.pool import (
    DecodeBusy,
    DecodeError,
    DecodeMemory,
    DecodePool,
    DecoderCrashed,
    DecoderUnavailable,
    DecodeTimeout,
)
from worker.settings import Intake

if TYPE_CHECKING:
    from collections.abc import Iterator

DECODER = "tests.support.processes.misbehaving_decoder:decode"
PROVENANCE = "tests.support.processes.misbehaving_decoder:read_provenance"
WAIT_S = 30.0


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    """A started pool of two processes with a second's patience."""
    pool = DecodePool(
        Intake(
            processes=2,
            timeout_s=1.0,
            signals_timeout_s=1.0,
            memory_bytes=2**30,
            in_flight_bytes=2**20,
        ),
        decoder=DECODER,
        provenance=PROVENANCE,
    )
    pool.start()
    yield pool
    pool.close()


def child_pids() -> set[int]:
    """Return the processes that this one started and that live."""
    pids = set()
    for task in Path("/proc/self/task").iterdir():
        pids |= {int(pid) for pid in (task / "children").read_text().split()}
    return pids


def test_pixels_and_facts_arrive(pool: DecodePool) -> None:
    """What the process decoded is what the worker sees."""
    with pool.decode(b"side 100", wait_s=WAIT_S) as decoded:
        assert decoded.pixels.shape == (100, 100, 3)
        assert decoded.pixels[0, 0].tolist() == [1, 2, 3]
        assert (decoded.pixels[1:] == 7).all()
        assert decoded.facts.pdq == bytes(32)
        assert (decoded.facts.width, decoded.facts.size) == (100, 8)
        assert pool.budget.used_bytes == 30_000
    assert pool.budget.used_bytes == 0


def test_claims_reach_the_decoder(pool: DecodePool, tmp_path: Path) -> None:
    """Key, declared type and digest are handed on, with the limits from the settings."""
    file = tmp_path / "told"
    with pool.decode(
        f"told {file}".encode(), declared_type="image/png", key="ä.png", sha256="ab", wait_s=WAIT_S
    ):
        told = file.read_text()
    for word in ("'image/png'", "'ä.png'", "'ab'", "max_pixels=100000000"):
        assert word in told


@pytest.mark.parametrize(
    ("data", "error", "reason"),
    [
        (b"refuse", Truncated, "truncated"),
        (b"raise 5", DecodeError, "decode_error"),
        (b"hang", DecodeTimeout, "decode_timeout"),
        (b"memory 4000", DecodeMemory, "decode_memory"),
        (b"die", DecoderCrashed, "decoder_crashed"),
    ],
)
def test_a_bad_image_costs_only_itself(
    pool: DecodePool, data: bytes, error: type[Exception], reason: str
) -> None:
    """Each way to fail is its own typed error, and the next image decodes."""
    with pytest.raises(error) as caught:
        pool.decode(data, wait_s=WAIT_S)
    assert caught.value.reason == reason  # type: ignore[attr-defined]
    assert pool.budget.used_bytes == 0
    with pool.decode(b"side 64", wait_s=WAIT_S) as decoded:
        assert decoded.pixels.shape == (64, 64, 3)


@pytest.mark.parametrize("how", ["hang", "raise", "memory", "die", "mistyped"])
def test_signals_that_cannot_be_read_cost_only_themselves(pool: DecodePool, how: str) -> None:
    """Whatever a file's metadata does to its reader, the image is decoded, and so is the next."""
    with pool.decode(f"signals {how}".encode(), wait_s=WAIT_S) as decoded:
        assert decoded.pixels.shape == (64, 64, 3)
        assert decoded.facts.provenance is None
    with pool.decode(b"side 65", wait_s=WAIT_S) as decoded:
        assert decoded.pixels.shape == (65, 65, 3)
        assert decoded.facts.provenance is not None
        assert decoded.facts.provenance.exif.model == str(8 * 2**20)


def test_signals_arrive_whole_and_storable(pool: DecodePool) -> None:
    """The longest texts pass the socket; what Postgres refuses in a text is replaced."""
    with pool.decode(b"signals long", wait_s=WAIT_S) as decoded:
        assert decoded.facts.provenance is not None
        assert decoded.facts.provenance.c2pa.problems == ("\N{PILE OF POO}" * 200,) * 16
    with pool.decode(b"signals unstorable", wait_s=WAIT_S) as decoded:
        assert decoded.facts.provenance is not None
        exif = decoded.facts.provenance.exif
        assert (exif.make, exif.model, exif.software) == ("a?b", "?", "s" * 200)


def test_trust_lists_reach_the_reader(tmp_path: Path) -> None:
    """The PEM files of the settings are read in the processes; a wrong one is named at once."""
    root = Authority.make().write(tmp_path)
    pool = DecodePool(
        Intake(processes=1, c2pa_signers=(root,)), decoder=DECODER, provenance=PROVENANCE
    )
    try:
        with pool.decode(b"signals trust", wait_s=WAIT_S) as decoded:
            assert decoded.facts.provenance is not None
            model = decoded.facts.provenance.exif.model
            assert model == root.read_text()[:200]
    finally:
        pool.close()
    missing = tmp_path / "none.pem"
    with pytest.raises(SettingsError, match=r"none\.pem cannot be read: No such file"):
        DecodePool(Intake(c2pa_time_stamp_authorities=(missing,)))


def test_neighbours_of_a_crash_decode(pool: DecodePool) -> None:
    """Images decoded beside crashing ones are unharmed."""
    files = [b"die" if index % 5 == 0 else f"side {64 + index}".encode() for index in range(20)]

    def side(data: bytes) -> int | str:
        try:
            with pool.decode(data, wait_s=WAIT_S) as decoded:
                return decoded.pixels.shape[0]
        except DecoderCrashed as error:
            return error.reason

    with ThreadPoolExecutor(8) as threads:
        sides = list(threads.map(side, files))
    assert sides == ["decoder_crashed" if i % 5 == 0 else 64 + i for i in range(20)]


def test_a_process_killed_once_is_forgiven(pool: DecodePool, tmp_path: Path) -> None:
    """An image whose process was killed from outside is decoded by the second one."""
    with pool.decode(f"die-once {tmp_path / 'died'}".encode(), wait_s=WAIT_S) as decoded:
        assert decoded.pixels.shape == (64, 64, 3)


def test_a_process_killed_while_idle_costs_nothing(pool: DecodePool) -> None:
    """Idle processes that die are replaced before the next image."""
    for pid in child_pids():
        os.kill(pid, signal.SIGKILL)
    with pool.decode(b"side 64", wait_s=WAIT_S) as decoded:
        assert decoded.pixels.shape == (64, 64, 3)


def test_alone_means_alone(pool: DecodePool, tmp_path: Path) -> None:
    """No two suspects are decoded at the same time."""
    data = f"log {tmp_path / 'log'}".encode()

    def decode(_: int) -> None:
        with pool.decode(data, alone=True, wait_s=WAIT_S):
            pass

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(decode, range(4)))
    assert (tmp_path / "log").read_text() == "in\nout\n" * 4


def test_processes_import_neither_torch_nor_celery(pool: DecodePool, tmp_path: Path) -> None:
    """A decoding process is small: no model, no queue, no database."""
    file = tmp_path / "modules"
    with pool.decode(f"modules {file}".encode(), wait_s=WAIT_S):
        modules = {name.partition(".")[0] for name in file.read_text().split()}
    assert "numpy" in modules
    assert not modules & {"torch", "celery", "kombu", "redis", "sqlalchemy", "boto3", "pytest"}


def test_processes_see_no_secrets(
    pool: DecodePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment of the worker, where the settings are, does not reach a decoding process."""
    monkeypatch.setenv("UNLATENT_REDIS__URL", "redis://:secret@example")
    file = tmp_path / "environment"
    os.kill(next(iter(child_pids())), signal.SIGKILL)
    with pool.decode(f"environment {file}".encode(), wait_s=WAIT_S):
        names = set(file.read_text().split())
    assert names <= {"PYTHONPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LC_CTYPE"}


def test_a_busy_pool_is_transient() -> None:
    """No free process in time is no fault of the image."""
    pool = DecodePool(Intake(processes=1, timeout_s=30.0), decoder=DECODER)
    with pool._one_slot(0.0), pytest.raises(DecodeBusy):
        pool.decode(b"side 64", wait_s=0.01)


def test_a_pool_that_cannot_start_is_transient() -> None:
    """A decoder that cannot be imported is the worker's fault, not the image's."""
    pool = DecodePool(
        Intake(processes=1), decoder="tests.support.processes.misbehaving_decoder:absent"
    )
    with pytest.raises(DecoderUnavailable, match="exit status 1"):
        pool.decode(b"side 64", wait_s=WAIT_S)
    pool.close()


def test_the_frames_of_an_animation_come_with_their_shares(pool: DecodePool) -> None:
    """Each frame has its own pixels, and all of them count against the budget until the end."""
    with pool.decode(b"film 123", wait_s=WAIT_S) as decoded:
        assert [frame.number for frame in decoded.sample] == [10, 11, 12]
        assert [frame.share for frame in decoded.sample] == pytest.approx([1 / 3] * 3)
        assert [set(frame.pixels.ravel().tolist()) for frame in decoded.sample] == [{1}, {2}, {3}]
        assert decoded.frame(12) is decoded.sample[2].pixels
        assert pool.budget.used_bytes == 3 * 64 * 64 * 3
    assert pool.budget.used_bytes == 0


def test_more_frames_than_intake_gives_are_refused(pool: DecodePool) -> None:
    """A process that was taken over cannot make the parent hold a film."""
    with pytest.raises(DecodeError, match="5 frames"):
        pool.decode(b"film 123456", wait_s=WAIT_S)


def test_the_budget_makes_the_next_image_wait(pool: DecodePool) -> None:
    """An image that does not fit beside what is in flight comes when that is done."""
    done = threading.Event()
    first = pool.decode(b"side 500", wait_s=WAIT_S)  # 750 000 of 1 048 576 bytes

    def second() -> None:
        with pool.decode(b"side 400", wait_s=WAIT_S):
            done.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not done.wait(0.3)
    first.__exit__(None, None, None)
    assert done.wait(10)
    thread.join()


def test_an_image_larger_than_the_budget_runs_alone(pool: DecodePool) -> None:
    """The budget never makes an image impossible."""
    with pool.decode(b"side 1000", wait_s=WAIT_S) as decoded:
        assert decoded.pixels.nbytes > 2**20


def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    """A worker that is killed leaves no decoding process, not even one that hangs."""
    pids = tmp_path / "pids"
    script = (
        "import threading, time\n"
        "from pathlib import Path\n"
        "from tests.unit.worker.decoding.test_pool import DECODER, child_pids\n"
        "from worker.decoding.pool import DecodePool\n"
        "from worker.settings import Intake\n"
        "pool = DecodePool(Intake(processes=2, timeout_s=1.0), decoder=DECODER)\n"
        "pool.start()\n"
        "threading.Thread(target=lambda: pool.decode(b'hang', wait_s=9), daemon=True).start()\n"
        f"Path({str(pids)!r}).write_text(' '.join(map(str, child_pids())))\n"
        "time.sleep(0.3)\n"
        "import os; os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    orphans = [int(pid) for pid in pids.read_text().split()]
    assert len(orphans) == 2

    def gone() -> bool:
        return not any(alive(pid) for pid in orphans)

    eventually(gone, timeout_s=15, what="the end of the orphans")


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
