"""Tests that need programs of Debian; `packages.txt` names each package and its program."""

from __future__ import annotations

import pytest

from tests.support.system_packages import install_line


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that `make test` leaves them out."""
    for item in items:
        if "/tests/system/" in item.path.as_posix():
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session", autouse=True)
def _system_packages() -> None:
    """Fail with the line that installs what is missing: a test that is skipped checks nothing."""
    line = install_line()
    if line is not None:
        pytest.fail(f"programs are missing; as root: {line}", pytrace=False)
