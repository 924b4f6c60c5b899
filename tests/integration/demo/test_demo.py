"""`unlatent demo` as a process: what it uploads, what it leaves, what it stops."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from detection.bundle import load_bundle
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.images.bad_files import encoded, picture
from worker.demo.photographs import PHOTOGRAPHS
from worker.demo.uploads import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FIELDS = {"path", "state", "score", "label", "reason", "model_version"}


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Return an empty folder for temporary files that every user can reach, as /tmp itself is."""
    with TemporaryDirectory(prefix="unlatent-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def demo(tmp_path: Path, temporary: Path, *arguments: str) -> tuple[CompletedProcess[str], Path]:
    """Run the demo; return the process and the folder of its results."""
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "worker", "demo", "--out", str(out), *arguments],
        env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done, out


def processes_below(folder: Path) -> list[str]:
    """Return the command lines of running processes that name a folder or work in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (process / "environ").read_bytes().decode(errors="replace")
        except (OSError, UnicodeDecodeError):
            continue
        if str(folder) in words or str(folder) in environment:
            found.append(words)
    return found


def rows_of(out: Path) -> Sequence[dict[str, Any]]:
    """Return the rows of demo.json."""
    rows: Sequence[dict[str, Any]] = json.loads((out / "demo.json").read_text())["rows"]
    assert all(row.keys() >= FIELDS for row in rows)
    return rows


@pytest.mark.timeout(400)
def test_pictures_of_ones_own_end_in_rows_and_nothing_is_left_running(
    tmp_path: Path, temporary: Path
) -> None:
    """Every picture below a folder gets its row, broken ones with a reason, and all is stopped."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    picture(200, 150).save(folder / "a [b] ü.png")
    (folder / "deeper" / "c.JPG").write_bytes(encoded(picture(96, 300), "JPEG"))
    (folder / "deeper" / "cut.png").write_bytes(encoded(picture(), "PNG")[:-300])
    (folder / "notes.txt").write_text("no picture")
    bundle = build_tiny_bundle(tmp_path / "bundle")
    done, out = demo(tmp_path, temporary, "--bundle", str(bundle.folder), str(folder))
    assert done.returncode == 0, done.stderr + done.stdout
    assert processes_below(temporary) == []
    assert list(temporary.glob("unlatent-*")) == []
    rows = {Path(row["path"]).name: row for row in rows_of(out)}
    assert {name: (row["state"], row["reason"]) for name, row in rows.items()} == {
        "a [b] ü.png": ("scored", None),
        "c.JPG": ("scored", None),
        "cut.png": ("failed", "truncated"),
    }
    assert rows["c.JPG"]["model_version"] == bundle.model_version
    assert str(out / "contact-sheet.png") in done.stdout
    assert f"{rows['c.JPG']['distance']:+.1f}" in done.stdout
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.width > 1000


def test_a_folder_without_pictures_is_one_line(tmp_path: Path, temporary: Path) -> None:
    """Nothing is started when there is nothing to upload."""
    done, _ = demo(tmp_path, temporary, str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"unlatent: no image files in {tmp_path}\n"


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_demo_ends_as_it_must(tmp_path: Path, temporary: Path) -> None:
    """Photographs and what is made of them get the verdicts of `small`, broken files get none."""
    done, out = demo(tmp_path, temporary)
    assert done.returncode == 0, done.stderr + done.stdout
    assert processes_below(temporary) == []
    rows = rows_of(out)
    kinds = [row["kind"] for row in rows]
    assert kinds.count(Kind.PHOTOGRAPH) == len(PHOTOGRAPHS)
    remade = kinds.count(Kind.RECONSTRUCTION), kinds.count(Kind.VARIANT)
    assert remade == (len(PHOTOGRAPHS) - len(PHOTOGRAPHS) // 2, len(PHOTOGRAPHS) // 2)
    version = load_bundle("small").model_version
    for row in rows:
        scored = row["kind"] != Kind.BROKEN
        assert (row["score"] is not None) == scored
        assert row["model_version"] == (version if scored else None)
    reasons = {row["reason"] for row in rows}
    assert reasons == {None, "truncated", "not_an_image", "too_small"}
    assert "of 19 photographs labelled generated" in " ".join(done.stdout.split())


def test_photographs_are_named_once_and_differ() -> None:
    """Each listed photograph is a file of its own in the wheels, large enough to be scored."""
    contents = {one.path.read_bytes() for one in PHOTOGRAPHS}
    assert len(contents) == len(PHOTOGRAPHS)
    for content in contents:
        with Image.open(io.BytesIO(content)) as photograph:
            assert min(photograph.size) >= 64
