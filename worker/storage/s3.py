"""Object storage over boto3."""

from __future__ import annotations

import functools
import random
import time
from contextlib import closing
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import boto3
import structlog
import urllib3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.parsers import ResponseParserError

from detection.errors import PermanentError, TransientError
from worker.backoff import backoff_s
from worker.storage.answers import advice, sort_answer
from worker.storage.content_encoding import undo_encodings
from worker.storage.etags import bare_etag, is_same, is_stand_in, stand_in
from worker.storage.interface import (
    AccessDenied,
    AnswerUnusable,
    ObjectFacts,
    ObjectMissing,
    ObjectReplaced,
    ObjectTooLarge,
    StorageUnavailable,
    check_address,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from botocore.response import StreamingBody

    from worker.settings import S3, Settings

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")

_CHUNK_BYTES = 256 * 1024
#: At least the task threads of a worker, so that none waits for another's connection.
_CONNECTIONS = 64
_TRIES = 3
_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 1.0

#: The answers to a condition that is not met, and to one that the server does not know.
_NOT_MET = 412
_NOT_UNDERSTOOD = 501

#: Answers to a request that a store does not implement.
_UNSUPPORTED = frozenset({400, 405, 501})

#: Entries of a page of a listing, and of one that is asked for one key.
_PAGE = 1000
_SHORT_PAGE = 20


class _Connection:
    def __init__(self, settings: S3) -> None:
        self._buckets = frozenset(settings.buckets)
        self._fetch_timeout_s = settings.fetch_timeout_s
        keys = (settings.access_key_id, settings.secret_access_key)
        key_id, secret = (None if key is None else key.get_secret_value() for key in keys)
        self._client: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            config=Config(
                connect_timeout=settings.connect_timeout_s,
                read_timeout=settings.read_timeout_s,
                max_pool_connections=_CONNECTIONS,
                # One policy of retries, ours: boto3's own also repeats what time does not mend.
                retries={"total_max_attempts": 1},
                # Names of buckets are no host names at most servers that are not Amazon's.
                s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
                # Other servers refuse checksums in trailers; those of answers are verified.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_supported",
            ),
        )

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    def _retrying(
        self, request: Mapping[str, Any], call: Callable[[], _T], *, deadline: float | None = None
    ) -> _T:
        until = time.monotonic() + self._fetch_timeout_s if deadline is None else deadline
        for failures in range(_TRIES):
            try:
                return _naming(request, call)
            except AnswerUnusable:
                raise
            except StorageUnavailable as error:
                delay_s = backoff_s(failures, first_s=_FIRST_DELAY_S, longest_s=_LONGEST_DELAY_S)
                wait_s = delay_s * (0.5 + random.random())  # noqa: S311 - jitter, not a secret
                if failures + 1 == _TRIES or time.monotonic() + wait_s > until:
                    raise
                _log.info("storage_call_retried", error=str(error), wait_s=wait_s)
                time.sleep(wait_s)
        raise AssertionError


