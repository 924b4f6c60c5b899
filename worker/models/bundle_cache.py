"""Prunes local copies of bundles that no role will ask for again."""

from __future__ import annotations

import re
import shutil
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_log = structlog.get_logger(__name__)

#: A copy younger than this may be another process's: the trainer fetches challengers that no
#: pointer names yet, and a worker that starts may have read the pointers just before they moved.
IDLE_S = 24 * 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REMOVED, _DOWNLOAD = ".removed-", ".download-"


def prune(cache: Path, keep: Collection[str], *, idle_s: float = IDLE_S) -> list[str]:
    """Remove copies that are older than `idle_s` and whose digest is not in `keep`.

    What a killed download or removal left goes too, and nothing else that lies in the folder.
    Returns the digests; a copy that is asked for again is downloaded again.
    """
    removed = []
    for folder in sorted(cache.iterdir()) if cache.is_dir() else []:
        copy = _DIGEST.fullmatch(folder.name) is not None
        left_over = folder.name.startswith((_REMOVED, _DOWNLOAD))
        try:
            if not (copy or left_over) or folder.name in keep or not _is_older(folder, idle_s):
                continue
            # Renamed first: nobody ever finds half a copy under a digest.
            aside = folder.rename(cache / f"{_REMOVED}{uuid4().hex}")
            shutil.rmtree(aside)
        except OSError as error:
            # Another worker on this machine may have been faster.
            _log.warning("bundle_copy_removal_failed", folder=folder.name, error=str(error))
            continue
        if copy:
            removed.append(folder.name)
    if removed:
        _log.info("bundle_copies_removed", digests=removed)
    return removed


def _is_older(folder: Path, idle_s: float) -> bool:
    return time.time() - folder.stat().st_mtime > idle_s
