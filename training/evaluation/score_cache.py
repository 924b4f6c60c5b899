"""Cache of scores on disk: an evaluation that was killed resumes from it.

One JSON line an image and form. A line holds for one model version, and for one label, since the
label decides how an image's codec is harmonised.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import numpy as np
import structlog

from training.evaluation.calibration import Logits
from training.evaluation.scoring import BATCH, RAW, Scored, harmonised, score_tier, untouched

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from detection.detector import Detector
    from training.data.manifest import Entry

_log = structlog.get_logger(__name__)


class ScoreCache:
    """Branch logits by form, label and sha256 of the file."""

    def __init__(self, file: Path, model_version: str) -> None:
        """Read what `file` holds for a model version; it need not exist yet."""
        self._file = file
        self._model_version = model_version
        self._known: dict[tuple[str, str, str], dict[str, float]] = {}
        text = file.read_text("utf-8") if file.exists() else ""
        if text and not text.endswith("\n"):
            # A kill cut the last line; what comes next must not be glued to it.
            with file.open("a", encoding="utf-8") as handle:
                handle.write("\n")
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record["model_version"] == model_version:
                key = (record["form"], record["label"], record["sha256"])
                self._known[key] = record["logits"]

    def score(
        self,
        detector: Detector,
        entries: Sequence[Entry],
        digests: Mapping[Path, str],
        form: str,
        *,
        on_image: Callable[[int], None] | None = None,
    ) -> Scored:
        """Score entries in one form, a tier or "raw", all but those known already.

        `digests` maps paths to sha256; `on_image` hears how many are done.
        """

        def key(entry: Entry) -> tuple[str, str, str]:
            return form, entry.label, digests[entry.path]

        missing = [entry for entry in entries if key(entry) not in self._known]
        done = len(entries) - len(missing)
        tier, read = ("clean", untouched) if form == RAW else (form, harmonised)
        began = time.monotonic()
        for start in range(0, len(missing), BATCH):
            part = score_tier(detector, missing[start : start + BATCH], tier, read=read)
            for index, entry in enumerate(part.entries):
                branches = part.logits.branches
                logits = {name: float(values[index]) for name, values in branches.items()}
                self._add(key(entry), logits)
            if on_image is not None:
                on_image(done + start + len(part.entries))
        if missing:
            _log.info(
                "images_scored",
                model_version=self._model_version,
                form=form,
                images=len(missing),
                images_per_s=round(len(missing) / (time.monotonic() - began), 2),
            )
        rows = [self._known[key(entry)] for entry in entries]
        branches = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        generated = np.array([entry.generated for entry in entries])
        return Scored(tuple(entries), Logits(branches, generated), form)

    def _add(self, key: tuple[str, str, str], logits: dict[str, float]) -> None:
        form, label, sha256 = key
        record = {
            "model_version": self._model_version,
            "form": form,
            "label": label,
            "sha256": sha256,
            "logits": logits,
        }
        with self._file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")
        self._known[key] = logits
