"""Fusion, temperature, isotonic steps and operating points against independent references."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import binomtest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss, roc_auc_score

from detection.fusion import Fusion, at_prior, convert_prior
from training.evaluation.calibration import (
    CalibrationError,
    Logits,
    class_weights,
    clopper_pearson,
    effective_count,
    fit_fusion,
    flagged_rate,
    operating_points,
    reals_needed,
)

if TYPE_CHECKING:
    from training.evaluation.calibration import CalibrationKind


def drawn(seed: int = 0, *, reals: int = 300, fakes: int = 100, informative: float = 2.0) -> Logits:
    """Overconfident logits of two branches, of which `lare` tells less."""
    rng = np.random.default_rng(seed)
    generated = np.arange(reals + fakes) >= reals
    shift = np.where(generated, informative, 0.0)
    return Logits(
        {
            "aligned": 3 * (shift + rng.normal(size=len(shift))),
            "lare": shift / 2 + rng.normal(size=len(shift)),
        },
        generated,
    )


def even_log_loss(logits: Logits, fusion: Fusion) -> float:
    """Scikit-learn's log loss of the calibrated probabilities to Platt's targets, at even odds.

    An image of a class of n has its own label with weight n + 1, and the other one with weight 1.
    """
    stated = [fusion.probability(value, 0.5) for value in logits.fused(fusion)]
    of_class = np.where(logits.generated, logits.generated.sum(), (~logits.generated).sum())
    even = class_weights(logits.generated) / (of_class + 2)
    return float(
        log_loss(
            np.concatenate([logits.generated, ~logits.generated]),
            stated + stated,
            sample_weight=np.concatenate([even * (of_class + 1), even]),
        )
    )


def test_fusion_beats_each_branch() -> None:
    """Both branches enter, and the fused logits separate better than either."""
    logits = drawn()
    fusion = fit_fusion(logits)
    areas = {
        name: roc_auc_score(logits.generated, values) for name, values in logits.branches.items()
    }
    assert min(fusion.weights.values()) > 0
    assert roc_auc_score(logits.generated, logits.fused(fusion)) > max(areas.values())


def test_a_branch_that_argues_backwards_is_left_out() -> None:
    """Its weight would be negative: it is zero instead, and nobody is accused by it."""
    logits = drawn()
    backwards = Logits(
        {"aligned": logits.branches["aligned"], "lare": -logits.branches["lare"]}, logits.generated
    )
    assert fit_fusion(backwards).weights["lare"] == 0


def test_the_temperature_minimises_scikit_learns_log_loss() -> None:
    """No other temperature of a fine grid does better."""
    logits = drawn(reals=120, fakes=80)
    fusion = fit_fusion(logits)
    # Stretched logits, so that the temperature has something to undo.
    stretched = fusion.model_copy(update={"temperature": fusion.temperature / 3})
    assert even_log_loss(logits, fusion) < even_log_loss(logits, stretched)
    for factor in (0.9, 0.97, 1.03, 1.1):
        other = fusion.model_copy(update={"temperature": fusion.temperature * factor})
        assert even_log_loss(logits, fusion) < even_log_loss(logits, other)


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_forms_of_an_image_are_no_further_evidence(kind: CalibrationKind) -> None:
    """The same 10 images of a kind in three forms support what they supported in one."""
    generated = np.arange(20) >= 10
    once = Logits({"aligned": np.where(generated, 40.0, -60.0)}, generated)
    forms = Logits({"aligned": np.tile(once.branches["aligned"], 3)}, np.tile(generated, 3), 3)
    fitted = [(each, fit_fusion(each, kind)) for each in (once, forms)]
    stated = [fusion.probability(max(each.fused(fusion)), 0.5) for each, fusion in fitted]
    assert stated[0] < 0.98
    assert stated[1] == pytest.approx(stated[0], abs=0.002)


@pytest.mark.parametrize("count", [10, 100])
def test_classes_that_lie_apart_make_no_certainty(count: int) -> None:
    """Of 10 images of a kind, told apart without a mistake, 11 in 12 is what can be claimed."""
    generated = np.arange(2 * count) >= count
    logits = Logits({"aligned": np.where(generated, 40.0, -60.0)}, generated)
    fusion = fit_fusion(logits)
    real, fake = (fusion.probability(value, 0.5) for value in logits.fused(fusion)[[0, -1]])
    assert fake == pytest.approx((count + 1) / (count + 2), abs=0.002)
    assert real == pytest.approx(1 / (count + 2), abs=0.002)


def test_isotonic_calibration_is_scikit_learns() -> None:
    """From its serialised breakpoints a bundle states what scikit-learn's regression predicts."""
    logits = drawn()
    fusion = Fusion.model_validate_json(fit_fusion(logits, "isotonic").model_dump_json())
    fused = logits.fused(fusion)
    reference = IsotonicRegression(out_of_bounds="clip")
    reference.fit(fused, logits.generated, sample_weight=class_weights(logits.generated))
    grid = np.linspace(fused.min() - 2, fused.max() + 2, 401)
    stated = [fusion.probability(value, 0.5) for value in grid]
    # On N images nothing is surer than 1/(2 N): that, and no more, may lie between the two.
    np.testing.assert_allclose(stated, reference.predict(grid), atol=1 / 800 + 1e-12)
    known = reference.predict(fused)
    sure = (known < 1 / 800) | (known > 1 - 1 / 800)
    assert 0 < sure.sum() < len(sure)
    found = np.array([fusion.probability(value, 0.5) for value in fused])
    np.testing.assert_allclose(found[~sure], known[~sure], atol=1e-12)
    assert found.min() == pytest.approx(1 / 800)
    for prior in (0.01, 0.9):
        found = fusion.probability(float(grid[200]), prior)
        assert found == pytest.approx(convert_prior(stated[200], assumed=0.5, wanted=prior))


