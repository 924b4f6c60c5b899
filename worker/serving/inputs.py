"""Reading a request: whose it is, how long it may take, and the image in its body."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from worker.ingest.shapes import fields
from worker.serving.problems import RequestRefused

if TYPE_CHECKING:
    from worker.serving.service import Service

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?:$|[,;])", re.IGNORECASE)
_BEARER = HTTPBearer(auto_error=False, description="A key of a source; `unlatent new-key`.")


def service_of(request: Request) -> Service:
    """Return what the application was built over."""
    return cast("Service", request.app.state.service)


def source_of(
    request: Request,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> str | None:
    """Return the source that the request's key is of; None where no key is needed."""
    return service_of(request).keys.source_of(given.credentials if given else None)


#: The source that a request speaks for.
Source = Annotated[str | None, Depends(source_of)]


def wait_s(request: Request) -> float:
    """Return how long the answer may take: `Prefer: wait=N` (RFC 7240) within the settings."""
    most_s = service_of(request).settings.timeout_s
    wanted = _WAIT.search(request.headers.get("prefer", ""))
    return most_s if wanted is None else min(float(wanted[1]), most_s)


async def image_of(request: Request) -> tuple[bytes, str | None]:
    """Return the bytes of the image that a body holds or names, and its declared type.

    Raises `RequestRefused` for a body that holds none, and what storage raises.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await _stored(request)
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=4) as form:
            part = form.get("image")
            if not isinstance(part, UploadFile):
                raise RequestRefused(
                    "The form has no file named image.", status=422, reason="request_invalid"
                )
            return await part.read(), part.content_type
    return await request.body(), kind or None


async def _stored(request: Request) -> tuple[bytes, str | None]:
    service = service_of(request)
    told = fields.mapping(fields.load(await request.body()), "the body")
    unknown = told.keys() - {"bucket", "key", "version_id"}
    if unknown:
        raise RequestRefused(
            f"Unknown fields: {', '.join(sorted(unknown))[:200]}; an object is bucket and key.",
            status=422,
            reason="request_invalid",
        )
    data = await run_in_threadpool(
        service.storage.fetch,
        fields.required(told, "bucket"),
        fields.required(told, "key", limit=fields.MAX_KEY_BYTES),
        version_id=fields.version(told, "version_id"),
        max_bytes=service.max_bytes,
    )
    return data, None
