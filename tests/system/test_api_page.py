"""Every curl line of docs/api.md is sent by the real curl to the real service."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.serving.serve_process import ServeProcess
from tests.support.system_packages import program
from worker.demo.photographs import PHOTOGRAPHS

if TYPE_CHECKING:
    from worker.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
KEY = "ul_of-the-page"


def test_the_lines_of_the_page_work(settings: Settings, tmp_path: Path, s3_client: Any) -> None:
    """Each line, as it stands on the page, is answered with a status below 400."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 13
    assert all(line.startswith("curl --fail-with-body -sS ") for line in lines)
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
            answer = subprocess.run(
                ["bash", "-c", line.replace('"uploads"', json.dumps(bucket))],
                cwd=tmp_path,
                env={
                    "PATH": str(Path(program("curl")).parent) + ":/usr/bin:/bin",
                    "URL": server.url,
                    "KEY": KEY,
                    "ID": image_id,
                },
                capture_output=True,
                text=True,
                check=False,
            )
            assert answer.returncode == 0, f"{line}\n{answer.stderr}"
            if '/v1/images"' in line:
                image_id = json.loads(answer.stdout)["id"]
            if "/v1/check" in line:
                assert json.loads(answer.stdout)["image"]["size"] == len(photograph)
