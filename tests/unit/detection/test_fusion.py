"""Fusion, priors and labels, worked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.errors import SettingsError
from detection.fusion import (
    Fusion,
    LabelPolicy,
    OperatingPoint,
    accusation_distance,
    assign_label,
    at_prior,
    convert_prior,
    select_operating_point,
)
from detection.score import Label

FUSION = Fusion(
    weights={"lare": 2.0, "aligned": 0.5},
    centres={"lare": 1.0, "aligned": -1.0},
    bias=-1.0,
    temperature=2.0,
)


def point(target: float, threshold: float, *, supported: bool = True) -> OperatingPoint:
    """An operating point with nothing but its threshold to tell."""
    return OperatingPoint(
        target=target,
        threshold=threshold,
        measured=target,
        low=0.0,
        high=target,
        reals=100,
        recall=0.5,
        supported=supported,
        needs_reals=None if supported else 1000,
    )


def test_the_fused_logit_is_weighted_shifted_and_tempered() -> None:
    """(2 x 3 + 0.5 x 4 - 1) / 2 = 3.5."""
    assert FUSION.logit({"lare": 3.0, "aligned": 4.0}) == pytest.approx(3.5)


def test_the_branch_that_pulled_hardest_decided() -> None:
    """Pull is weight times distance from the branch's centre, towards the side it landed on."""
    # Pulls: lare 2 x (1.5 - 1) = 1, aligned 0.5 x (2 + 1) = 1.5.
    assert FUSION.decided_by({"lare": 1.5, "aligned": 2.0}, generated=True) == "aligned"
    assert FUSION.decided_by({"lare": 1.5, "aligned": 2.0}, generated=False) == "lare"
    assert FUSION.decided_by({"lare": 4.0, "aligned": 2.0}, generated=True) == "lare"


def test_a_probability_follows_bayes_rule() -> None:
    """Even odds at a share of 1 % are a probability of 1 %; odds of 99 to 1 make it a half."""
    assert at_prior(0.0, 0.5) == pytest.approx(0.5)
    assert at_prior(0.0, 0.01) == pytest.approx(0.01)
    assert at_prior(math.log(99), 0.01) == pytest.approx(0.5)
    assert at_prior(-1000.0, 0.5) == 0.0
    assert at_prior(1000.0, 0.5) == 1.0


@given(logit=st.floats(-30, 30), assumed=st.floats(0.001, 0.999), wanted=st.floats(0.001, 0.999))
def test_converting_a_prior_is_assuming_it_at_once(
    logit: float, assumed: float, wanted: float
) -> None:
    """Stating a probability for one share and converting it equals stating it for the other."""
    converted = convert_prior(at_prior(logit, assumed), assumed=assumed, wanted=wanted)
    assert converted == pytest.approx(at_prior(logit, wanted), abs=1e-6, rel=1e-3)


@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_certainty_survives_another_prior(certain: float) -> None:
    """A probability that rounds to 0 or 1 stays there."""
    assert convert_prior(certain, assumed=0.5, wanted=0.01) == certain


def test_labels_come_from_the_two_thresholds() -> None:
    """From the flag's threshold on generated, from the doubt's on unsure, below it real."""
    points = [point(0.01, 2.0), point(0.05, 0.5)]
    policy = LabelPolicy()
    labels = [assign_label(logit, points, policy) for logit in (2.0, 1.999, 0.5, 0.499)]
    assert [label for label, _ in labels] == [
        Label.GENERATED,
        Label.UNSURE,
        Label.UNSURE,
        Label.REAL,
    ]
    assert [used.name for _, used in labels] == ["fpr=0.01", "fpr=0.05", "fpr=0.05", "fpr=0.05"]


def test_an_unsupported_point_is_never_used() -> None:
    """The next looser supported point stands in; beyond the loosest, the loosest."""
    points = [point(0.001, 5.0, supported=False), point(0.05, 0.5), point(0.01, 2.0)]
    assert select_operating_point(points, 0.001).target == 0.01
    assert select_operating_point(points, 0.02).target == 0.05
    assert select_operating_point(points, 0.5).target == 0.05
    label, used = assign_label(4.0, points, LabelPolicy(flag=0.001))
    assert (label, used.target) == (Label.GENERATED, 0.01)


def test_no_supported_point_is_an_error() -> None:
    """Without a point that photographs support there is no label."""
    with pytest.raises(SettingsError, match="no operating point is supported"):
        select_operating_point([point(0.01, 2.0, supported=False)], 0.01)


@pytest.mark.parametrize("prior", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("logit", [-4.0, 1.05, 2.5, 7.0])
def test_the_distance_is_in_log_odds_from_the_flag_threshold(logit: float, prior: float) -> None:
    """With a temperature it is the logit less the threshold, whatever the prior is."""
    points, policy = [point(0.01, 2.5), point(0.05, 1.5)], LabelPolicy(prior=prior)
    found = accusation_distance(at_prior(logit, prior), FUSION, points, policy)
    assert found == pytest.approx(logit - 2.5)


def test_the_distance_follows_isotonic_breakpoints() -> None:
    """Both ends are calibrated: 0.9 against 0.6 at even odds is the log of 9 over 1.5."""
    fusion = Fusion(weights={}, centres={}, bias=0, isotonic=((-1, 0.2), (1, 0.6), (3, 0.9)))
    policy = LabelPolicy(prior=0.2)
    found = accusation_distance(fusion.probability(5, 0.2), fusion, [point(0.01, 1)], policy)
    assert found == pytest.approx(math.log(9 / 1.5))


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_the_distance_of_a_rounded_probability_is_a_number(probability: float) -> None:
    """JSON and Postgres get no infinity from a score that was rounded to 0 or 1."""
    found = accusation_distance(probability, FUSION, [point(0.01, 2.5)], LabelPolicy())
    assert 20 < abs(found) < 40
