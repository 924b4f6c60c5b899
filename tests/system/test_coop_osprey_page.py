"""What docs/coop-osprey.md sends is answered by the real service."""

from __future__ import annotations

import hashlib
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pytest

from tests.support.serving.page_lines import blocks, curl_lines, send
from tests.support.serving.serve_process import ServeProcess
from worker.demo.photographs import PHOTOGRAPHS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from worker.settings import Settings

KEY = "ul_of-the-page"
Arguments = TypeVar("Arguments")
Value = TypeVar("Value")


class UDFBase(Generic[Arguments, Value]):
    """Stands in for Osprey's, which comes with the whole engine."""


@pytest.fixture
def server(settings: Settings) -> Iterator[ServeProcess]:
    """A service with a key and no ledger."""
    keys = {"rules": hashlib.sha256(KEY.encode()).hexdigest()}
    changed = settings.http.model_validate({"keys": keys})
    with ServeProcess(settings.model_copy(update={"http": changed})) as process:
        yield process.wait_until_ready()


def test_the_requests_are_answered(
    server: ServeProcess, settings: Settings, tmp_path: Path, s3_client: Any
) -> None:
    """Bytes, as Coop's signal sends them, and an object, as Osprey's function does, get a label."""
    photograph = PHOTOGRAPHS[0].path.read_bytes()
    (tmp_path / "photo.jpg").write_bytes(photograph)
    bucket = settings.s3.buckets[0]
    s3_client.put_object(Bucket=bucket, Key="photo.jpg", Body=photograph)
    lines = curl_lines("coop-osprey.md")
    assert len(lines) == 2
    for line in lines:
        environment = {"URL": server.url, "KEY": KEY}
        answer = json.loads(send(line, tmp_path, bucket=bucket, environment=environment))
        assert answer["image"]["size"] == len(photograph)
        assert answer["label"] in {"real", "unsure", "generated"}


def test_the_function_of_osprey_returns_a_label(
    server: ServeProcess, settings: Settings, s3_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block of the page, as it stands, asks about an object of a bucket."""
    for name, members in {
        "osprey.engine.executor.execution_context": {"ExecutionContext": object},
        "osprey.engine.udf.arguments": {"ArgumentsBase": object},
        "osprey.engine.udf.base": {"UDFBase": UDFBase},
    }.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("CHECK_URL", server.url)
    monkeypatch.setenv("CHECK_KEY", KEY)
    bucket = settings.s3.buckets[0]
    s3_client.put_object(Bucket=bucket, Key="a.jpg", Body=PHOTOGRAPHS[0].path.read_bytes())
    (block,) = blocks("coop-osprey.md", "python")
    page: dict[str, Any] = {}
    exec(compile(block, "coop-osprey.md", "exec"), page)  # noqa: S102  # the page of this repository
    asked = SimpleNamespace(bucket=bucket, key="a.jpg")
    label = page["ImageLabel"]().execute(None, asked)
    assert label in {"real", "unsure", "generated"}