@given(seed=st.integers(0, 10_000), prior=st.floats(0.001, 0.999))
@settings(max_examples=20, deadline=None)
def test_isotonic_probabilities_never_fall(seed: int, prior: float) -> None:
    """A larger fused logit never has a smaller probability, and none is certain."""
    fusion = fit_fusion(drawn(seed, reals=30, fakes=20, informative=1.0), "isotonic")
    stated = [fusion.probability(value, prior) for value in np.linspace(-30, 30, 301)]
    assert min(np.diff(stated)) >= 0
    assert 0 < stated[0] < stated[-1] < 1


def test_isotonic_calibration_leaves_ranks_and_thresholds_alone() -> None:
    """The logit that thresholds are placed on has no steps: only the probability has."""
    logits = drawn()
    fusion = fit_fusion(logits, "isotonic")
    fused = logits.fused(fusion)
    assert len(np.unique(fused)) == len(fused)
    branches = {name: float(values[7]) for name, values in logits.branches.items()}
    assert fusion.logit(branches) == pytest.approx(fused[7])


def test_without_breakpoints_the_temperature_calibrates() -> None:
    """Bundles written before there were breakpoints load, and mean what they meant."""
    fusion = Fusion.model_validate({"weights": {"a": 1.0}, "centres": {"a": 0.0}, "bias": 0.0})
    assert fusion.probability(1.5, 0.2) == at_prior(1.5, 0.2)


@pytest.mark.parametrize(
    "breakpoints",
    [
        ((0.0, 0.5), (0.0, 0.6)),  # no rise in the logit
        ((0.0, 0.5), (1.0, 0.4)),  # a falling probability
        ((0.0, 0.0),),  # certainty
    ],
)
def test_impossible_breakpoints_are_refused(breakpoints: tuple[tuple[float, float], ...]) -> None:
    """A bundle cannot state steps that fall or probabilities that nothing supports."""
    with pytest.raises(ValidationError):
        Fusion(weights={}, centres={}, bias=0.0, isotonic=breakpoints)


@pytest.mark.parametrize(("hits", "total"), [(0, 300), (3, 300), (300, 300)])
def test_the_interval_is_scipys(hits: int, total: int) -> None:
    """Clopper and Pearson's interval as scipy computes it."""
    exact = binomtest(hits, total).proportion_ci(0.95, "exact")
    assert clopper_pearson(hits, total) == pytest.approx((exact.low, exact.high))


