"""Statements of reasons in the format of the DSA Transparency Database, API version 1.

The format is that of the database's API documentation and of the rules by which its published
source checks a request (github.com/digital-services-act/transparency-database,
`StatementStoreRequest`). A statement says what was restricted and why, and nothing of whom: no
uploader, no moderator, no note, no key. What a verdict may lead to is in docs/labelling.md.
"""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from detection.errors import SettingsError
from worker.database.engine import transaction

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sqlalchemy import Engine

    from worker.settings import Dsa

#: The most that one call of the API takes.
STATEMENTS_A_CALL = 100

# A restriction begins with the decision that the image is generated, and ends with one that says
# otherwise; repeated decisions change nothing. Where flags restrict by themselves it began with the
# flag, and the decision that confirms it is no second restriction, nor is a flag of an image that a
# person had found to be generated. What was confirmed is told also of an image that left later.
_DECIDED = """
    SELECT d.id, d.image_id, d.created_at AS begun_at, d.why_reviewed, c.words, v.label, v.tier,
        v.model_version, v.operating_point, coalesce(i.uploaded_at, i.created_at) AS stored_at
    FROM app.decisions d
    JOIN app.images i ON i.id = d.image_id
    LEFT JOIN app.reason_codes c ON c.code = d.reason_code
    LEFT JOIN app.verdicts v ON v.id = d.verdict_id
    WHERE d.created_at >= :since AND d.created_at < :until AND d.id > :after
        AND d.decision = 'generated'
        AND NOT EXISTS (
            SELECT FROM app.decisions x
            WHERE x.image_id = d.image_id AND x.id > d.id AND x.decision <> 'generated'
        )
        AND 'generated' IS DISTINCT FROM (
            SELECT x.decision FROM app.decisions x
            WHERE x.image_id = d.image_id AND x.id < d.id ORDER BY x.id DESC LIMIT 1
        )
        AND NOT (
            CAST(:flags AS boolean) AND coalesce(v.tier IN ('flag', 'flag_high'), false)
            AND NOT EXISTS (
                SELECT FROM app.decisions x WHERE x.image_id = d.image_id AND x.id < d.id
            )
        )
    ORDER BY d.id
    LIMIT :most
"""
_FLAGGED = """
    SELECT v.id, v.image_id, v.scored_at AS begun_at, NULL AS why_reviewed, NULL AS words, v.label,
        v.tier, v.model_version, v.operating_point,
        coalesce(i.uploaded_at, i.created_at) AS stored_at
    FROM app.verdicts v
    JOIN app.images i ON i.id = v.image_id
    WHERE v.role = 'champion' AND (v.tier <> 'allow' OR v.label <> 'real')
        AND v.tier IN ('flag', 'flag_high')
        AND v.scored_at >= :since AND v.scored_at < :until AND v.id > :after
        AND ((i.state = 'scored' AND i.erased_at IS NULL) OR EXISTS (
            SELECT FROM app.decisions x WHERE x.image_id = v.image_id
        ))
        AND 'generated' IS DISTINCT FROM (
            SELECT x.decision FROM app.decisions x
            WHERE x.image_id = v.image_id AND x.created_at < v.scored_at ORDER BY x.id DESC LIMIT 1
        )
        AND NOT EXISTS (
            SELECT FROM app.verdicts x
            WHERE x.image_id = v.image_id AND x.id < v.id AND x.role = 'champion'
                AND x.tier IN ('flag', 'flag_high')
        )
        AND coalesce((
            SELECT x.decision FROM app.decisions x
            WHERE x.image_id = v.image_id ORDER BY x.id DESC LIMIT 1
        ), 'generated') = 'generated'
    ORDER BY v.id
    LIMIT :most
"""


def latest_end(engine: Engine) -> datetime:
    """Return the latest moment that an export may reach to, a whole second, with a time zone.

    A row is stamped before its transaction ends, by the clock of the database. A quarter of an hour
    is longer than any transaction that scores or decides: what began before then can be seen.
    """
    with transaction(engine) as connection:
        end: datetime = connection.execute(
            text("SELECT date_trunc('second', clock_timestamp() - interval '15 minutes')")
        ).scalar_one()
    return end.astimezone(UTC)