class _Objects(_Connection):
    """One object at a time: read, written, removed, given an address."""

    def head(self, bucket: str, key: str, *, version_id: str | None = None) -> ObjectFacts:
        """Ask for an object's facts."""
        check_address(bucket, key, allowed=self._buckets)
        request = {"Bucket": bucket, "Key": key, **_version(version_id)}

        def once() -> dict[str, Any]:
            try:
                told: dict[str, Any] = self._client.head_object(**request)
            except ClientError as error:
                if not _is_mute(error):
                    raise
                # HEAD has no body to say why: an expired key, a key of the customer's and a
                # gateway that knows no HEAD look the same. GET tells them apart.
                told = self._client.get_object(**request)
                told["Body"].close()
            return told

        told = self._retrying(request, once)
        return ObjectFacts(
            bucket=bucket,
            key=key,
            size=told.get("ContentLength"),
            etag=_etag(told),
            version_id=_real_version(told.get("VersionId")),
            content_type=told.get("ContentType"),
            modified_at=told.get("LastModified"),
        )

    def fetch(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        etag: str | None = None,
        max_bytes: int,
    ) -> bytes:
        """Download one object within `s3.fetch_timeout_s`, retries included.

        Its content encoding is undone. What storage cannot compare with `etag` is compared here.
        """
        check_address(bucket, key, allowed=self._buckets)
        request = {"Bucket": bucket, "Key": key, **_version(version_id)}
        deadline = time.monotonic() + self._fetch_timeout_s

        def once() -> bytes:
            answer = self._get(request, etag)
            with closing(answer["Body"]) as body:
                length = answer.get("ContentLength")
                if length is not None and length > max_bytes:
                    message = f"The object has {length} bytes; the limit is {max_bytes}."
                    raise ObjectTooLarge(message)
                data = _read(body, max_bytes=max_bytes, deadline=deadline)
            return undo_encodings(data, answer.get("ContentEncoding", ""), max_bytes=max_bytes)

        return self._retrying(request, once, deadline=deadline)

    def _get(self, request: Mapping[str, str], etag: str | None) -> dict[str, Any]:
        """Ask for an object with this etag; raises `ObjectReplaced` when it has another."""
        if etag is None or is_stand_in(etag):
            answer = self._client.get_object(**request)
        else:
            try:
                answer = self._client.get_object(**request, IfMatch=f'"{etag}"')
            except ClientError as error:
                status = _answer(error)[0]
                # A weak tag never meets a condition (RFC 9110, section 13.1.1), and some servers
                # know none: what an unconditional request returns says which object it is.
                if status != _NOT_UNDERSTOOD and not (
                    status == _NOT_MET and self._has_tag(request, etag)
                ):
                    raise
                answer = self._client.get_object(**request)
        found = _etag(answer)
        comparable = etag and found and is_stand_in(etag) == is_stand_in(found)
        if comparable and not is_same(etag or "", found or ""):
            answer["Body"].close()
            raise ObjectReplaced
        if not comparable and _is_page(answer):
            answer["Body"].close()
            message = "A web page came in place of the object, as of a firewall or a login."
            raise AnswerUnusable(message)
        return cast("dict[str, Any]", answer)

    def _has_tag(self, request: Mapping[str, str], etag: str) -> bool:
        try:
            return bare_etag(self._client.head_object(**request).get("ETag")) == etag
        except ClientError:
            return False

    def put(self, bucket: str, key: str, body: bytes, *, content_type: str) -> ObjectFacts:
        """Store one object."""
        check_address(bucket, key, allowed=self._buckets)
        request = {"Bucket": bucket, "Key": key}
        told = self._retrying(
            request,
            lambda: self._client.put_object(**request, Body=body, ContentType=content_type),
        )
        etag = bare_etag(told.get("ETag"))
        if etag is None:
            return self.head(bucket, key, version_id=_real_version(told.get("VersionId")))
        return ObjectFacts(
            bucket=bucket,
            key=key,
            size=len(body),
            etag=etag,
            version_id=_real_version(told.get("VersionId")),
            content_type=content_type,
        )

    def delete(
        self, bucket: str, key: str, *, version_id: str | None = None, etag: str | None = None
    ) -> None:
        """Remove one object, or one version of it; removing what is not there is no error.

        With `etag`, HEAD compares first and the request says If-Match as well. A store that does
        not know If-Match on DELETE (it ignores the header, or refuses it with 400 or 501) leaves
        the moment between the two: what is stored in it is lost.
        """
        check_address(bucket, key, allowed=self._buckets)
        request = {"Bucket": bucket, "Key": key, **_version(version_id)}
        delete = functools.partial(self._client.delete_object, **request)
        try:
            if etag is not None:
                found = self.head(bucket, key, version_id=version_id)
                if not is_same(etag, found.etag or ""):
                    raise ObjectReplaced("The object is another one by now.")
                if not is_stand_in(etag):
                    matching = functools.partial(delete, IfMatch=f'"{etag}"')
                    ask = functools.partial(_if_implemented, matching)
                    if self._retrying(request, ask) is not None:
                        return
            self._retrying(request, delete)
        except ObjectMissing:
            return

    def presign(self, bucket: str, key: str, *, expires_s: int) -> str:
        """Return an address that anybody can read the object at for a while; asks no server."""
        check_address(bucket, key, allowed=self._buckets)
        address: str = self._client.generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=expires_s
        )
        return address


class _Listings(_Connection):
    """What a bucket holds, in pages of the store's."""

    def list(self, bucket: str, *, prefix: str = "") -> Iterator[ObjectFacts]:
        """List the current objects of a bucket in key order."""
        check_address(bucket, prefix, allowed=self._buckets)
        after: dict[str, str] = {}
        while True:
            request = {"Bucket": bucket, "Prefix": prefix, **after}
            page = self._retrying(
                request, functools.partial(self._client.list_objects_v2, **request)
            )
            for told in page.get("Contents", ()):
                yield ObjectFacts(
                    bucket=bucket,
                    key=told["Key"],
                    size=told.get("Size"),
                    etag=_etag(told),
                    modified_at=told.get("LastModified"),
                )
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": page["NextContinuationToken"]}

    def versions(self, bucket: str, *, prefix: str = "") -> Iterator[ObjectFacts]:
        """List every version of every object in key order, the newest of a key first.

        Needs the right to list versions. A store that has no such listing lists what is current.
        """
        check_address(bucket, prefix, allowed=self._buckets)
        return self._versions(bucket, prefix, page=_PAGE)

    def versions_of(self, bucket: str, key: str) -> Sequence[ObjectFacts]:
        """Return every version of one object, the newest first."""
        check_address(bucket, key, allowed=self._buckets)
        # The key itself comes before whatever goes on after it.
        listed = self._versions(bucket, key, page=_SHORT_PAGE)
        return [*takewhile(lambda found: found.key == key, listed)]

    def _versions(self, bucket: str, prefix: str, *, page: int) -> Iterator[ObjectFacts]:
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": page}
        any_listed = False
        while True:
            ask = functools.partial(self._client.list_object_versions, **request)
            told = self._retrying(request, functools.partial(_if_implemented, ask))
            if told is None:
                if "KeyMarker" in request:
                    raise StorageUnavailable("The listing of versions broke off.")
                break
            for found in told.get("Versions", ()):
                any_listed = True
                yield ObjectFacts(
                    bucket=bucket,
                    key=found["Key"],
                    size=found.get("Size"),
                    etag=_etag(found),
                    version_id=found.get("VersionId"),
                    modified_at=found.get("LastModified"),
                    latest=found.get("IsLatest", True),
                )
            any_listed |= bool(told.get("DeleteMarkers"))
            if not told.get("IsTruncated"):
                break
            request["KeyMarker"] = told["NextKeyMarker"]
            request["VersionIdMarker"] = told["NextVersionIdMarker"]
        if not any_listed:
            # A store may also know the request and name versions in its own way.
            yield from self.list(bucket, prefix=prefix)


