"""What an installed unlatent carries with it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_the_wheel_carries_what_the_code_reads_at_run_time(tmp_path: Path) -> None:
    """SQL, migrations, the marks of types and every file of the embedded bundles are there."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = set(archive.namelist())
    needed = [REPOSITORY / "worker" / "bootstrap.sql"]
    needed += (REPOSITORY / name / "py.typed" for name in ("detection", "training", "worker"))
    needed += (REPOSITORY / "migrations" / "versions").glob("*.py")
    needed += (path for path in (REPOSITORY / "detection" / "bundles").rglob("*") if path.is_file())
    missing = {path.relative_to(REPOSITORY).as_posix() for path in needed} - carried
    assert {name for name in missing if "__pycache__" not in name} == set()


def test_an_embedded_bundle_stays_small() -> None:
    """A bundle in the repository has at most 25 MB: every clone and every wheel carries it."""
    sizes = {
        bundle.name: sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        for bundle in (REPOSITORY / "detection" / "bundles").iterdir()
        if bundle.is_dir()
    }
    assert {name: size for name, size in sizes.items() if size > 25_000_000} == {}
    assert sizes
