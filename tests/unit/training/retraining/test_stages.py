"""The stages that a folder's run and the trainer share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from training.bundles.challenger import ChallengerRecipe
from training.retraining import stages
from training.retraining.run_state import RunPlan, RunState


@pytest.mark.parametrize(("most", "taught"), [(3, 3), (None, 10)])
def test_no_more_images_are_taught_than_the_plan_allows(
    monkeypatch: pytest.MonkeyPatch, most: int | None, taught: int
) -> None:
    """The first of them are, in the order in which the state gives them."""
    seen: list[Any] = []

    def fine_tune(files: Any, *_: Any, **__: Any) -> dict[str, Any]:
        seen.extend(files)
        return {}

    monkeypatch.setattr(stages, "fine_tune", fine_tune)
    monkeypatch.setattr(stages, "require_calibration", lambda _: None)
    state = SimpleNamespace(
        plan=RunPlan(recipe=ChallengerRecipe(), device="cpu", data_licence="", most_images=most),
        checkpoints=Path("checkpoints"),
        champion=lambda: SimpleNamespace(model_version="champion"),
        files=lambda _: iter(range(10)),
        extracted=lambda _: [],
        keep_branches=lambda _: {},
    )
    assert stages.train(cast("RunState", state))["branches"] == []
    assert seen == list(range(taught))