def test_operating_points_keep_their_rates_and_their_support() -> None:
    """A threshold flags at most the target's share; the interval decides whether it is used."""
    logits = drawn(reals=400, fakes=100)
    fused = logits.fused(fit_fusion(logits))
    reals, fakes = fused[~logits.generated], fused[logits.generated]
    points = operating_points(fused, logits.generated)
    assert [point.target for point in points] == [0.001, 0.005, 0.01, 0.05]
    for point in points:
        hits = int((reals >= point.threshold).sum())
        assert hits <= point.target * len(reals)
        assert point.measured == hits / len(reals)
        assert point.recall == pytest.approx(float((fakes >= point.threshold).mean()))
        upper = binomtest(hits, len(reals)).proportion_ci(0.95, "exact").high
        assert point.supported == (upper <= 2.5 * point.target)
    assert [point.supported for point in points] == [False, True, True, True]
    assert points[0].needs_reals == reals_needed(0.001)


def test_drawings_and_documents_raise_a_threshold_and_never_lower_one() -> None:
    """At most twice the target of other reals lies above a point; photographs still hold theirs."""
    rng = np.random.default_rng(31)
    fused = np.concatenate([rng.normal(0, 1, 1000), rng.normal(4, 1, 200)])
    generated = np.arange(1200) >= 1000
    plain = operating_points(fused, generated)
    high = operating_points(fused, generated, others=rng.normal(3, 1, 200))
    low = operating_points(fused, generated, others=rng.normal(-9, 1, 200))
    for before, raised, same in zip(plain, high, low, strict=True):
        assert raised.threshold > before.threshold == same.threshold
        assert raised.others == 200
        assert raised.others_flagged is not None
        assert raised.others_flagged <= 2 * raised.target * 200
        assert raised.measured <= before.measured
        assert raised.recall < before.recall
        assert same.others_flagged == 0
        assert (before.others_flagged, before.others) == (None, 0)


def test_no_point_accuses_what_is_more_likely_a_photograph() -> None:
    """With every photograph far below even odds, the threshold stays at even odds."""
    fused = np.array([-9.0] * 95 + [-7.0] * 5 + [8.0] * 4)
    generated = np.array([False] * 100 + [True] * 4)
    (point,) = operating_points(fused, generated, targets=(0.05,))
    assert (point.threshold, point.measured, point.recall) == (0.0, 0.0, 1.0)


def test_the_photographs_needed_are_just_enough() -> None:
    """With no false positive among them the point is supported; with 2 % fewer it is not."""
    needed = reals_needed(0.01)
    assert binomtest(0, needed).proportion_ci(0.95, "exact").high <= 0.025
    assert binomtest(0, round(0.98 * needed)).proportion_ci(0.95, "exact").high > 0.025


def test_one_kind_of_image_calibrates_nothing() -> None:
    """Photographs alone cannot place a fusion."""
    logits = drawn(reals=10, fakes=0)
    with pytest.raises(CalibrationError, match="no generated images"):
        fit_fusion(logits)


#: Ten audited photographs that stand for 20 each, beside 100 of a trusted source.
AUDITED, TRUSTED = np.full(10, 20.0), np.ones(100)


def test_the_effective_number_is_kishs() -> None:
    """300^2 / 4100 by hand; weights of one are worth their count, whatever the unit."""
    assert effective_count(np.r_[AUDITED, TRUSTED]) == pytest.approx(90_000 / 4_100)
    assert effective_count(np.full(7, 3.0)) == 7


