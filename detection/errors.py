"""The exception tree that every part of unlatent shares.

Retry policy reads two branches only: a `TransientError` is worth another try,
a `PermanentError` ends the image as `failed` with a reason a person can read.
"""

from __future__ import annotations

from typing import ClassVar


class UnlatentError(Exception):
    """Something went wrong in unlatent."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or type(self).__name__).strip().splitlines()[0])


class TransientError(UnlatentError):
    """A fault outside the image that another try may not meet."""


class PermanentError(UnlatentError):
    """A fault that every further try would meet again."""

    #: Stable machine-readable code: the `reason` column of the ledger, metric label, CLI filter.
    reason: ClassVar[str] = "failed"


class SettingsError(UnlatentError):
    """A setting, a path or a model that the caller named cannot be used."""
