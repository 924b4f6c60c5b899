"""The head: the convex fit over several classes, what its logit is, and a fit from another head."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from training.fit.softmax_head import SoftmaxHead, allowed_classes, fit_head, zero_head

RNG = np.random.default_rng(8)
FEATURES = RNG.normal(3, [1, 10, 0.1, 5], (400, 4)).astype(np.float32)
GENERATED = FEATURES[:, 1] + 20 * FEATURES[:, 2] + RNG.normal(0, 4, 400) > 63
NAMES = np.where(GENERATED, "generated", "real")
WEIGHTS = RNG.uniform(0.5, 2, 400)
TWO = zero_head(("real",), ("generated",), 4)


def standardised() -> np.ndarray:
    """The features with mean 0 and spread 1."""
    return np.asarray((FEATURES - FEATURES.mean(0)) / (FEATURES.std(0) + 1e-6))


def test_with_two_classes_it_is_the_logistic_regression_of_scikit_learn() -> None:
    """On standardised features, the log-odds are those of an independent solver."""
    head = fit_head(FEATURES, NAMES, WEIGHTS, strength=0.05, start=TWO)
    model = LogisticRegression(C=0.05, tol=1e-8, max_iter=2000)
    model.fit(standardised(), GENERATED, sample_weight=WEIGHTS)
    expected = model.decision_function(standardised())
    np.testing.assert_allclose(head.logits(FEATURES), expected, atol=2e-3)


def test_with_several_classes_the_logit_is_the_odds_of_the_sides() -> None:
    """Probabilities of an independent multinomial regression, summed by side, give the logit."""
    names = np.where(GENERATED, np.where(FEATURES[:, 0] > 3, "a", "b"), "photograph")
    names[~GENERATED & (FEATURES[:, 3] > 6)] = "drawing"
    start = zero_head(("drawing", "photograph"), ("a", "b"), 4)
    head = fit_head(FEATURES, names, WEIGHTS, strength=0.05, start=start)
    # scikit-learn penalises half the squared weights.
    model = LogisticRegression(C=0.025, tol=1e-8, max_iter=2000)
    model.fit(standardised(), names, sample_weight=WEIGHTS)
    found = model.predict_proba(standardised())
    assert model.classes_.tolist() == ["a", "b", "drawing", "photograph"]
    expected = np.log(found[:, :2].sum(1) / found[:, 2:].sum(1))
    np.testing.assert_allclose(head.logits(FEATURES), expected, atol=5e-3)


def test_a_side_alone_allows_each_of_its_classes() -> None:
    """An exact class allows itself; "real" and "generated" allow the classes of that side."""
    allowed = allowed_classes(
        np.array(["drawing", "real", "generated", "b"]), ("drawing", "photograph"), ("a", "b")
    )
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]
    assert allowed.astype(int).tolist() == expected


def test_a_class_that_the_head_lacks_is_refused() -> None:
    """A name that is neither a class nor a side is named in the error, not fitted to nothing."""
    with pytest.raises(ValueError, match="no class cartoon"):
        allowed_classes(np.array(["cartoon", "a"]), ("photograph",), ("a",))


def test_a_head_that_starts_from_another_stays_near_it() -> None:
    """With little strength its logits are the start's; with more they follow the new images."""
    start = fit_head(FEATURES, NAMES, WEIGHTS, strength=1.0, start=TWO)
    turned = np.where(GENERATED, "real", "generated")
    near = fit_head(FEATURES, turned, WEIGHTS, strength=1e-9, start=start)
    away = fit_head(FEATURES, turned, WEIGHTS, strength=10.0, start=start)
    np.testing.assert_allclose(near.weight, start.weight, rtol=1e-3, atol=1e-6)
    assert np.corrcoef(away.logits(FEATURES), start.logits(FEATURES))[0, 1] < -0.9


def test_the_tensors_are_those_of_a_linear_layer() -> None:
    """A layer that loads the state gives the scores whose odds are the logit."""
    import torch

    head = SoftmaxHead(
        ("real",), ("generated",), np.array([[0.0, 1.0], [0.5, -1.0]]), np.array([0.0, 0.25])
    )
    layer = torch.nn.Linear(2, 2)
    state = {name.removeprefix("head."): value for name, value in head.state().items()}
    layer.load_state_dict(state)
    real, generated = layer(torch.tensor([[3.0, 1.0]]))[0].tolist()
    found = head.logits(np.array([[3.0, 1.0]]))[0]
    assert generated - real == pytest.approx(found) == pytest.approx(0.75 - 1.0)