def test_a_weighted_rate_by_hand() -> None:
    """One audited and four trusted of 110 flagged: 24 of 300, at the variance's number of images.

    The variance is (404 x 276 / 24 + 3696 x 24 / 276) / 300^2, with 404 and 3696 the sums of
    squared weights that are flagged and that are not: 24/300 is worth as 18.1 images.
    """
    flagged = np.r_[np.arange(10) < 1, np.arange(100) < 4]
    rate = flagged_rate(flagged, np.r_[AUDITED, TRUSTED])
    worth = 90_000 / (404 * 276 / 24 + 3_696 * 24 / 276)
    assert worth == pytest.approx(18.12, abs=0.005)
    low, high = clopper_pearson(0.08 * worth, worth)
    assert (rate.measured, rate.low, rate.high) == pytest.approx((0.08, low, high))
    assert rate.high > binomtest(5, 110).proportion_ci(0.95, "exact").high


def test_one_heavy_photograph_is_no_certainty() -> None:
    """What a single image stands for rests on that image alone: the interval says so."""
    weights = np.r_[1000.0, np.full(1000, 10.0)]
    rate = flagged_rate(weights > 100, weights)
    assert rate.measured == pytest.approx(1 / 11)
    assert rate.high > 3 * rate.measured


def test_nothing_flagged_is_worth_kishs_number() -> None:
    """The upper limit is 1 - 0.025^(1/n) at the effective n, above the plain count's."""
    rate = flagged_rate(np.zeros(110, dtype=bool), np.r_[AUDITED, TRUSTED])
    assert (rate.measured, rate.low) == (0, 0)
    assert rate.high == pytest.approx(1 - 0.025 ** (4_100 / 90_000))


def test_a_heavy_photograph_tightens_the_threshold() -> None:
    """100 photographs, 5 % allowed: five by count, but the highest stands for a tenth of all."""
    fused = np.r_[np.arange(100.0), 200.0]
    generated = np.arange(101) == 100
    heavy = np.where(np.arange(101) == 99, 11.0, 1.0)
    (plain,) = operating_points(fused, generated, targets=(0.05,))
    (weighed,) = operating_points(fused, generated, heavy, targets=(0.05,))
    assert (plain.threshold, plain.measured) == (np.nextafter(94.0, np.inf), 0.05)
    assert (weighed.threshold, weighed.measured) == (np.nextafter(99.0, np.inf), 0.0)


def test_a_light_photograph_never_loosens_the_threshold() -> None:
    """Those above the plain threshold may weigh nothing much: it stays where the count puts it."""
    fused = np.r_[np.arange(100.0), 200.0]
    generated = np.arange(101) == 100
    light = np.where(np.arange(101) >= 80, 0.01, 1.0)
    (plain,) = operating_points(fused, generated, targets=(0.05,))
    (weighed,) = operating_points(fused, generated, light, targets=(0.05,))
    assert weighed.threshold == plain.threshold
    assert weighed.measured < plain.measured
    assert weighed.high >= plain.high


def test_recall_counts_what_each_generated_image_stands_for() -> None:
    """Three found that stand for one each, one missed that stands for nine: a quarter is found."""
    fused = np.r_[np.zeros(100), 1.0, 1.0, 1.0, -1.0]
    generated = np.arange(104) >= 100
    weights = np.r_[np.ones(103), 9.0]
    assert operating_points(fused, generated, weights)[-1].recall == 0.25


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([1.0, 20.0, 200.0]))
def test_weights_never_make_a_point_laxer(seed: int, spread: float) -> None:
    """Whatever the weights: no lower threshold, no lower upper limit for what is flagged there."""
    logits = drawn(seed, reals=120, fakes=30)
    fused = logits.branches["aligned"]
    weights = np.random.default_rng(seed).choice([1.0, spread], len(fused))
    reals = fused[~logits.generated]
    rows = zip(
        operating_points(fused, logits.generated),
        operating_points(fused, logits.generated, weights),
        strict=True,
    )
    for plain, weighed in rows:
        assert weighed.threshold >= plain.threshold
        assert weighed.low <= weighed.measured <= weighed.high
        hits = int((reals >= weighed.threshold).sum())
        assert weighed.high >= binomtest(hits, 120).proportion_ci(0.95, "exact").high - 1e-12
        if spread == 1:
            assert weighed == plain


