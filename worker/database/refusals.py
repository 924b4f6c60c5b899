"""What our functions in the database refuse, as HTTP's status and words for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from sqlalchemy import exc

from worker.database.engine import LedgerUnavailable

if TYPE_CHECKING:
    import psycopg

#: SQLSTATEs (PostgreSQL's manual, appendix A) that our functions raise, as HTTP's status.
_STATUS = {"42501": 403, "P0002": 404, "02000": 404, "55000": 409, "22023": 422}
#: What values that are no uuid, number or time are refused with.
_DATA = "22"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the database did not do what was asked; `hint` says what to do about it."""

    message: str
    hint: str | None
    status: int


def read_refusal(error: exc.DBAPIError | LedgerUnavailable) -> Refusal | None:
    """Return what a function of ours refuses; None for an error that is no refusal."""
    # The driver counts refusals for an object's state among the errors of operation.
    cause = error.__cause__ if isinstance(error, LedgerUnavailable) else error
    if not isinstance(cause, exc.DBAPIError):
        return None
    state = getattr(cause.orig, "sqlstate", None)
    if state is None:
        return None
    status = _STATUS.get(state, 422 if state.startswith(_DATA) else None)
    if status is None:
        return None
    told = cast("psycopg.Error", cause.orig).diag  # as it has an SQLSTATE
    message = told.message_primary or str(cause.orig)
    return Refusal(message=message, hint=told.message_hint, status=status)
