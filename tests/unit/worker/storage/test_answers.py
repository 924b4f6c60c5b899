"""Every answer of an object store has one meaning."""

from __future__ import annotations

import pytest

from detection.errors import PermanentError
from worker.storage.answers import sort_answer
from worker.storage.interface import (
    AccessDenied,
    AnswerUnusable,
    ObjectArchived,
    ObjectMissing,
    ObjectReplaced,
    ObjectWithheld,
    StorageUnavailable,
)

PASSING, UNUSABLE = StorageUnavailable, AnswerUnusable
ARCHIVED_TIER = {"x-amz-archive-status": "DEEP_ARCHIVE_ACCESS"}
RESTORED = {
    "x-amz-storage-class": "GLACIER",
    "x-amz-restore": 'ongoing-request="false", expiry-date="Fri, 21 Dec 2035 00:00:00 GMT"',
}


@pytest.mark.parametrize(
    ("status", "code", "headers", "versioned", "meaning"),
    [
        # Passing: of the moment, not of the object.
        (500, "InternalError", {}, False, PASSING),
        (500, "", {}, False, PASSING),
        (502, "", {}, False, PASSING),
        (503, "SlowDown", {}, False, PASSING),
        (503, "ServiceUnavailable", {}, False, PASSING),
        (504, "", {}, False, PASSING),
        (509, "BandwidthLimitExceeded", {}, False, PASSING),
        (522, "", {}, False, PASSING),
        (429, "TooManyRequests", {}, False, PASSING),
        (408, "", {}, False, PASSING),
        (425, "", {}, False, PASSING),
        (400, "RequestTimeout", {}, False, PASSING),
        (400, "ThrottlingException", {}, False, PASSING),
        (409, "OperationAborted", {}, False, PASSING),
        (404, "", {"x-minio-error-code": "SlowDown"}, False, PASSING),
        # Permanent: of this object.
        (404, "NoSuchKey", {}, False, ObjectMissing),
        (404, "NoSuchVersion", {}, True, ObjectMissing),
        (404, "", {}, False, ObjectMissing),
        (410, "", {}, False, ObjectMissing),
        (400, "KeyTooLongError", {}, False, ObjectMissing),
        (400, "InvalidArgument", {}, True, ObjectMissing),
        (405, "MethodNotAllowed", {}, True, ObjectMissing),
        (405, "", {"x-amz-delete-marker": "true"}, False, ObjectMissing),
        (404, "", {"x-amz-delete-marker": "true"}, False, ObjectMissing),
        (412, "PreconditionFailed", {}, False, ObjectReplaced),
        (412, "", {}, False, ObjectReplaced),
        (403, "InvalidObjectState", {}, False, ObjectArchived),
        (409, "BlobArchived", {}, False, ObjectArchived),
        (403, "", {"x-amz-storage-class": "DEEP_ARCHIVE"}, False, ObjectArchived),
        (403, "", ARCHIVED_TIER, False, ObjectArchived),
        (403, "", RESTORED, False, AccessDenied),
        (451, "UnavailableForLegalReasons", {}, False, ObjectWithheld),
        (451, "", {}, False, ObjectWithheld),
        # Of credentials and settings, if not of this object.
        (401, "", {}, False, AccessDenied),
        (403, "AccessDenied", {}, False, AccessDenied),
        (403, "SignatureDoesNotMatch", {}, False, AccessDenied),
        (403, "RequestTimeTooSkewed", {}, False, AccessDenied),
        (403, "", {}, False, AccessDenied),
        (400, "ExpiredToken", {}, False, AccessDenied),
        (400, "KMS.DisabledException", {}, False, AccessDenied),
        (404, "NoSuchBucket", {}, False, AccessDenied),
        (404, "", {"x-minio-error-code": "NoSuchBucket"}, False, AccessDenied),
        # Unusable: neither the object nor a reason.
        (301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-1"}, False, UNUSABLE),
        (307, "TemporaryRedirect", {}, False, UNUSABLE),
        (400, "AuthorizationHeaderMalformed", {}, False, UNUSABLE),
        (400, "InvalidRequest", {}, False, UNUSABLE),
        (400, "InvalidArgument", {}, False, UNUSABLE),
        (400, "", {}, False, UNUSABLE),
        (405, "MethodNotAllowed", {}, False, UNUSABLE),
        (406, "", {}, False, UNUSABLE),
        (416, "InvalidRange", {}, False, UNUSABLE),
        (418, "", {}, False, UNUSABLE),
        (501, "NotImplemented", {}, False, UNUSABLE),
        (0, "", {}, False, UNUSABLE),
    ],
)
def test_answers_mean(
    status: int,
    code: str,
    headers: dict[str, str],
    versioned: bool,  # noqa: FBT001 - a parameter of the test
    meaning: type[Exception],
) -> None:
    """The meaning is exactly this one: an unusable answer is not tried at once, a passing is."""
    assert sort_answer(status, code, headers, versioned=versioned) is meaning


@pytest.mark.parametrize("status", range(300, 600))
@pytest.mark.parametrize("code", ["", "NeverHeardOf"])
def test_no_answer_is_without_a_meaning(status: int, code: str) -> None:
    """Whatever a server makes up is passing, unusable, or permanent with a reason."""
    meaning = sort_answer(status, code, {})
    assert issubclass(meaning, StorageUnavailable) or (
        issubclass(meaning, PermanentError) and meaning.reason != PermanentError.reason
    )
