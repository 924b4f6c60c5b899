"""The console in a real browser: what moderators do all day, by keys, under the strict policy."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys
from sqlalchemy import text

from detection.evidence import make_evidence
from detection.score import Label, Score
from tests.integration.console.conftest import (
    clock,
    console,
    desk,
    pictures,
    scored,
    stored,
    superuser,
)
from tests.support.console.browser import Browser, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any
    from uuid import UUID

    from fastapi import FastAPI
    from sqlalchemy import Engine

    from tests.integration.moderation.conftest import Desk
    from worker.settings import Settings

__all__ = ["clock", "console", "desk", "pictures", "scored", "stored", "superuser"]


@pytest.fixture
def address(console: FastAPI) -> Iterator[str]:
    """Where the console answers."""
    with serving(console) as served:
        yield served


@pytest.fixture
def browser(address: str) -> Iterator[Callable[[Desk], Browser]]:
    """Make browsers that somebody has signed in with."""
    made: list[Browser] = []

    def make(moderator: Desk) -> Browser:
        made.append(Browser(address))
        made[-1].sign_in(moderator.name, str(moderator.connection.info.password))
        return made[-1]

    yield make
    for one in made:
        with closing(one):
            pass


@pytest.fixture
def with_map(
    stored: Callable[..., tuple[UUID, bytes]], engine: Engine, s3_client: Any, settings: Settings
) -> Callable[..., UUID]:
    """Store an image whose evidence has an error map."""

    def store(**values: Any) -> UUID:
        image, _ = stored(**values)
        score = Score(
            probability=0.97,
            label=Label.GENERATED,
            branches={"lare": 3.0, "aligned": 1.0},
            decided_by="lare",
            operating_point="fpr=0.01",
            prior=0.1,
            error_map=np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8),
            distance=1.5,
        )
        bucket = settings.s3.buckets[0]
        pixels = np.full((120, 200, 3), 90, np.uint8)
        for name, data in make_evidence(pixels, score).items():
            s3_client.put_object(Bucket=bucket, Key=f"evidence/{image}/m/{name}", Body=data)
        uri = f"s3://{bucket}/evidence/{image}/m/evidence.json"
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE app.verdicts SET evidence_uri = :uri WHERE image_id = :image"),
                {"uri": uri, "image": image},
            )
        return image

    return store


def _image(browser: Browser) -> str:
    return str(browser.find(".photo").get_attribute("src")).split("/")[-2]


def test_a_moderator_claims_looks_decides_and_changes_it_by_keys(
    desk: Callable[..., Desk], browser: Callable[[Desk], Browser], with_map: Callable[..., UUID]
) -> None:
    """Slider, map, zoom, reveal, a decision and its change: hands stay on the keyboard."""
    first, second = with_map(), with_map()
    kim = desk(lead=True)
    page = browser(kim)
    page.leaving(lambda: page.press("c"))
    image = _image(page)
    page.check()
    loaded = "return document.querySelector('.photo').complete"
    page.until(lambda: page.driver.execute_script(loaded))

    blurred = page.style(".photo", "filter")
    assert "blur" in blurred
    for holding in (page.holding("b"), page.pressing("[data-do=reveal]")):
        with holding:
            assert page.style(".photo", "filter") == "none"
        assert page.style(".photo", "filter") == blurred

    assert page.find("[data-layer=map]").value_of_css_property("display") == "none"
    page.press("m")
    assert page.find("[data-layer=map]").value_of_css_property("display") != "none"
    faint = float(page.style("[data-layer=map]", "opacity"))
    page.press("]", "]")
    assert float(page.style("[data-layer=map]", "opacity")) == pytest.approx(faint + 0.2)
    page.find("[data-do=opacity]").send_keys(Keys.ARROW_LEFT)
    assert float(page.style("[data-layer=map]", "opacity")) == pytest.approx(faint + 0.1)

    width = page.find(".photo").size["width"]
    page.press("+", "+")
    assert page.style(".photo", "image-rendering") == "pixelated"
    assert page.find(".photo").size["width"] == 400 != width
    page.press("0")
    page.check()

    page.leaving(lambda: page.press("g", "1"))
    assert kim.rows("SELECT image_id::text, decision, reason_code FROM moderation.decisions") == [
        (image, "generated", "generated_artefacts")
    ]
    assert _image(page) == str(({first, second} - {type(first)(image)}).pop())

    page.leaving(lambda: page.press("z"))
    page.check()
    page.leaving(lambda: page.press("r", "2"))
    assert (
        kim.value("SELECT decision FROM moderation.decisions ORDER BY decision_id DESC LIMIT 1")
        == "real"
    )
    page.check()


def test_a_skipped_image_goes_to_somebody_else(
    desk: Callable[..., Desk], browser: Callable[[Desk], Browser], with_map: Callable[..., UUID]
) -> None:
    """Whoever skips sees it no more, the next person gets it, and two never hold it."""
    image = str(with_map())
    kim, lee = browser(desk()), browser(desk())
    kim.leaving(lambda: kim.press("c"))
    assert _image(kim) == image
    lee.leaving(lambda: lee.press("c"))
    assert not lee.has(".photo"), "two browsers hold one image"
    kim.leaving(lambda: kim.press("s"))
    assert not kim.has(".photo")
    kim.leaving(lambda: kim.press("c"))
    assert not kim.has(".photo")
    lee.leaving(lambda: lee.press("c"))
    assert _image(lee) == image


def test_an_appeal_is_closed_by_somebody_else(
    desk: Callable[..., Desk], browser: Callable[[Desk], Browser], with_map: Callable[..., UUID]
) -> None:
    """Whoever decided is not offered the appeal; another person overturns it by keys."""
    image = with_map()
    kim, lee = desk(), desk()
    kim.rows("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", image)
    kim.rows("SELECT moderation.open_appeal(%s, 'It is mine')", image)
    decider, other = browser(kim), browser(lee)
    decider.open("/appeals")
    assert "It is mine" in decider.find("main").text
    assert not decider.has("tbody button")
    decider.check()
    other.open("/appeals")
    other.leaving(other.find("tbody button").click)
    other.check()
    other.leaving(lambda: other.press("r", "2"))
    assert kim.value("SELECT status FROM moderation.appeals") == "overturned"


def test_settings_outlive_a_reload_and_rule_every_page(
    desk: Callable[..., Desk], browser: Callable[[Desk], Browser], with_map: Callable[..., UUID]
) -> None:
    """Dark, no blur, grey, no keys: chosen once, kept, and nothing breaks the policy or axe."""
    image = with_map()
    page = browser(desk(lead=True))
    for path in ("/", "/queue", "/appeals", "/lead", "/lead/quality", "/settings"):
        page.open(path)
        page.check()
    light = page.style("body", "background-color")
    for choice in ("[name=theme][value=dark]", "[name=blur][value=none]", "[name=keys][value=off]"):
        page.find(choice).click()
    page.find("[name=grayscale][value=on]").click()
    page.leaving(page.find("button.main").click)
    page.driver.refresh()
    assert page.style("body", "background-color") != light
    assert page.find("[name=theme][value=dark]").is_selected()
    for path in ("/", "/queue", "/appeals", "/lead", "/settings", f"/images/{image}"):
        page.open(path)
        page.check()
    assert page.style(".photo", "filter") == "blur(0px) grayscale(1)"
    page.press("+")
    assert page.find("[data-zoom]").text == "fit"


def test_every_control_is_reached_with_tab_alone(
    desk: Callable[..., Desk], browser: Callable[[Desk], Browser], with_map: Callable[..., UUID]
) -> None:
    """Sign in, claim, and reach the last control of the page without a mouse and without keys."""
    with_map()
    page = browser(desk())
    page.leaving(lambda: page.press("c"))
    reached = set()
    order = "a[href], button, input, select, summary, .stage"
    wanted = len(page.driver.find_elements("css selector", f":is({order}):not([type=hidden])"))
    for _ in range(wanted + 5):
        page.press("\ue004")
        reached.add(
            page.driver.execute_script(
                f"return [...document.querySelectorAll('{order}')].indexOf(document.activeElement)"
            )
        )
        ring = page.driver.switch_to.active_element.value_of_css_property("outline-style")
        assert ring != "none" or -1 in reached
    hidden = page.driver.execute_script(
        "return [...document.querySelectorAll('dialog:not([open]) button')].length"
    )
    assert len(reached - {-1}) >= wanted - hidden


def test_a_blind_page_says_nothing_before_the_decision(
    desk: Callable[..., Desk],
    browser: Callable[[Desk], Browser],
    with_map: Callable[..., UUID],
    superuser: Any,
) -> None:
    """The page's source has no score, label, map or queue of an audited image."""
    image = with_map()
    superuser.execute("UPDATE app.reviews SET queue = 'audit' WHERE image_id = %s", [image])
    page = browser(desk())
    page.leaving(lambda: page.press("c"))
    source = page.driver.page_source
    assert str(image) in source
    for told in ("0.97", "beyond", "audit", "/map", "Score", "data-layer", "flagged", "Branch"):
        assert told not in source, told
    page.check()
    page.open(f"/images/{image}/map")
    assert "There is no map" in page.find("main").text
