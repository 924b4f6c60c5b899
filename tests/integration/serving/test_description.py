"""The HTTP service against its description, with what schemathesis makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks

if TYPE_CHECKING:
    from tests.support.serving.http_service import Rig

#: Routes of the description, and how many requests each is sent at most.
ROUTES = {
    ("/v1/check", "POST"): 150,
    ("/v1/images", "POST"): 150,
    ("/v1/images/{image_id}", "GET"): 60,
    ("/v1/images/{image_id}/appeals", "POST"): 60,
    ("/v1/images/{image_id}/reports", "POST"): 60,
    ("/v1/batches", "POST"): 100,
    ("/hooks/pict-rs/{key}", "POST"): 60,
}


@schemathesis.serializer("application/jsonl")
def as_lines(_context: object, value: object) -> bytes:
    """Send what was made up for a batch as it is."""
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")


@pytest.mark.full
@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_no_request_breaks_the_service(rig: Rig, path: str, method: str) -> None:
    """Whatever is sent, the answer is one that the description names, and no 5xx but 503.

    A 503 says when to come again.
    """
    schema = schemathesis.openapi.from_asgi("/openapi.json", rig.app)
    operation = schema[path][method]

    @given(case=operation.as_strategy())
    @settings(
        max_examples=ROUTES[path, method],
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        if "image_id" in path:
            case.query = {**(case.query or {}), **({"wait": 0} if method == "GET" else {})}
        answer = case.call(headers={"Authorization": "Bearer web-key"})
        assert answer.status_code < 500 or answer.status_code == 503
        assert answer.status_code != 503 or int(answer.headers["Retry-After"][0]) >= 1
        case.validate_response(
            answer,
            checks=[
                checks.not_a_server_error,
                checks.status_code_conformance,
                checks.content_type_conformance,
                checks.response_schema_conformance,
            ],
        )

    ask()
