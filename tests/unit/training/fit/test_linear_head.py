"""The linear head: the convex fit, and a fit that starts from another head."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from training.fit.linear_head import LinearHead, fit_head

RNG = np.random.default_rng(8)
FEATURES = RNG.normal(3, [1, 10, 0.1, 5], (400, 4)).astype(np.float32)
GENERATED = FEATURES[:, 1] + 20 * FEATURES[:, 2] + RNG.normal(0, 4, 400) > 63
WEIGHTS = RNG.uniform(0.5, 2, 400)


def test_the_head_is_the_logistic_regression_of_scikit_learn() -> None:
    """On standardised features, weights and bias are those of an independent solver."""
    head = fit_head(FEATURES, GENERATED, WEIGHTS, strength=0.05)
    inputs = (FEATURES - FEATURES.mean(0)) / (FEATURES.std(0) + 1e-6)
    model = LogisticRegression(C=0.05, tol=1e-8, max_iter=2000)
    model.fit(inputs, GENERATED, sample_weight=WEIGHTS)
    np.testing.assert_allclose(head.logits(FEATURES), model.decision_function(inputs), atol=2e-3)


def test_a_head_that_starts_from_another_stays_near_it() -> None:
    """With little strength its logits are the start's; with more they follow the new images."""
    start = fit_head(FEATURES, GENERATED, WEIGHTS, strength=1.0)
    turned = ~GENERATED
    near = fit_head(FEATURES, turned, WEIGHTS, strength=1e-9, start=start)
    away = fit_head(FEATURES, turned, WEIGHTS, strength=10.0, start=start)
    np.testing.assert_allclose(near.weight, start.weight, rtol=1e-3, atol=1e-6)
    assert np.corrcoef(away.logits(FEATURES), start.logits(FEATURES))[0, 1] < -0.9


def test_the_tensors_are_those_of_a_linear_layer() -> None:
    """A layer that loads the state gives the same logits."""
    import torch

    head = LinearHead(weight=np.array([0.5, -2.0]), bias=0.25)
    layer = torch.nn.Linear(2, 1)
    state = {name.removeprefix("head."): value for name, value in head.state().items()}
    layer.load_state_dict(state)
    found = layer(torch.tensor([[3.0, 1.0]])).item()
    assert found == pytest.approx(head.logits(np.array([[3.0, 1.0]]))[0]) == pytest.approx(-0.25)
