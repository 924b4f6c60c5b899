"""The promotion gate: what lets a challenger through and what keeps it out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detection.score import Label
from training.evaluation.promotion_gate import (
    GateLimits,
    ModelPredictions,
    PairedPredictions,
    PinnedReport,
    decide,
)

LIMITS = GateLimits(bootstraps=200)
SOURCES = ("camera", "family-a", "family-b")
EACH = 300


def labels() -> tuple[np.ndarray, np.ndarray]:
    """Sources and truth: as many photographs as generated images of two families together."""
    sources = np.repeat(np.array([SOURCES[0], *SOURCES]), EACH)
    return sources, np.isin(sources, SOURCES[1:])


def judged(separation: dict[str, float], *, seed: int, stretch: float = 1.0) -> ModelPredictions:
    """A model with Gaussian logits: unit spread, a mean for each source; threshold at 1.645."""
    sources, _ = labels()
    rng = np.random.default_rng(seed)
    means = np.array([separation.get(source, 0.0) for source in sources.tolist()])
    logits = means + rng.standard_normal(len(sources))
    # For unit Gaussians around 0 and 3 the true log odds are 3 x - 4.5.
    odds = stretch * (3 * logits - 4.5)
    return ModelPredictions(logits=logits, probabilities=1 / (1 + np.exp(-odds)), threshold=1.645)


def paired(champion: ModelPredictions, challenger: ModelPredictions) -> PairedPredictions:
    """Both models on the same images."""
    sources, generated = labels()
    return PairedPredictions(
        sources=sources, generated=generated, champion=champion, challenger=challenger
    )


GOOD = {"family-a": 3.0, "family-b": 3.0}
WEAK = {"family-a": 3.0, "family-b": 1.5}


def closed(count: int, challenger: Label = Label.REAL) -> list[PinnedReport]:
    """Closed reports of photographs that the champion calls real."""
    return [
        PinnedReport(key=f"r{n}", truth=Label.REAL, champion=Label.REAL, challenger=challenger)
        for n in range(count)
    ]


def test_a_better_challenger_passes() -> None:
    """A challenger that learnt a family passes, and the decision says by how much."""
    tiers = {
        "clean": paired(judged(WEAK, seed=1), judged(GOOD, seed=2)),
        "web": paired(judged(WEAK, seed=3), judged(GOOD, seed=4)),
    }
    decision = decide(tiers, closed(3), limits=LIMITS)

    assert decision.passed, decision.reasons
    assert decision.false_positive_rate == pytest.approx(0.05, abs=0.025)
    # By hand: half the generated images go from P(z > 0.145) to P(z > -1.355).
    assert decision.figures["recall"].champion == pytest.approx((0.912 + 0.442) / 2, abs=0.04)
    assert decision.figures["recall"].challenger == pytest.approx(0.912, abs=0.04)
    assert "rises from" in decision.reasons[0]
    assert json.loads(decision.to_json())["passed"] is True


def test_an_equal_challenger_is_noise() -> None:
    """A challenger of the same worth does not pass: the champion stays."""
    decision = decide(
        {"clean": paired(judged(GOOD, seed=1), judged(GOOD, seed=2))}, [], limits=LIMITS
    )

    assert not decision.passed
    assert "not better beyond noise" in decision.reasons[0]


def test_a_worse_tier_keeps_it_out() -> None:
    """Better when clean, worse when re-encoded: refused, and the tier is named."""
    tiers = {
        "clean": paired(judged(WEAK, seed=1), judged(GOOD, seed=2)),
        "hard": paired(judged(GOOD, seed=3), judged({"family-a": 2.0}, seed=4)),
    }
    decision = decide(tiers, [], limits=LIMITS)

    assert [reason.split(" is ")[0] for reason in decision.reasons] == ["tier hard"]


def test_a_worse_source_keeps_it_out() -> None:
    """More recall in sum but one large source given up: refused, and the source is named."""
    champion = judged({"family-a": 2.2, "family-b": 0.2}, seed=1)
    challenger = judged({"family-a": 1.2, "family-b": 3.0}, seed=2)
    decision = decide({"clean": paired(champion, challenger)}, [], limits=LIMITS)

    assert any(reason.startswith("source family-a is worse") for reason in decision.reasons)
    small = GateLimits(bootstraps=200, min_source_images=EACH + 1)
    unnamed = decide({"clean": paired(champion, challenger)}, [], limits=small)
    assert not any(reason.startswith("source family-a") for reason in unnamed.reasons)


def test_a_reopened_report_keeps_it_out() -> None:
    """One closed report that the challenger gets wrong again is enough."""
    tiers = {"clean": paired(judged(WEAK, seed=1), judged(GOOD, seed=2))}
    reports = [*closed(4), *closed(1, Label.GENERATED)]
    decision = decide(tiers, reports, limits=LIMITS)

    assert not decision.passed
    assert decision.reopened == ("r0",)
    assert "1 of 5 pinned reports" in decision.reasons[0]


def test_unsure_does_not_reopen_a_report() -> None:
    """A challenger that is unsure of a reported photograph accuses nobody."""
    tiers = {"clean": paired(judged(WEAK, seed=1), judged(GOOD, seed=2))}

    assert decide(tiers, closed(3, Label.UNSURE), limits=LIMITS).passed


def test_a_champion_that_is_wrong_too_blocks_nothing() -> None:
    """A report that the champion itself gets wrong is not reopened by the challenger."""
    report = PinnedReport(
        key="r", truth=Label.REAL, champion=Label.GENERATED, challenger=Label.GENERATED
    )
    assert not report.reopened


def test_worse_calibration_keeps_it_out() -> None:
    """A challenger that separates better but shouts its probabilities is refused."""
    tiers = {"clean": paired(judged(WEAK, seed=1, stretch=0.6), judged(GOOD, seed=2, stretch=0.05))}
    decision = decide(tiers, [], limits=LIMITS)

    assert any(reason.startswith("calibration is worse") for reason in decision.reasons)


def test_one_class_missing_is_said() -> None:
    """Without generated images nothing is compared, and the decision says so."""
    whole = paired(judged(WEAK, seed=1), judged(GOOD, seed=2))
    keep = ~whole.generated
    champion, challenger = (
        ModelPredictions(
            logits=side.logits[keep], probabilities=side.probabilities[keep], threshold=1.0
        )
        for side in (whole.champion, whole.challenger)
    )
    only_real = PairedPredictions(
        sources=whole.sources[keep],
        generated=whole.generated[keep],
        champion=champion,
        challenger=challenger,
    )
    decision = decide({"clean": only_real}, [], limits=LIMITS)

    assert not decision.passed
    assert decision.reasons == (
        "the evaluation holds 0 generated images: at least 50 are needed to tell the models apart",
    )


def test_a_poisoned_challenger_is_kept_out() -> None:
    """A challenger taught that one family is real loses that family and reopens its reports."""
    champion = judged(GOOD, seed=1)
    poisoned = judged({"family-a": 4.0, "family-b": -1.0}, seed=2)
    reports = [
        PinnedReport(
            key=f"report-{n}",
            truth=Label.GENERATED,
            champion=Label.GENERATED,
            challenger=Label.REAL,
        )
        for n in range(3)
    ]
    decision = decide({"clean": paired(champion, poisoned)}, reports, limits=LIMITS)

    said = " ".join(decision.reasons)
    assert not decision.passed
    assert "not better beyond noise" in said
    assert "source family-b is worse" in said
    assert "3 of 3 pinned reports would be reopened" in said
