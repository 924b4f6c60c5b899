"""The log of a start."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from worker.telemetry.start_steps import start_step


def test_a_step_is_logged_once_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """One event a step, with its name and its seconds; a step that fails did not end."""
    times = iter([10.0, 11.5, 20.0])
    monkeypatch.setattr("worker.telemetry.start_steps.time.monotonic", lambda: next(times))
    with capture_logs() as logs:
        with start_step("model"):
            assert logs == []
        with pytest.raises(ZeroDivisionError), start_step("tasks"):
            raise ZeroDivisionError
    (line,) = logs
    assert (line["event"], line["step"], line["seconds"]) == ("start_step_ended", "model", 1.5)
