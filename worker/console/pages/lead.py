"""For leads: how people and models do, what rules, and lists to take away."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from worker.console.desk import Desk, Refused
from worker.console.pages.signed_in import SignedIn
from worker.console.rendering import page
from worker.text import escape_formula

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

router = APIRouter()

Days = Annotated[int, Query(ge=1, le=366)]

_PEOPLE = """
    SELECT moderator, count(*) AS decisions, count(overturned_by) AS overturned,
        count(*) FILTER (WHERE blind) AS blind,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds_to_decision) AS seconds
    FROM moderation.decisions WHERE created_at > now() - make_interval(days => :days)
    GROUP BY moderator ORDER BY decisions DESC
"""
_AGREEMENT = "SELECT * FROM moderation.agreement ORDER BY source, blind"
_BREAKERS = """
    SELECT * FROM moderation.breakers ORDER BY closed_at IS NOT NULL, opened_at DESC LIMIT 20
"""
_POLICIES = """
    SELECT * FROM moderation.policies WHERE in_force ORDER BY source NULLS FIRST
"""
_RECALL = "SELECT * FROM moderation.recall(NULL, now() - make_interval(days => :days))"
_QUALITY = """
    SELECT * FROM moderation.model_quality WHERE week > current_date - :days
    ORDER BY week DESC, source, model_version
"""
#: Lists to take away. More rows than this would not fit the memory of many spreadsheets.
_MOST = 100_000
_LISTS = {
    "decisions": f"""
        SELECT decision_id, created_at, image_id, source, moderator, decision, reason_code, note,
            why_reviewed, overturns, overturned_by, label, score, tier, model_version, blind,
            seconds_to_decision
        FROM moderation.decisions WHERE created_at > now() - make_interval(days => :days)
        ORDER BY created_at LIMIT {_MOST}
    """,  # noqa: S608 - constants
    "audit": f"""
        SELECT at, actor, action, image_id, source, reason, detail
        FROM moderation.audit_trail WHERE at > now() - make_interval(days => :days)
        ORDER BY at LIMIT {_MOST}
    """,  # noqa: S608 - constants
}


@router.get("/lead")
def lead(request: Request, moderator: SignedIn, days: Days = 7) -> Response:
    """Show people, agreement, breakers and policies."""
    with moderator.desk() as desk:
        _only_leads(desk)
        return page(
            request,
            "lead.html",
            me=desk.me,
            days=days,
            people=desk.rows(_PEOPLE, days=days),
            agreement=desk.rows(_AGREEMENT),
            breakers=desk.rows(_BREAKERS),
            policies=desk.rows(_POLICIES),
        )


@router.get("/lead/quality")
def quality(request: Request, moderator: SignedIn, days: Days = 30) -> Response:
    """Show how right the models were: a page of its own, as it reads every verdict of the time."""
    with moderator.desk() as desk:
        _only_leads(desk)
        return page(
            request,
            "quality.html",
            me=desk.me,
            days=days,
            recall=desk.rows(_RECALL, days=days),
            quality=desk.rows(_QUALITY, days=days),
        )


@router.get("/lead/decisions.csv")
def decisions_csv(moderator: SignedIn, days: Days = 31) -> Response:
    """Give the decisions of the last days."""
    return _csv(moderator, "decisions", days)


@router.get("/lead/audit.csv")
def audit_csv(moderator: SignedIn, days: Days = 31) -> Response:
    """Give the audit of the last days."""
    return _csv(moderator, "audit", days)


def _only_leads(desk: Desk) -> None:
    if not desk.me.lead:
        raise Refused("This page is for leads.", hint="An operator makes one.")


def _csv(moderator: SignedIn, name: str, days: int) -> Response:
    with moderator.desk() as desk:
        _only_leads(desk)
        rows = desk.rows(_LISTS[name], days=days)
    return Response(
        _written(rows),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}.csv"'},
    )


def _written(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    if rows:
        writer.writerow(rows[0].keys())
    writer.writerows([_harmless(value) for value in row.values()] for row in rows)
    return text.getvalue()


def _harmless(value: object) -> object:
    return escape_formula(value) if isinstance(value, str) else value