def calls(
    engine: Engine, settings: Dsa, *, since: datetime, until: datetime
) -> Iterator[dict[str, Any]]:
    """Yield bodies of the API's call for several statements, at most 100 in each.

    Statements are of restrictions that began from `since` to before `until`, both with a time zone,
    and still stand. Each has an identifier of its own, the same in every export. Raises
    `SettingsError` where the settings lack what every statement has to say.
    """
    if settings.ground_reference is None or settings.explanation is None:
        raise SettingsError(
            "set UNLATENT_DSA__GROUND_REFERENCE (the clause of your terms, or the law) and "
            "UNLATENT_DSA__EXPLANATION (why such content is against it): every statement names both"
        )
    kinds = [("d", _DECIDED)]
    if settings.flags_restrict:
        kinds.append(("v", _FLAGGED))
    statements: list[dict[str, Any]] = []
    for kind, query in kinds:
        after = 0
        while True:
            with transaction(engine) as connection:
                values = {
                    "since": since,
                    "until": until,
                    "after": after,
                    "flags": settings.flags_restrict,
                    "most": STATEMENTS_A_CALL,
                }
                if kind == "v":
                    del values["flags"]
                rows = connection.execute(text(query), values).all()
            for row in rows:
                statements.append(_statement(row, kind, settings))
                if len(statements) == STATEMENTS_A_CALL:
                    yield {"statements": statements}
                    statements = []
            if len(rows) < STATEMENTS_A_CALL:
                break
            after = rows[-1].id
    if statements:
        yield {"statements": statements}


def _statement(row: Any, kind: str, settings: Dsa) -> dict[str, Any]:
    by_person = kind == "d"
    found_by_detector = row.tier not in (None, "allow") and row.why_reviewed not in (
        "report",
        "appeal",
        "requested",
    )
    if not by_person:
        decision = "AUTOMATED_DECISION_FULLY"
    elif found_by_detector:
        decision = "AUTOMATED_DECISION_PARTIALLY"
    else:
        decision = "AUTOMATED_DECISION_NOT_AUTOMATED"
    illegal = settings.ground == "DECISION_GROUND_ILLEGAL_CONTENT"
    reference, explanation = (
        ("illegal_content_legal_ground", "illegal_content_explanation")
        if illegal
        else ("incompatible_content_ground", "incompatible_content_explanation")
    )
    return {
        "decision_visibility": [settings.visibility],
        "decision_ground": settings.ground,
        reference: settings.ground_reference,
        explanation: settings.explanation,
        "content_type": ["CONTENT_TYPE_IMAGE", "CONTENT_TYPE_SYNTHETIC_MEDIA"],
        "category": settings.category,
        "territorial_scope": list(settings.countries),
        "content_date": row.stored_at.date().isoformat(),
        "application_date": row.begun_at.date().isoformat(),
        "decision_facts": _facts(row, by_person=by_person),
        "source_type": (
            settings.report_source if row.why_reviewed == "report" else "SOURCE_VOLUNTARY"
        ),
        "automated_detection": "Yes" if found_by_detector else "No",
        "automated_decision": decision,
        "puid": f"unlatent-{row.image_id}-{kind}{row.id}",
    }


def _facts(row: Any, *, by_person: bool) -> str:
    """Say what led to the restriction, from fixed words alone."""
    facts = []
    if row.label is not None:
        facts.append(
            "A detector of images made by latent diffusion models gave the image the label "
            f'"{row.label}" (model {row.model_version[:12]}, operating point '
            f"{row.operating_point})."
        )
    if by_person:
        facts.append(f"A person looked at it and decided that it is generated: {row.words}")
    else:
        facts.append("No person had decided on it when it was restricted.")
    return " ".join(facts)[:5000]
