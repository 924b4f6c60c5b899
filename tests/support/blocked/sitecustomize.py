"""Makes a Python process one in which some packages are not installed.

Python runs this at start where the folder is in PYTHONPATH. `BLOCKED` names the top-level modules.
"""

from __future__ import annotations

import os
from importlib.machinery import PathFinder

BLOCKED = frozenset(os.environ.get("BLOCKED", "").split())

_find_spec = PathFinder.find_spec


def find_spec(fullname: str, path: object = None, target: object = None) -> object:
    """Find nothing for a blocked module, as the path without it would."""
    if fullname in BLOCKED:
        return None
    return _find_spec(fullname, path, target)


PathFinder.find_spec = find_spec
