"""What a stress run reports: a summary, its table, its plot, and the limits that it broke."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from worker.stress.run import StressOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class StressLimits:
    """What a release must keep; None is no limit. Losing or doubling is never allowed."""

    p95_s: float | None = None
    p99_s: float | None = None
    priority_p95_s: float | None = None
    calm_p95_s: float | None = None
    min_rate_per_s: float | None = None


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least this share of the ordered values does not exceed."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summary(outcome: StressOutcome) -> dict[str, Any]:
    """Return the numbers of a run, ready for JSON."""
    ended = len(outcome.latencies_s)
    return {
        "events": outcome.events,
        "uploads_ended": ended,
        "elapsed_s": round(outcome.elapsed_s, 3),
        "ended_per_s": round(ended / outcome.elapsed_s, 3) if outcome.elapsed_s else 0.0,
        **{
            f"p{round(100 * share)}_s": percentile(outcome.latencies_s, share)
            for share in (0.5, 0.95, 0.99)
        },
        "priority_p95_s": percentile(outcome.priority_s, 0.95),
        "calm_p95_s": percentile(outcome.calm_s, 0.95),
        "generator_late_s": round(outcome.late_s, 3),
        "bad_sent": outcome.bad_sent,
        "duplicates_sent": outcome.duplicates_sent,
        "not_sent": outcome.not_sent,
        "lost": outcome.lost,
        "extra_rows": outcome.extra_rows,
        "double_verdicts": outcome.double_verdicts,
        "states": dict(outcome.states),
        "reasons": dict(outcome.reasons),
        "queue_depth": [[round(at_s, 1), depth] for at_s, depth in outcome.depth],
    }


def broken(numbers: dict[str, Any], limits: StressLimits) -> list[str]:
    """Say which limits the run broke."""
    problems = [
        f"{name} is {numbers[name]}, must be 0"
        for name in ("lost", "extra_rows", "double_verdicts", "not_sent")
        if numbers[name]
    ]
    for name in ("p95_s", "p99_s", "priority_p95_s", "calm_p95_s"):
        found, limit = numbers[name], getattr(limits, name)
        if limit is not None and (found is None or found > limit):
            problems.append(f"{name} is {found}, limit {limit:g}")
    if limits.min_rate_per_s is not None and numbers["ended_per_s"] < limits.min_rate_per_s:
        problems.append(
            f"ended_per_s is {numbers['ended_per_s']}, must be {limits.min_rate_per_s:g}"
        )
    return problems


def table(numbers: dict[str, Any]) -> str:
    """Return the numbers as lines of two columns; the queue's curve as its peak."""
    rows = {**numbers, "queue_depth": max((d for _, d in numbers["queue_depth"]), default=0)}
    rows["queue_depth_peak"] = rows.pop("queue_depth")
    lines = []
    for name, value in rows.items():
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        if isinstance(value, dict):
            text = ", ".join(f"{key} {count}" for key, count in sorted(value.items()))
        lines.append(f"{name:<18} {'-' if value is None else text or '-'}")
    return "\n".join(lines)


def plot(outcome: StressOutcome, path: Path) -> None:
    """Draw the depth of the queue over time and the distribution of latencies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2)
    above.plot([at_s for at_s, _ in outcome.depth], [depth for _, depth in outcome.depth])
    above.set(xlabel="s since the start", ylabel="events waiting")
    count = len(outcome.latencies_s)
    below.plot(outcome.latencies_s, [(index + 1) / count for index in range(count)])
    below.set(xlabel="s from event to end", ylabel="share of uploads", ylim=(0, 1))
    figure.savefig(path)