class S3Storage(_Objects, _Listings):
    """S3 and what speaks its protocol, at one endpoint and in the buckets of the settings only."""


def open_storage(settings: Settings) -> S3Storage:
    """Open object storage for uploads and data sets; events never reach the latter's bucket."""
    buckets = (*settings.s3.buckets, settings.training.bucket)
    return S3Storage(settings.s3.model_copy(update={"buckets": buckets}))


def _naming(request: Mapping[str, Any], call: Callable[[], _T]) -> _T:
    """Make a call; what is raised says which object or listing was asked for."""
    try:
        return _translating(call, versioned="VersionId" in request)
    except (TransientError, PermanentError) as error:
        key = request.get("Key", request.get("Prefix", ""))
        raise type(error)(f"s3://{request['Bucket']}/{key}: {error}") from error


def _translating(call: Callable[[], _T], *, versioned: bool) -> _T:
    try:
        return call()
    except ClientError as error:
        _raise_ours(error, versioned=versioned)
    except (NoCredentialsError, PartialCredentialsError) as error:
        message = (
            "There are no credentials for object storage: set UNLATENT_S3__ACCESS_KEY_ID and "
            "UNLATENT_S3__SECRET_ACCESS_KEY, or give this machine a role."
        )
        raise AccessDenied(message) from error
    # ValueError: a date or a length that is none.
    except (ResponseParserError, ValueError) as error:
        message = f"The answer of object storage cannot be read: {error}"
        raise AnswerUnusable(message) from error
    except (BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
        message = f"Object storage did not answer in full: {type(error).__name__}."
        raise StorageUnavailable(message) from error


def _raise_ours(error: ClientError, *, versioned: bool) -> NoReturn:
    status, code, headers = _answer(error)
    meaning = sort_answer(status, code, headers, versioned=versioned)
    hint = advice(status, code, headers) if issubclass(meaning, AnswerUnusable) else ""
    raise meaning(f"Object storage answered {status} {code}.{hint}") from error


def _answer(error: ClientError) -> tuple[int, str, dict[str, str]]:
    """Return status, code and headers of an error; the code is empty where there is none."""
    metadata = error.response["ResponseMetadata"]
    status = metadata.get("HTTPStatusCode", 0)
    # Without a body boto3 gives the status for a code.
    code = str(error.response["Error"].get("Code", ""))
    headers = {name.lower(): str(value) for name, value in metadata.get("HTTPHeaders", {}).items()}
    return status, "" if code == str(status) else code, headers


def _is_mute(error: ClientError) -> bool:
    """Say whether a refusal without a code may have one when it is asked for with GET."""
    status, code, headers = _answer(error)
    return not code and sort_answer(status, code, headers) is not StorageUnavailable


def _if_implemented(call: Callable[[], _T]) -> _T | None:
    """Make a request that not every store knows; None when this one does not."""
    try:
        return call()
    except ClientError as error:
        if error.response["ResponseMetadata"].get("HTTPStatusCode") in _UNSUPPORTED:
            return None
        raise


def _read(body: StreamingBody, *, max_bytes: int, deadline: float) -> bytes:
    received = bytearray()
    while chunk := body.read(_CHUNK_BYTES):
        received += chunk
        if len(received) > max_bytes:
            message = f"The object has more than {max_bytes} bytes."
            raise ObjectTooLarge(message)
        if time.monotonic() > deadline:
            message = f"The download was cut off after {len(received)} bytes: out of time."
            raise StorageUnavailable(message)
    return bytes(received)


def _version(version_id: str | None) -> dict[str, str]:
    return {} if version_id is None else {"VersionId": version_id}


def _real_version(version_id: str | None) -> str | None:
    # Buckets that once had versions answer "null" for objects that have none.
    return None if version_id == "null" else version_id


def _is_page(answer: Mapping[str, Any]) -> bool:
    """Say whether an answer may be of something before storage: storage names versions."""
    kind = answer.get("ContentType", "").partition(";")[0].strip().lower()
    return kind == "text/html" and "VersionId" not in answer


def _etag(told: Mapping[str, Any]) -> str | None:
    """Return the tag of an answer, or what stands in for it."""
    modified_at: datetime | None = told.get("LastModified")
    size = told.get("ContentLength", told.get("Size"))
    return bare_etag(told.get("ETag")) or stand_in(modified_at, size)
