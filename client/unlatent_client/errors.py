"""What a caller of the client catches."""

from __future__ import annotations


class ServiceError(Exception):
    """The service gave no usable answer."""


class Unreachable(ServiceError):
    """No answer came: no connection, a connection that broke, or a timeout."""


class UnexpectedAnswer(ServiceError):
    """The answer is not one of an unlatent service, for example a proxy's page."""


class Problem(ServiceError):
    """The service refused the request and said why (RFC 9457).

    `status` is the HTTP status. `reason` is the service's word for it, for example `not_an_image`;
    it is None when something before the service answered. `detail` is for people.
    """

    def __init__(self, status: int, reason: str | None, detail: str) -> None:
        super().__init__(f"{status} {reason or 'without a reason'}: {detail}")
        self.status = status
        self.reason = reason
        self.detail = detail


class Busy(Problem):
    """The service cannot answer at the moment (status 503).

    With `reason` "busy" nothing was done; otherwise something that it needs was away, and it may
    have been.

    `retry_after` is the time in seconds that the service asks callers to wait, or None.
    """

    def __init__(
        self, status: int, reason: str | None, detail: str, retry_after: float | None
    ) -> None:
        super().__init__(status, reason, detail)
        self.retry_after = retry_after
