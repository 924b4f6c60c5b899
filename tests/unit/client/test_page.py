"""What docs/client.md and the wheel's README show runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import unlatent_client
from unlatent_client import ServiceError

if TYPE_CHECKING:
    from tests.unit.client.conftest import Service

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs" / "client.md").read_text(encoding="utf-8")
README = (REPOSITORY / "client" / "README.md").read_text(encoding="utf-8")


def examples(text: str) -> list[str]:
    """Return the blocks of Python that talk to a service."""
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [block.replace('key="…"', 'key="k"') for block in blocks if "https://" in block]


@pytest.mark.parametrize(
    ("example", "printed"),
    [
        *zip(
            examples(PAGE),
            ["generated beyond 0.93\n", "scored generated flag\n"],
            strict=True,
        ),
        *zip(examples(README), ["generated 0.93 beyond\n"], strict=True),
    ],
    ids=["check", "submit", "readme"],
)
def test_an_example_prints_what_the_service_answers(
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    example: str,
    printed: str,
) -> None:
    """Against a service at the page's address, the code runs as it stands."""
    monkeypatch.chdir(tmp_path)
    Path("cat.jpg").write_bytes(b"abc")
    code = example.replace("https://unlatent.example", service.url)
    exec(compile(code, "example", "exec"), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out == printed
    assert service.requests[0].headers["Authorization"] == "Bearer k"


def test_every_error_is_in_the_table() -> None:
    """The page tells what to do about each exception that the wheel exports."""
    table = PAGE.partition("## When it does not work")[2].partition("*Retries.*")[0]
    exported = {
        name
        for name in unlatent_client.__all__
        if issubclass(getattr(unlatent_client, name), ServiceError)
    }
    assert {name for name in exported if f"`{name}`" not in table} == set()
    assert exported
