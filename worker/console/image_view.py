"""All that a page shows of one image; before a blind look nothing that says what others think."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from worker.console.desk import Desk

#: Columns of `moderation.verdicts` that say what the file claims, not what the detector found.
_CLAIMS = """
    SELECT exif_make, exif_model, exif_software, exif_taken_at, iptc_digital_source_type,
        c2pa_state, c2pa_signer_state, c2pa_signer, c2pa_signed_at, c2pa_claim_generator,
        c2pa_problems, declares_ai, declared_generator, declared_where
    FROM moderation.verdicts WHERE image_id = :image
"""
_VERDICT = """
    SELECT label, score, distance, distance_words, tier,
        moderation.tier_words(tier, label) AS tier_words, held, operating_point, prior,
        decided_by_branch, branches, model_version, scored_at, explanation, inapplicable_reason,
        frame, thresholds_hold
    FROM moderation.verdicts WHERE image_id = :image
"""
_HISTORY = """
    SELECT at, event, actor, summary, detail ->> 'note' AS note FROM moderation.image_history
    WHERE image_id = :image
"""
#: Facts that say what others think.
_TELLING = ("queue", "evidence_uri", "decision", "decision_by", "decision_at", "decision_id")
#: Near-duplicates shown; the whole list is a query of its own.
_SIMILAR = 12


def is_blind(desk: Desk, facts: Mapping[str, Any]) -> bool:
    """Say whether the caller must look at an image before they learn what others say of it.

    Besides what they were given blind, that is whatever waits in the random audit.
    """
    if facts["blind"] or facts["queue"] != "audit" or facts["decision_by"] == desk.me.name:
        return bool(facts["blind"])
    return bool(
        desk.value("SELECT blind FROM moderation.look_blind(:image)", image=facts["image_id"])
    )


def view_of(desk: Desk, image: UUID, *, hide: bool = False) -> dict[str, Any]:
    """Return the values of a page about an image; raises `Refused` for one not to be seen.

    `hide` leaves out what others say, also where the caller knows it already.

    The layers are storage's to tell, which is asked when the transaction is over.
    """
    facts = desk.image(image)
    blind = is_blind(desk, facts) or hide
    if blind:
        facts = dict(facts) | dict.fromkeys(_TELLING)
    known: dict[str, Any] = {
        "facts": facts,
        "blind": blind,
        "claims": desk.first(_CLAIMS, image=image),
        "reasons": reasons_of(desk),
        "mine": facts["claimed_by"] == desk.me.name,
    }
    if not blind:
        known |= {
            "verdict": desk.first(_VERDICT, image=image),
            "history": desk.rows(_HISTORY, image=image),
            "beside": desk.rows("SELECT * FROM moderation.same_uploader(:image)", image=image),
            "similar": desk.rows(
                "SELECT * FROM moderation.similar_images(:image, 31, :most, true)",
                image=image,
                most=_SIMILAR,
            ),
        }
    return known


def reasons_of(desk: Desk) -> dict[str, list[Mapping[str, Any]]]:
    """Return the reasons of each decision, in the order in which their keys are."""
    found: dict[str, list[Mapping[str, Any]]] = {"generated": [], "real": [], "unsure": []}
    for row in desk.rows("SELECT code, decision, words FROM moderation.reasons ORDER BY code"):
        found[row["decision"]].append(row)
    return found
