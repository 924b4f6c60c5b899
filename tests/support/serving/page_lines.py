"""Lines of the documents that the real curl sends to a service."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.system_packages import program

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCS = Path(__file__).parents[3] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of a page of docs/ in one language."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def curl_lines(page: str) -> list[str]:
    """Return the lines of a page's `sh` blocks, which call curl and nothing else."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    assert all(line.startswith("curl --fail-with-body -sS ") for line in lines)
    return lines


def send(line: str, folder: Path, *, bucket: str, environment: Mapping[str, str]) -> str:
    """Run a line in a folder, with a bucket's name in place of the page's; return the answer.

    Fails for a status of 400 and above.
    """
    answer = subprocess.run(
        ["bash", "-c", line.replace('"uploads"', json.dumps(bucket))],
        cwd=folder,
        env={"PATH": f"{Path(program('curl')).parent}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, f"{line}\n{answer.stderr}"
    return answer.stdout
