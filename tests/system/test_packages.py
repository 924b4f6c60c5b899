"""The programs that system tests need are there, run, and are named when they are not."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support import system_packages
from tests.support.system_packages import install_line, program

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "name", [line.split()[1] for line in system_packages.PACKAGES.read_text().splitlines()]
)
def test_the_program_says_its_version(name: str) -> None:
    """It starts on this machine: its libraries are there too."""
    said = subprocess.run([program(name), "--version"], capture_output=True, text=True, check=True)
    assert any(character.isdigit() for character in said.stdout + said.stderr)


def test_a_missing_package_is_named_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is missing is in the line."""
    packages = tmp_path / "packages.txt"
    packages.write_text("coreutils ls\nno-such-package no-such-program\n")
    monkeypatch.setattr(system_packages, "PACKAGES", packages)
    assert install_line() == "apt-get install --yes --no-install-recommends no-such-package"
    with pytest.raises(LookupError, match="no-such-program is missing: apt-get install"):
        program("no-such-program")
