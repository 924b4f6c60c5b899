"""What the answers of object storage mean, sorted in one place.

* Passing (`StorageUnavailable`): another try may not meet it.
* Permanent (a `PermanentError` with its reason): it is about this object, and will be the same.
* Unusable (`AnswerUnusable`): no object, and nothing said of it. It may be this object or every
  one: `worker.scoring.storage_breaker` finds out by asking for another. It does so, too, for the
  one permanent answer that leaves this doubt, `AccessDenied`.

Codes are those of Amazon S3's "List of error codes" (API version 2006-03-01) and of servers that
add to it; statuses are of RFC 9110.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.storage.interface import (
    AccessDenied,
    AnswerUnusable,
    ObjectArchived,
    ObjectMissing,
    ObjectReplaced,
    ObjectWithheld,
    StorageUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from detection.errors import PermanentError

    Meaning = type[StorageUnavailable | PermanentError]

_BY_CODE: dict[str, Meaning] = {
    **dict.fromkeys(
        (
            "BandwidthLimitExceeded", "Busy", "ConditionalRequestConflict", "InternalError",
            "OperationAborted", "RequestLimitExceeded", "RequestTimeout", "ServiceUnavailable",
            "SlowDown", "SlowDownRead", "Throttling", "ThrottlingException", "ThrottledException",
            "TooManyRequests",
        ),
        StorageUnavailable,
    ),
    # Faults of credentials, keys and settings, whatever their status.
    **dict.fromkeys(
        (
            "AccessDenied", "AccountProblem", "AllAccessDisabled", "ExpiredToken",
            "InvalidAccessKeyId", "InvalidBucketName", "InvalidToken", "NoSuchBucket",
            "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired",
        ),
        AccessDenied,
    ),
    **dict.fromkeys(
        ("KeyTooLongError", "NoSuchKey", "NoSuchVersion", "NoSuchUpload"), ObjectMissing
    ),
    **dict.fromkeys(
        ("BlobArchived", "InvalidObjectState", "ObjectNotInActiveTierError"), ObjectArchived
    ),
    "PreconditionFailed": ObjectReplaced,
    "UnavailableForLegalReasons": ObjectWithheld,
    # Not a server error that passes, though its status is 501.
    "NotImplemented": AnswerUnusable,
}  # fmt: skip

_BY_STATUS: dict[int, Meaning] = {
    401: AccessDenied,
    402: AccessDenied,
    403: AccessDenied,
    404: ObjectMissing,
    407: AccessDenied,
    408: StorageUnavailable,
    410: ObjectMissing,
    412: ObjectReplaced,
    420: StorageUnavailable,
    425: StorageUnavailable,
    429: StorageUnavailable,
    451: ObjectWithheld,
    501: AnswerUnusable,
    505: AnswerUnusable,
}

_SERVER_ERROR = 500
_BAD_REQUEST = 400
_METHOD_NOT_ALLOWED = 405
#: The service's own keys; S3 answers 400 when one is disabled or gone.
_KEY_MANAGEMENT = "KMS."
#: The settings that say where a bucket is.
_WHERE = "UNLATENT_S3__REGION and UNLATENT_S3__ENDPOINT_URL"
_ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


def sort_answer(
    status: int, code: str, headers: Mapping[str, str], *, versioned: bool = False
) -> Meaning:
    """Say what an answer other than the object means; `versioned` if a version was asked for.

    `code` is empty where the answer has none; names of headers are in lower case.
    """
    code = code or headers.get("x-minio-error-code", "")
    if headers.get("x-amz-delete-marker") == "true":
        return ObjectMissing
    meaning = _BY_CODE.get(code)
    if meaning is not None:
        return meaning
    if code.startswith(_KEY_MANAGEMENT):
        return AccessDenied
    if _is_archived(headers):
        return ObjectArchived
    # No version has such an id, or the id is of a delete marker.
    if versioned and (status == _METHOD_NOT_ALLOWED or code == "InvalidArgument"):
        return ObjectMissing
    otherwise = StorageUnavailable if status >= _SERVER_ERROR else AnswerUnusable
    return _BY_STATUS.get(status, otherwise)


def advice(status: int, code: str, headers: Mapping[str, str]) -> str:
    """Say what a person can do about an unusable answer; empty when only they can know."""
    region = headers.get("x-amz-bucket-region")
    if region:
        return f" The bucket is in region {region}: set {_WHERE}."
    if code in {"PermanentRedirect", "TemporaryRedirect"} or status in {301, 302, 307, 308}:
        return f" The bucket has another address: set {_WHERE}."
    if code == "InvalidRequest" and status == _BAD_REQUEST:
        return " S3 says so of an object that is encrypted with a key of the customer (SSE-C)."
    return ""


def _is_archived(headers: Mapping[str, str]) -> bool:
    if "x-amz-archive-status" in headers:
        return True
    restored = 'ongoing-request="false"' in headers.get("x-amz-restore", "")
    return headers.get("x-amz-storage-class") in _ARCHIVES and not restored