def test_what_the_champion_let_through_loosens_no_threshold() -> None:
    """100 photographs that score low were let through: of the 100 others 5 % may be flagged."""
    fused = np.r_[np.arange(1.0, 101.0), np.full(100, -9.0), 200.0]
    generated = np.arange(201) == 200
    audited = fused == -9
    (plain,) = operating_points(fused, generated, targets=(0.05,))
    (point,) = operating_points(fused, generated, targets=(0.05,), audited=audited)
    assert plain.threshold == np.nextafter(90.0, np.inf)
    assert (point.threshold, point.supported) == (np.nextafter(95.0, np.inf), True)
    assert point.measured == 5 / 200
    assert point.high == pytest.approx(binomtest(5, 100).proportion_ci(0.95, "exact").high)


def test_what_the_champion_let_through_tightens_a_threshold() -> None:
    """Where audited photographs score high, the others' own threshold is not enough."""
    fused = np.r_[np.arange(1.0, 101.0), np.full(10, 150.0) + np.arange(10), 200.0]
    generated = np.arange(111) == 110
    audited = (fused >= 150) & ~generated
    (point,) = operating_points(fused, generated, targets=(0.05,), audited=audited)
    assert point.threshold == np.nextafter(154.0, np.inf)


def test_what_the_champion_let_through_supports_no_threshold_alone() -> None:
    """With audited photographs alone nothing is known of those that the champion accused."""
    fused = np.r_[np.arange(1000.0), 2000.0]
    generated = np.arange(1001) == 1000
    points = operating_points(fused, generated, audited=~generated)
    assert [(point.supported, point.high) for point in points] == [(False, 1.0)] * 4


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_a_weight_is_as_good_as_copies(kind: CalibrationKind) -> None:
    """An image that stands for three is fitted as three images are, but a little less surely."""
    logits = drawn(reals=60, fakes=40, informative=1.0)
    copies = np.where(np.arange(100) % 4 == 0, 3, 1)
    repeated = Logits(
        {name: np.repeat(values, copies) for name, values in logits.branches.items()},
        np.repeat(logits.generated, copies),
    )
    weighed = fit_fusion(logits, kind, copies.astype(float))
    copied = fit_fusion(repeated, kind)
    for values in (logits.branches, {"aligned": 1.0, "lare": -1.0}):
        sample = {name: float(np.max(value)) for name, value in values.items()}
        assert 0.9 < weighed.logit(sample) / copied.logit(sample) < 1
    stated = [
        [one.probability(logit, 0.5) for logit in logits.fused(one)] for one in (weighed, copied)
    ]
    assert min(stated[1]) < 0.2
    assert max(stated[1]) > 0.8
    assert stated[0] == pytest.approx(stated[1], abs=0.02)
    assert weighed.centres == pytest.approx(copied.centres)


def test_weights_of_one_change_no_fit() -> None:
    """A bundle whose images were all sampled alike is the very same."""
    logits = drawn()
    assert fit_fusion(logits, "isotonic", np.ones(400)) == fit_fusion(logits, "isotonic")
    assert fit_fusion(logits, weights=np.ones(400)) == fit_fusion(logits)


def test_steps_are_no_surer_than_the_images_are_worth() -> None:
    """100 images worth 21.95 of equal weight: no probability nearer to 0 or 1 than 1/(2 x that)."""
    logits = drawn(reals=100, fakes=10, informative=3.0)
    fusion = fit_fusion(logits, "isotonic", np.r_[TRUSTED, AUDITED])
    assert fusion.isotonic[-1][1] == pytest.approx(1 - 0.5 * 4_100 / 90_000)


def test_the_flagged_share_of_weight_keeps_to_the_target() -> None:
    """Of 1000 photographs the 50 highest stand for 1.6 each: 32 of them are 5 % of all 1030."""
    fused = np.r_[np.arange(1000.0), 2000.0]
    generated = np.arange(1001) == 1000
    weights = np.where(fused >= 950, 1.6, 1.0)
    (point,) = operating_points(fused, generated, weights, targets=(0.05,))
    assert (fused[:1000] >= point.threshold).sum() == 32
    assert point.measured == pytest.approx(51.2 / 1030)
