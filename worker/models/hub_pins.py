"""Records the commit pulled last from a repository of a hub, and its model version."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from detection.errors import SettingsError
from training.files import written_aside

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class HubPin:
    """A commit, and the digest of the bundle that it holds."""

    revision: str
    model_version: str

    def contradicts(self, later: HubPin) -> bool:
        """Whether the same commit is another bundle now."""
        return self.revision == later.revision and self.model_version != later.model_version


class HubPins:
    """A JSON file of the pin of each repository; raises `SettingsError` where it is none."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def find(self, repository: str) -> HubPin | None:
        """Return the pin of a repository."""
        record = self._read().get(repository)
        return HubPin(**record) if record is not None else None

    def record(self, repository: str, pin: HubPin) -> None:
        """Remember a pin in the place of the repository's earlier one."""
        content = self._read() | {repository: asdict(pin)}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(self._file) as aside:
            aside.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            content: object = json.loads(self._file.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise SettingsError(f"the pins in {self._file} cannot be read: {error}") from error
        fields = {"revision", "model_version"}
        if not isinstance(content, dict) or not all(
            isinstance(record, dict) and record.keys() == fields for record in content.values()
        ):
            raise SettingsError(f"{self._file} holds no pins: repository → {sorted(fields)}")
        return content
