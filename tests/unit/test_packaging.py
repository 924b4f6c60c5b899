"""What an installed unlatent carries with it."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.utils import canonicalize_name
from PIL import Image

from tests.support.extras import EXTRAS, declared, only

REPOSITORY = Path(__file__).parents[2]
#: What a package that is declared shows in its own interface, and so brings in every release.
SHOWN = {
    "boto3": {"botocore", "urllib3"},
    "fastapi": {"starlette"},
    "pydantic-settings": {"annotated-types", "pydantic"},
}


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


def _imports(file: Path) -> set[str]:
    """Return the top-level modules that a file imports, in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_every_package_that_is_imported_is_declared() -> None:
    """None is there only because another one happens to bring it."""
    rooms = ("detection", "training", "worker", "migrations")
    files = [file for room in rooms for file in (REPOSITORY / room).rglob("*.py")]
    distributions = metadata.packages_distributions()
    imported = set().union(*map(_imports, files)) - sys.stdlib_module_names - {*rooms}
    named = set().union(*map(declared, EXTRAS)).union(*SHOWN.values())
    undeclared = {
        module
        for module in imported
        if named.isdisjoint(map(canonicalize_name, distributions.get(module, ())))
    }
    assert {"torch", "sqlalchemy"} < imported
    assert undeclared == set()


def test_an_embedded_bundle_stays_small() -> None:
    """A bundle in the repository has at most 25 MB: every clone and every wheel carries it."""
    sizes = {
        bundle.name: sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        for bundle in (REPOSITORY / "detection" / "bundles").iterdir()
        if bundle.is_dir()
    }
    assert {name: size for name, size in sizes.items() if size > 25_000_000} == {}
    assert sizes


@pytest.mark.full
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_released_is_installed_and_checks_a_file(kind: str, tmp_path: Path) -> None:
    """In an environment of its own, with the packages of `service` alone, `check` gives a label.

    Of the checkout nothing can be imported there.
    """
    built = tmp_path / "dist"
    hatchling = [sys.executable, "-m", "hatchling", "build", "--target", kind]
    run([*hatchling, "--directory", str(built)], cwd=REPOSITORY)
    (artifact,) = built.iterdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    programs = tmp_path / "env" / "bin"
    # What the lock installed is at hand there. A path in a .pth file brings no .pth file along, and
    # so not the editable installation of this checkout.
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install"]
    run([*pip, "--no-deps", "--no-index", "--no-build-isolation", str(artifact)], cwd=tmp_path)
    where = run([str(programs / "python"), "-c", "import worker; print(worker.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(site)
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert run([str(programs / "unlatent"), "--version"], tmp_path) == f"unlatent {version}\n"
    pixels = np.random.default_rng(2).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    told = run(
        [str(programs / "unlatent"), "check", "--format", "jsonl", "a.png"], tmp_path, "service"
    )
    record = json.loads(told)
    assert record["path"] == "a.png"
    assert record["label"] in {"real", "unsure", "generated"}
    assert re.fullmatch(r"[0-9a-f]{64}", record["model_version"])


def run(command: list[str], cwd: Path, extra: str | None = None) -> str:
    """Run a command, only with what an extra installs where one is named; return its output."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | (only(extra) if extra else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
