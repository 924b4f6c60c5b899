"""What moderators depend on while the service runs: signals of origin, and a breaker that looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.integration.moderation.test_policies import populate
from tests.support.images.bad_files import encoded, picture
from tests.support.images.signed_files import signed, signer
from tests.support.processes.worker_process import WorkerProcess
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.ledger.interface import State
from worker.moderation import policies

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from worker.settings import Settings

TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    'xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'i:DigitalSourceType="{TRAINED}"/></rdf:RDF></x:xmpmeta>'
)
CLAIMS = (
    "SELECT exif_make, exif_model, exif_software, exif_taken_at, iptc_digital_source_type, "
    "iptc_asserts_ai, c2pa_state, c2pa_claim_generator LIKE 'Test Camera 1.0%%', c2pa_asserts_ai "
    "FROM moderation.verdicts WHERE image_id = %s"
)


def claiming() -> bytes:
    """Return a JPEG whose EXIF names a camera and whose XMP and C2PA manifest name a model."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0131] = "Lumen", "L-7", "Darkroom 3"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:31 12:00:00"
    return signed(signer(), TRAINED, exif=exif.tobytes(), xmp=XMP.encode())


@pytest.mark.timeout(300)
def test_what_an_upload_claims_stands_beside_its_verdict(
    settings: Settings, engine: Engine, desk: Callable[..., Any]
) -> None:
    """A worker reads EXIF, IPTC and C2PA of what it scores, also where it reuses a verdict."""
    site, body = Site(settings, engine), claiming()
    changed = bytearray(body)
    changed[-40] ^= 1
    with WorkerProcess(settings) as worker:
        worker.wait_until_ready()
        first = site.upload("a.jpg", body, content_type="image/jpeg")
        site.wait_for(first)
        twin = site.upload("twin.jpg", body, content_type="image/jpeg")
        broken = site.upload("changed.jpg", bytes(changed), content_type="image/jpeg")
        plain = site.upload("plain.jpg", encoded(picture(), "JPEG"), content_type="image/jpeg")
        for image in (twin, broken, plain):
            site.wait_for(image)
        assert worker.stop() == 0
    assert site.verdicts(twin)[0].reused_from == first
    someone = desk()
    camera = ("Lumen", "L-7", "Darkroom 3", "2026:01:31 12:00:00")
    for image in (first, twin):
        assert someone.rows(CLAIMS, image) == [(*camera, TRAINED, True, "well_formed", True, True)]
    (told,) = someone.rows(CLAIMS, broken)
    assert told[6] == "broken"
    assert someone.rows(CLAIMS, plain) == [
        (None, None, None, None, None, False, "absent", None, False)
    ]


@pytest.mark.timeout(300)
def test_beat_has_the_breaker_looked_at(
    settings: Settings, engine: Engine, desk: Callable[..., Any]
) -> None:
    """A flood of flags stops flagging of its source without anybody's command."""
    hasty = settings.model_copy(
        update={
            "moderation": settings.moderation.model_copy(update={"check_breakers_every_s": 0.5})
        }
    )
    draft = policies.PolicyDraft(review=0.5, flag=0.9, flag_high=0.98, breaker_images=50)
    policies.activate(engine, draft, reason="band")
    site, someone = Site(settings, engine), desk()
    stopped = "SELECT source, images, flag_share FROM moderation.breakers WHERE closed_at IS NULL"
    with (
        WorkerProcess(hasty) as worker,
        WorkerProcess(hasty, module="worker", arguments=["beat"]) as beat,
    ):
        worker.wait_until_ready()
        populate(engine, [0.1] * 45 + [0.95] * 15, "web")
        eventually(lambda: bool(someone.rows(stopped)), timeout_s=120, what="an open breaker")
        assert someone.rows(stopped) == [("web", 60, 0.25)]
        # The in-memory scorer's score is the brightness.
        bright = site.upload("bright.png", png(250), source="web")
        assert site.wait_for(bright).state == State.SCORED
        assert beat.stop() == 0
        assert worker.stop() == 0
    assert someone.rows("SELECT tier, held FROM moderation.verdicts LIMIT 1") == [("review", True)]
    assert [event["source"] for event in worker.events("flagging_stopped")] == ["web"]
