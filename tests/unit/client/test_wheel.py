"""What `unlatent-client` brings into a producer's environment."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import urllib3

if TYPE_CHECKING:
    from tests.unit.client.conftest import Service

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from `client/`."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=REPOSITORY / "client",
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_has_one_package_and_one_dependency(wheel: Path) -> None:
    """No generic name, no torch, no SQLAlchemy: `unlatent_client` and urllib3."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(about).decode())
        licence = archive.read(about.replace("METADATA", "licenses/LICENSE"))
    top = {name.partition("/")[0] for name in names}
    assert top == {"unlatent_client", about.partition("/")[0]}
    assert "unlatent_client/py.typed" in names
    assert metadata["Name"] == "unlatent-client"
    assert metadata.get_all("Requires-Dist") == ["urllib3>=2", "redis>=6.4; extra == 'redis'"]
    assert licence == (REPOSITORY / "LICENSE").read_bytes()


def test_the_wheel_needs_nothing_else(wheel: Path, service: Service, tmp_path: Path) -> None:
    """With the standard library and urllib3 an image is checked; a list names what it lacks."""
    (tmp_path / "urllib3").symlink_to(Path(urllib3.__file__).parent)
    script = f"""
import sys
sys.path += [{str(wheel)!r}, {str(tmp_path)!r}]
import unlatent_client
print(unlatent_client.Client({service.url!r}).check(b"abc").label)
try:
    unlatent_client.IngestList("redis://127.0.0.1")
except ImportError as error:
    print(error)
names = {{name.partition(".")[0] for name in sys.modules}} - sys.stdlib_module_names
print(*sorted(name for name in names if not name.startswith("__")))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],  # neither this folder nor site-packages
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "generated",
        "IngestList needs redis: pip install 'unlatent-client[redis]'",
        "unlatent_client urllib3",
    ]


def test_both_wheels_have_one_version() -> None:
    """A service and its client are released together."""
    versions = {
        tomllib.loads((folder / "pyproject.toml").read_text())["project"]["version"]
        for folder in (REPOSITORY, REPOSITORY / "client")
    }
    assert len(versions) == 1
