"""Images that hang, starve or kill what reads them cost themselves and nobody else."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import pytest

from tests.support.faults.process_crew import changed
from tests.support.images import bad_files
from tests.support.processes.memory_worker import DIE, HANG
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.ledger.interface import State
from worker.scoring.device_thread import EXIT_STUCK

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.faults.accounting import Accounts
    from tests.support.faults.process_crew import Crew
    from worker.settings import Settings


def test_images_that_harm_the_decoder_fail_with_their_reason(
    site: Site, crew: Crew, accounts: Accounts
) -> None:
    """Killing, hanging and starving the decoder fail those three images; the worker lives on."""
    harmful = {
        site.upload("die.png", b"poison die"): "decoder_crashed",
        site.upload("hang.png", b"poison hang"): "decode_timeout",
        site.upload("memory.png", b"poison memory 4096"): "decode_memory",
    }
    keys = [f"{index}.png" for index in range(8)]
    for index, key in enumerate(keys):
        site.upload(key, png(index))
    worker = crew.worker()
    states = accounts.check([*keys, "die.png", "hang.png", "memory.png"])
    assert states == {State.SCORED: len(keys), State.FAILED: len(harmful)}
    assert {image_id: site.row(image_id).reason for image_id in harmful} == harmful
    assert worker.process.poll() is None


@pytest.mark.full
def test_a_picture_that_unpacks_to_more_than_there_is_fails_alone(
    site: Site, crew: Crew, accounts: Accounts, settings: Settings
) -> None:
    """A megabyte of PNG within the limits on pixels would fill a small decoder's memory."""
    side = 9900
    packer = zlib.compressobj(1)
    row = bytes(1 + 3 * side)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    large = site.upload("large.png", bad_files.png(width=side, height=side, pixels=packed))
    site.upload("small.png", png(1))
    small = changed(settings, "intake", memory_bytes=2**29, timeout_s=60.0)
    worker = crew.worker(settings=changed(small, "scoring", lease_s=150.0))
    states = accounts.check(["large.png", "small.png"], timeout_s=120)
    assert states == {State.SCORED: 1, State.FAILED: 1}
    assert site.row(large).reason == "decompression_bomb"
    assert worker.process.poll() is None


def test_a_hanging_decoder_does_not_outlive_its_killed_worker(
    site: Site, crew: Crew, accounts: Accounts, tmp_path: Path
) -> None:
    """The kernel ends a decoding whose worker is gone; the image then fails in the next worker."""
    started = tmp_path / "log"
    site.upload("hang.png", f"poison log-and-hang {started}".encode())
    worker = crew.worker()
    eventually(started.exists, timeout_s=60, what="a decoding under way")
    crew.kill(worker)
    assert any(process.running for process in crew.left_behind)
    crew.worker()
    assert accounts.check(["hang.png"], processes=crew.left_behind) == {State.FAILED: 1}


def test_a_stuck_device_thread_ends_the_process(
    site: Site, crew: Crew, accounts: Accounts, settings: Settings
) -> None:
    """The watchdog ends a worker whose forward pass hangs; with one death allowed, that is all."""
    strict = changed(settings, "scoring", forward_timeout_s=1.0, max_deaths=1)
    site.upload("hang.png", png(3, corner=HANG))
    assert crew.worker(settings=strict).process.wait(90) == EXIT_STUCK
    site.upload("after.png", png(4))
    crew.worker(settings=strict)
    states = accounts.check(["hang.png", "after.png"], quarantined=["hang.png"])
    assert states == {State.SCORED: 1, State.QUARANTINED: 1}


@pytest.mark.full
@pytest.mark.timeout(300)
def test_images_that_kill_workers_are_quarantined_and_no_others(
    site: Site, crew: Crew, accounts: Accounts, settings: Settings
) -> None:
    """Under a supervisor that restarts workers, only the two culprits end in quarantine."""
    impatient = changed(settings, "scoring", forward_timeout_s=1.0)
    site.upload("die.png", png(3, corner=DIE))
    site.upload("hang.png", png(4, corner=HANG))
    keys = [f"{index}.png" for index in range(8)]
    for index, key in enumerate(keys):
        site.upload(key, png(20 + index))
    worker = crew.worker(settings=impatient)

    def supervised() -> bool:
        nonlocal worker
        if worker.process.poll() is not None:
            worker = crew.worker(settings=impatient)
        accounts.sweeper.tick()
        return accounts.states()[State.PENDING] == 0

    eventually(supervised, timeout_s=170, what="the end of every image")
    culprits = ["die.png", "hang.png"]
    assert accounts.check([*keys, *culprits], quarantined=culprits)[State.SCORED] == len(keys)
