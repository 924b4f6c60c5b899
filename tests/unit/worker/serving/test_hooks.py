"""The hook of pict-rs: 200 stores an upload, 406 refuses it, and failures are counted."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.support.serving.http_service import Gate, in_thread
from tests.unit.worker.serving.test_check import grey
from worker.scoring.memory import MemoryScorer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.serving.http_service import Rig

COUNTED = "unlatent_http_hooks_total"


@pytest.mark.parametrize(
    ("brightness", "status", "outcome"),
    [(250, 406, "refused"), (128, 200, "stored"), (10, 200, "stored")],
)
def test_only_what_is_called_generated_is_refused(
    brightness: int, status: int, outcome: str, serve: Callable[..., Rig]
) -> None:
    """An upload that is `generated` gets 406; what is unsure or real is stored."""
    rig = serve()
    kind = {"Content-Type": "image/png"}
    answer = rig.client.post("/hooks/pict-rs/any", content=grey(brightness), headers=kind)
    assert answer.status_code == status
    assert rig.sample(COUNTED, hook="pict-rs", outcome=outcome) == 1


@pytest.mark.parametrize(
    ("fail_open", "status", "outcome"),
    [(True, 200, "failed_open"), (False, 406, "failed_closed")],
)
@pytest.mark.parametrize("data", [b"no image", grey(13)])
def test_the_settings_say_what_a_failed_check_does(
    fail_open: bool,  # noqa: FBT001 - a table
    status: int,
    outcome: str,
    data: bytes,
    serve: Callable[..., Rig],
) -> None:
    """An upload that cannot be checked is stored or refused as set, and counted as that."""

    def fail(images: object) -> None:
        if any(int(image.mean()) == 13 for image in images):  # type: ignore[attr-defined]
            raise ZeroDivisionError

    rig = serve(scorer=MemoryScorer(before=fail), hooks_fail_open=fail_open)
    assert rig.client.post("/hooks/pict-rs/any", content=data).status_code == status
    assert rig.sample(COUNTED, hook="pict-rs", outcome=outcome) == 1


@pytest.mark.parametrize(
    ("fail_open", "status", "outcome"),
    [(True, 200, "failed_open"), (False, 406, "failed_closed")],
)
def test_a_full_service_does_what_the_settings_say(
    fail_open: bool,  # noqa: FBT001 - a table
    status: int,
    outcome: str,
    serve: Callable[..., Rig],
) -> None:
    """While all places are taken an upload is stored or refused as set, and counted as that."""
    gate = Gate()
    rig = serve(scorer=MemoryScorer(before=gate), requests=1, hooks_fail_open=fail_open)
    gate.arm()
    first = in_thread(rig.client.post, "/v1/check", content=grey())
    assert gate.reached.wait(60)
    assert rig.client.post("/hooks/pict-rs/any", content=grey()).status_code == status
    gate.opened.set()
    assert first.result(60).status_code == 200
    assert rig.sample(COUNTED, hook="pict-rs", outcome=outcome) == 1


def test_the_key_in_the_path_is_needed_and_kept_out_of_metrics(serve: Callable[..., Rig]) -> None:
    """A wrong key gets 401, and metrics name the route without its key."""
    digest = hashlib.sha256(b"sesame").hexdigest()
    client = serve(keys={"lemmy": digest}, host="10.0.0.7").client
    assert client.post("/hooks/pict-rs/wrong", content=grey(250)).status_code == 401
    assert client.post("/hooks/pict-rs/sesame", content=grey(250)).status_code == 406
    assert "sesame" not in client.get("/metrics").text
