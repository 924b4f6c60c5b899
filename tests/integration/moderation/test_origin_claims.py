"""What files declare, and why images cannot be judged, as moderators see it."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from detection.intake.metadata.c2pa_manifest import C2pa, Ingredient, ManifestState, SignerState
from detection.intake.provenance import ProvenanceRecord
from worker.ledger import provenance

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import Engine

SEEN = (
    "SELECT declares_ai, declared_generator, declared_where, c2pa_state, c2pa_signer_state, "
    "c2pa_signer, c2pa_signed_at, c2pa_problems, c2pa_ingredients "
    "FROM moderation.verdicts WHERE image_id = %s"
)
RECORD = ProvenanceRecord(
    declares_ai=True,
    declared_generator="ComfyUI",
    declared_where=("PNG tEXt prompt", "PNG tEXt workflow"),
    c2pa=C2pa(
        state=ManifestState.WELL_FORMED,
        signer="Lumen L-7, Lumen",
        signer_state=SignerState.EXPIRED,
        signed_at="2026-01-31T12:00:00+00:00",
        ingredients=(
            Ingredient(relationship="inputTo", problems=("assertion.dataHash.mismatch",)),
        ),
    ),
)


def test_what_a_file_declares_is_shown(
    scored: Callable[..., UUID], engine: Engine, desk: Callable[..., Any]
) -> None:
    """Generator, places, signer, time and ingredients stand beside the verdict."""
    image = scored(0.2)
    with engine.begin() as connection:
        provenance.store_provenance(connection, {image: RECORD})
    ingredient = {
        "relationship": "inputTo",
        "asserts_ai": False,
        "problems": ["assertion.dataHash.mismatch"],
    }
    assert desk().rows(SEEN, image) == [
        (
            True,
            "ComfyUI",
            ["PNG tEXt prompt", "PNG tEXt workflow"],
            "well_formed",
            "expired",
            "Lumen L-7, Lumen",
            dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC),
            [],
            [ingredient],
        )
    ]


@pytest.mark.parametrize(
    ("stored", "problems", "state", "signer_state"),
    [
        ("valid", [], "well_formed", "unknown"),
        ("invalid", ["assertion.dataHash.mismatch"], "broken", None),
        ("invalid", ["signingCredential.expired"], "well_formed", "expired"),
        (
            "invalid",
            ["assertion.dataHash.mismatch", "signingCredential.expired"],
            "broken",
            None,
        ),
        ("unreadable", ["C2paError"], "unreadable", None),
        ("absent", [], "absent", None),
    ],
)
def test_rows_of_earlier_releases_stay_readable(
    scored: Callable[..., UUID],
    engine: Engine,
    desk: Callable[..., Any],
    stored: str,
    problems: list[str],
    state: str,
    signer_state: str | None,
) -> None:
    """The words that earlier releases stored are shown in those of this one."""
    image = scored(0.9)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO app.provenance (image_id, iptc_asserts_ai, c2pa_state, "
                "c2pa_digital_source_types, c2pa_asserts_ai, c2pa_problems) "
                "VALUES (:image, true, :state, '{}', false, :problems)"
            ),
            {"image": image, "state": stored, "problems": problems},
        )
    someone = desk()
    for view in ("verdicts", "review_queue"):
        seen = someone.rows(
            f"SELECT c2pa_state, c2pa_signer_state, declares_ai FROM moderation.{view} "  # noqa: S608
            "WHERE image_id = %s",
            image,
        )
        assert seen == [(state, signer_state, True)]


def test_why_an_image_cannot_be_judged_is_shown(
    scored: Callable[..., UUID], engine: Engine, desk: Callable[..., Any]
) -> None:
    """The reason is a column of its own and ends the explanation; other images have none."""
    plain, blank = scored(0.2), scored(0.2)
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE app.verdicts SET label = 'unsure', inapplicable_reason = :why "
                "WHERE image_id = :image"
            ),
            {"image": blank, "why": "too small: 64 pixels"},
        )
    told = "SELECT inapplicable_reason, explanation FROM moderation.verdicts WHERE image_id = %s"
    someone = desk()
    ((reason, explanation),) = someone.rows(told, blank)
    assert reason == "too small: 64 pixels"
    assert explanation.endswith("Nothing can be told of such an image (too small: 64 pixels).")
    ((reason, explanation),) = someone.rows(told, plain)
    assert reason is None
    assert "Nothing can be told" not in explanation
