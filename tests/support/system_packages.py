"""Which Debian packages the tests in tests/system need, and which are missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PACKAGES = Path(__file__).parents[1] / "system" / "packages.txt"
#: Where Debian keeps the programs of services, which is in the PATH of root only.
_SEARCHED = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def program(name: str) -> str:
    """Return the path of a program of one of the packages; raises `LookupError`."""
    found = shutil.which(name, path=_SEARCHED)
    if found is None:
        raise LookupError(f"{name} is missing: {install_line()}")
    return found


def install_line() -> str | None:
    """Return the command that installs the packages whose program is missing, None for none."""
    wanted = dict(line.split() for line in PACKAGES.read_text().splitlines())
    missing = [
        package for package, name in wanted.items() if shutil.which(name, path=_SEARCHED) is None
    ]
    return f"apt-get install --yes --no-install-recommends {' '.join(missing)}" if missing else None
