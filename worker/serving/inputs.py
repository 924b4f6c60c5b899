"""Reading a request: whose it is, how long it may take, and what its body holds."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar, cast

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from worker.serving.answers import ObjectAddress
from worker.serving.limits import BODY
from worker.serving.problems import CheckTimeout, RequestRefused
from worker.storage.interface import check_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from concurrent.futures import Executor

    from worker.serving.limits import Body
    from worker.serving.service import Service

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)

#: Larger than any JSON body here.
MAX_JSON_BYTES = 64 * 1024
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?:$|[,;])", re.IGNORECASE)
_BEARER = HTTPBearer(auto_error=False, description="A key of a source; `unlatent new-key`.")


def service_of(request: Request) -> Service:
    """Return what the application was built over."""
    return cast("Service", request.app.state.service)


# Not in a thread: those that are busy with storage must not keep others from signing in.
async def source_of(
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


@asynccontextmanager
async def answering(request: Request) -> AsyncIterator[None]:
    """Bound what an answer takes; raises `CheckTimeout` when its time is over."""
    try:
        async with asyncio.timeout(wait_s(request)):
            yield
    except TimeoutError as error:
        raise CheckTimeout from error


async def in_threads(
    threads: Executor, call: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs
) -> _T:
    """Call what blocks in threads of its kind, so that it holds up no other kind."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(threads, partial(call, *arguments, **options))


async def json_of(request: Request, model: type[_Model]) -> _Model:
    """Return a body of JSON as a model; raises `RequestRefused` for one that is none.

    It is read here, after the key: what FastAPI reads by itself is read before.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestRefused(
            "The content type must be application/json.", status=415, reason="request_invalid"
        )
    body = await request.body()
    if len(body) > MAX_JSON_BYTES:
        raise RequestRefused(
            f"The body has more than {MAX_JSON_BYTES} bytes.", status=413, reason="request_invalid"
        )
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        words = "; ".join(told)[:2000].encode(errors="replace").decode()
        raise RequestRefused(words, status=422, reason="request_invalid") from error


async def image_of(request: Request) -> tuple[bytes, str | None]:
    """Return the bytes of the image that a body holds or names, and its declared type.

    Raises `RequestRefused` for a body that holds none, and what storage raises.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await _stored(request, await json_of(request, ObjectAddress)), None
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=4) as form:
            part = form.get("image")
            if not isinstance(part, UploadFile):
                raise RequestRefused(
                    "The form has no file named image.", status=422, reason="request_invalid"
                )
            return await part.read(), part.content_type
    return await request.body(), kind or None


async def _stored(request: Request, address: ObjectAddress) -> bytes:
    service = service_of(request)
    check_address(address.bucket, address.key, allowed=service.buckets)
    data = await in_threads(
        service.storage_threads,
        service.storage.fetch,
        address.bucket,
        address.key,
        version_id=address.version_id,
        max_bytes=service.max_bytes,
    )
    cast("Body", request.scope[BODY]).add(len(data))
    return data
