"""Every curl line of docs/api.md is sent by the real curl to the real service."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from tests.support.serving.page_lines import curl_lines, send
from tests.support.serving.serve_process import ServeProcess
from worker.demo.photographs import PHOTOGRAPHS

if TYPE_CHECKING:
    from pathlib import Path

    from worker.settings import Settings

KEY = "ul_of-the-page"


def test_the_lines_of_the_page_work(settings: Settings, tmp_path: Path, s3_client: Any) -> None:
    """Each line, as it stands on the page, is answered with a status below 400."""
    lines = curl_lines("api.md")
    assert len(lines) == 13
    photograph = PHOTOGRAPHS[0].path.read_bytes()
    (tmp_path / "photo.jpg").write_bytes(photograph)
    bucket = settings.s3.buckets[0]
    s3_client.put_object(Bucket=bucket, Key="photo.jpg", Body=photograph)
    told = json.dumps({"bucket": bucket, "key": "photo.jpg", "etag": "other"})
    (tmp_path / "uploads.jsonl").write_text(told + "\n")
    keys = {"web": hashlib.sha256(KEY.encode()).hexdigest()}
    changed = settings.http.model_validate({"keys": keys, "ledger": True})
    image_id = ""
    with ServeProcess(settings.model_copy(update={"http": changed})) as server:
        server.wait_until_ready()
        for line in lines:
            environment = {"URL": server.url, "KEY": KEY, "ID": image_id}
            answer = send(line, tmp_path, bucket=bucket, environment=environment)
            if '/v1/images"' in line:
                image_id = json.loads(answer)["id"]
            if "/v1/check" in line:
                assert json.loads(answer)["image"]["size"] == len(photograph)
