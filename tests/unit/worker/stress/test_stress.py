"""The load that `unlatent stress` sends and the report that it makes."""

from __future__ import annotations

import pytest

from detection.errors import PermanentError, SettingsError
from detection.intake.decode import IntakeLimits, decode
from worker.stress.load import Step, items, parse_steps
from worker.stress.report import StressLimits, broken, percentile, summary, table
from worker.stress.run import StressOutcome

LIMITS = IntakeLimits(max_bytes=2**24, max_pixels=10**7, max_frames=10, max_metadata_bytes=2**20)


def test_a_load_is_read_in_steps() -> None:
    """Each pair is a rate and a duration."""
    assert parse_steps("5x60,0.5x30") == (Step(5, 60), Step(0.5, 30))


@pytest.mark.parametrize("text", ["", "5", "5x", "0x10", "5x-1", "fast"])
def test_a_load_that_is_none_is_refused(text: str) -> None:
    """The error shows what was given."""
    with pytest.raises(SettingsError, match="no load"):
        parse_steps(text)


def test_uploads_come_in_time_and_in_shares() -> None:
    """Two steps give their uploads at their rates; the same seed gives the same bytes."""
    steps = (Step(10, 2), Step(20, 1))
    shares = {"bad_share": 0.25, "duplicate_share": 0.5, "priority_share": 0.5}
    sent = list(items(steps, **shares, seed=3))
    assert [item.at_s for item in sent[:2]] == [0, 0.1]
    assert [item.at_s for item in sent[20:22]] == [2, 2.05]
    assert len({item.name for item in sent}) == len({item.body for item in sent}) == 40
    assert 0 < sum(item.bad for item in sent) < 20
    assert 10 < sum(item.copies == 2 for item in sent) < 30
    assert 10 < sum(item.priority for item in sent) < 30
    again = items(steps, **shares, seed=3)
    assert [item.body for item in again] == [item.body for item in sent]


def test_calm_uploads_come_after_the_others_and_are_no_copies_of_them() -> None:
    """Numbers go on, so that names and bytes stay unique; times do too."""
    sent = list(items((Step(2, 2),), bad_share=0, duplicate_share=0, after=(Step(1, 2),), seed=3))
    assert [item.calm for item in sent] == [False] * 4 + [True] * 2
    assert [item.at_s for item in sent] == [0, 0.5, 1, 1.5, 2, 3]
    assert len({item.name for item in sent}) == len({item.body for item in sent}) == 6


def test_sound_uploads_decode_and_bad_ones_are_refused() -> None:
    """What is called bad is what the intake refuses."""
    for item in items((Step(12, 1),), bad_share=0.3, duplicate_share=0, seed=5):
        if item.bad:
            with pytest.raises(PermanentError):
                decode(item.body, limits=LIMITS)
        else:
            decode(item.body, limits=LIMITS)


def test_percentiles_are_values_that_occurred() -> None:
    """Nearest rank, by hand; nothing has no percentile."""
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99)] == [50, 95, 99]
    assert percentile([7.0], 0.01) == 7
    assert percentile([], 0.5) is None


def test_broken_limits_are_named() -> None:
    """A lost upload and a slow one each break theirs; a run that kept all breaks none."""
    fine = StressOutcome(events=2, elapsed_s=1.0, latencies_s=[0.1, 0.2])
    limits = StressLimits(p95_s=1.0, p99_s=1.0, min_rate_per_s=1.0)
    assert broken(summary(fine), limits) == []
    slow = StressOutcome(events=3, elapsed_s=10.0, latencies_s=[5.0, 6.0], lost=1)
    problems = broken(summary(slow), limits)
    assert [problem.split()[0] for problem in problems] == ["lost", "p95_s", "p99_s", "ended_per_s"]
    assert "lost               1" in table(summary(slow))
    assert broken(summary(StressOutcome()), StressLimits(p99_s=1.0))


def test_priority_uploads_and_those_in_calm_have_limits_of_their_own() -> None:
    """A crowd may wait for long while both of them did not, or the other way round."""
    limits = StressLimits(priority_p95_s=1.0, calm_p95_s=1.0)
    crowded = StressOutcome(
        elapsed_s=1.0, latencies_s=[0.1, 0.2, 300.0], priority_s=[0.1], calm_s=[0.2]
    )
    assert broken(summary(crowded), limits) == []
    passed_over = StressOutcome(
        elapsed_s=1.0, latencies_s=[0.1, 5.0], priority_s=[5.0], calm_s=[5.0]
    )
    problems = broken(summary(passed_over), limits)
    assert [problem.split()[0] for problem in problems] == ["priority_p95_s", "calm_p95_s"]
