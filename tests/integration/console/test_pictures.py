"""What a browser is given of an image, and what the database hears of it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import psycopg
from PIL import Image
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from worker.console.desk import open_desk
from worker.console.image_view import view_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from tests.integration.console.conftest import Browser
    from tests.integration.moderation.conftest import Desk


def test_a_picture_is_made_anew_and_its_opening_noted(
    desk: Callable[..., Desk],
    browser: Callable[..., Browser],
    stored: Callable[..., tuple[UUID, bytes]],
) -> None:
    """No byte of the upload's metadata reaches the browser, and each look leaves its row."""
    image, uploaded = stored()
    kim = desk("web")
    asking = browser(kim)
    for looks in (1, 2):
        answer = asking.get(f"/images/{image}/preview")
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.headers["cache-control"] == "no-store"
        opened = "SELECT count(*) FROM moderation.audit_trail WHERE action = 'open_image'"
        assert kim.value(opened + " AND image_id = %s", image) == looks
    assert answer.content != uploaded
    for told in (b"SECRETMAKER", b"SECRETCOMMENT", b"Exif"):
        assert told in uploaded
        assert told not in answer.content
    picture = Image.open(io.BytesIO(answer.content))
    assert (picture.format, picture.size) == ("JPEG", (200, 120))


def test_a_removed_original_is_told_of_and_its_place_in_storage_is_not(
    desk: Callable[..., Desk],
    browser: Callable[..., Browser],
    stored: Callable[..., tuple[UUID, bytes]],
    superuser: psycopg.Connection,
) -> None:
    """Its bytes may still be there for a while; nobody opens them any more."""
    image, _ = stored()
    superuser.execute("UPDATE app.images SET object_removed_at = now() WHERE id = %s", [image])
    kim = desk()
    assert browser(kim).get(f"/images/{image}/preview").status_code == 410
    opened = "SELECT bucket, key, version_id, etag FROM moderation.open_image(%s)"
    assert kim.rows(opened, image) == [(None, None, None, None)]


def test_a_hostile_file_is_told_of_and_not_passed_on(
    desk: Callable[..., Desk],
    browser: Callable[..., Browser],
    scored: Callable[..., UUID],
    s3_client: Any,
    settings: Any,
) -> None:
    """A page that somebody uploaded as a picture is refused in words."""
    page = b"<html><script>alert(1)</script>"
    put = s3_client.put_object(Bucket=settings.s3.buckets[0], Key="x.jpg", Body=page)
    image = scored(key="x.jpg", etag=put["ETag"].strip('"'))
    answer = browser(desk()).get(f"/images/{image}/preview")
    assert answer.status_code == 422
    assert "cannot be shown" in answer.text
    assert "<script>alert" not in answer.text


def test_a_blind_look_hides_the_verdict_everywhere_until_it_is_decided(
    desk: Callable[..., Desk],
    browser: Callable[..., Browser],
    scored: Callable[..., UUID],
    superuser: psycopg.Connection,
) -> None:
    """Review, image page and list of an audited image say nothing; after the decision they do."""
    image = scored(0.97, distance=4.25)
    superuser.execute("UPDATE app.reviews SET queue = 'audit' WHERE image_id = %s", [image])
    kim = desk("web")
    asking = browser(kim)
    asking.post("/claim")
    for path in ("/", f"/images/{image}", f"/images/{image}/opinion", f"/images/{image}/change"):
        shown = asking.get(path).text
        assert str(image) in shown, path
        for told in ("0.970", "far beyond", "+4.2", "audit", "data-layer", "History"):
            assert told not in shown, (path, told)
    for path in ("/queue", "/queue?label=generated"):
        shown = asking.get(path).text
        assert "+4.2" not in shown
        assert ("after your look" in shown) == (path == "/queue")
    asking.post(f"/images/{image}/decision", data={"choice": "real real_original"})
    assert kim.value("SELECT blind FROM moderation.decisions") is True
    assert "far beyond" in asking.get(f"/images/{image}").text


def test_no_value_of_a_blind_page_says_what_others_think(
    desk: Callable[..., Desk], scored: Callable[..., UUID], superuser: psycopg.Connection
) -> None:
    """A template cannot tell what it is not given: neither queue, evidence nor decision."""
    image = scored(0.97)
    evidence = "UPDATE app.verdicts SET evidence_uri = 's3://b/e/evidence.json'"
    superuser.execute(evidence + " WHERE image_id = %s", [image])
    superuser.execute("UPDATE app.reviews SET queue = 'audit' WHERE image_id = %s", [image])
    login = desk("web").connection.info
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(login.dsn, password=login.password),
        poolclass=NullPool,
    )
    with open_desk(engine) as asking:
        given = view_of(asking, image)
    assert given["blind"]
    told = {name for name, value in given["facts"].items() if value is not None}
    assert not told & {"queue", "evidence_uri", "decision", "decision_by", "decision_at"}
    assert not given.keys() & {"verdict", "history", "beside", "similar"}


def test_a_second_opinion_is_blind_where_the_verdict_was_not_seen(
    desk: Callable[..., Desk],
    browser: Callable[..., Browser],
    stored: Callable[..., tuple[UUID, bytes]],
) -> None:
    """The page of an opinion hides what others say; the opinion counts as blind."""
    image, _ = stored()
    kim, lee = desk(), desk()
    kim.rows("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", image)
    asking = browser(lee)
    shown = asking.get(f"/images/{image}/opinion").text
    assert kim.name not in shown
    assert "0.970" not in shown
    asking.get(f"/images/{image}/preview")
    asking.post(f"/images/{image}/opinion", data={"choice": "real real_original"})
    assert lee.rows("SELECT decision, blind, agrees FROM moderation.opinions") == [
        ("real", True, False)
    ]


def test_two_sessions_never_hold_one_image(
    desk: Callable[..., Desk], browser: Callable[..., Browser], scored: Callable[..., UUID]
) -> None:
    """Ten images, two people who take them in turns: each image has one of them."""
    images = {scored() for _ in range(10)}
    kim, lee = desk(), desk()
    for _ in range(5):
        for one in (kim, lee):
            asking = browser(one)
            asking.post("/claim")
    held = [
        row[0]
        for one in (kim, lee)
        for row in one.rows("SELECT image_id FROM moderation.my_claims()")
    ]
    assert sorted(held) == sorted(images)


def test_a_spreadsheet_calculates_nothing_of_a_note(
    desk: Callable[..., Desk], browser: Callable[..., Browser], scored: Callable[..., UUID]
) -> None:
    """A note that begins like a formula is text in the list that leads take away."""
    lead = desk(lead=True)
    lead.rows("SELECT moderation.decide(%s, 'real', 'real_original', '=1+1')", scored())
    assert ",'=1+1," in browser(lead).get("/lead/decisions.csv").text


def test_what_the_database_refuses_is_told_in_its_words(
    desk: Callable[..., Desk], browser: Callable[..., Browser], scored: Callable[..., UUID]
) -> None:
    """A claimed image names who holds it; markup in an uploader's name stays text."""
    image = scored(uploader="<b>anna</b>\u202egnp")
    kim, lee = desk(), desk()
    kim.rows("SELECT moderation.claim(%s)", image)
    asking = browser(lee)
    answer = asking.post(f"/images/{image}/decision", data={"choice": "real real_original"})
    assert answer.status_code == 409
    assert f"is claimed by {kim.name}" in answer.text
    shown = asking.get(f"/images/{image}").text
    assert "&lt;b&gt;anna&lt;/b&gt;" in shown
    assert "\u202e" not in shown
