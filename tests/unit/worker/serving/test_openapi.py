"""The committed description of the HTTP service is that of the code."""

from __future__ import annotations

import json

from tests.support.docs.openapi import PAGE, render


def test_the_committed_description_is_the_codes() -> None:
    """docs/openapi.json is what `python -m tests.support.docs.openapi` writes."""
    assert PAGE.read_text(encoding="utf-8") == render()


def test_every_route_needs_a_key_and_describes_its_problems() -> None:
    """Each operation names the bearer key or has it in its path, and its problems' media type."""
    for path, operations in json.loads(render())["paths"].items():
        for operation in operations.values():
            assert "security" in operation or "{key}" in path
            kinds = {
                status: list(answer.get("content", ()))
                for status, answer in operation["responses"].items()
                if status >= "400" and status != "406"  # the hook's word for a refusal
            }
            assert kinds.pop("401") == ["application/problem+json"]
            assert all(kind == ["application/problem+json"] for kind in kinds.values())
