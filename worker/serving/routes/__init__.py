"""The routes, by what they serve."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from worker.serving import answers
from worker.serving.problems import MEDIA_TYPE

_SAID = {
    400: "The request is malformed.",
    401: "The key is missing or unknown.",
    403: "The bucket is not one of the service's, or storage denies it.",
    404: "There is no such object or image.",
    408: "The body did not come in time.",
    409: "The object or image is in another state.",
    413: "The image is too large.",
    415: "The file is no image that is checked.",
    422: "The request or its image cannot be used; `reason` says why.",
    503: "Busy, or a service is away: try again after `Retry-After` seconds.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of the problems that a route may answer."""
    schema = answers.Problem.model_json_schema()
    return {
        status: {"description": _SAID[status], "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a body of JSON, which a route reads by itself."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}
