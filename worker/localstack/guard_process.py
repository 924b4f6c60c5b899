"""The guard of an owned stack, seen from its owner: a process that outlives a `kill -9` of it.

Apart from the module that the process runs, which must not be imported before it is run.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class GuardProcess:
    """`worker.localstack.guard` for one owner, from `start` to `dismiss`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def on_duty(self) -> bool:
        """Whether it was started and not dismissed."""
        return self._process is not None

    def start(self, folder: Path, doomed: Iterable[Path]) -> None:
        """Watch the servers of the folder; the `doomed` folders are deleted at the end."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.guard", str(folder), *map(str, doomed)],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Have it clean up now and wait for its end; without one there is nothing to do."""
        process, self._process = self._process, None
        if process is not None:
            process.communicate()
