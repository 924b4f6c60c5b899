"""The budget of tries and time within which storage must give an object.

A try counts when storage failed with this object and not with others, which
`worker.scoring.storage_breaker` decides. Time runs from the first failed try, whatever its cause,
and stops while everything is paused.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from worker.scoring.storage_breaker import DenialUndecided, OutageSuspected
from worker.storage.interface import AnswerUnusable, StorageUnavailable, StorageUnreadable

if TYPE_CHECKING:
    from worker.settings import S3

#: An answer that is no use is hardly ever another one later.
_UNUSABLE_TRIES = 3


def counts(error: Exception) -> bool:
    """Say whether an error, as the breaker judged it, is a try that counts."""
    return isinstance(error, StorageUnavailable) and not isinstance(error, OutageSuspected)


def within_budget(error: Exception, settings: S3, *, tries: int, tried_for: timedelta) -> Exception:
    """Return the error to raise: this one, or `StorageUnreadable` when the budget is spent.

    `tries` counted before this one, and the first that failed was `tried_for` ago.
    """
    if not isinstance(error, (StorageUnavailable, DenialUndecided)):
        return error
    tries += counts(error)
    limit = settings.unreadable_tries
    if isinstance(error, AnswerUnusable):
        limit = min(limit, _UNUSABLE_TRIES)
    out_of_tries = counts(error) and tries >= limit
    if not out_of_tries and tried_for < timedelta(hours=settings.unreadable_hours):
        return error
    minutes = tried_for.total_seconds() / 60
    return StorageUnreadable(f"{error} It was the last of {tries} tries in {minutes:.0f} minutes.")
