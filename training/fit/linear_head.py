"""The head of the backbone branch: a penalised logistic regression on frozen features.

It is convex, so that the same images give the same head, and nothing has to be stopped early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import minimize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LinearHead:
    """Weights (D,) and bias on features as the backbone gives them."""

    weight: NDArray[np.float64]
    bias: float

    def logits(self, features: Floats) -> NDArray[np.float64]:
        """Map features (N, D) to logits (N,)."""
        return np.asarray(features @ self.weight + self.bias, dtype=np.float64)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the tensors of `detection.backbone.Backbone.head`."""
        return {
            "head.weight": torch.from_numpy(self.weight).float()[None],
            "head.bias": torch.tensor([self.bias], dtype=torch.float32),
        }


def fit_head(
    features: Floats,
    generated: NDArray[np.bool_],
    weights: NDArray[np.float64],
    *,
    strength: float,
    start: LinearHead | None = None,
) -> LinearHead:
    """Fit a head to features (N, D), weighing images by `weights` (N,).

    Minimises strength x sum of weighted log losses + |w - w0|^2 / 2 over standardised features (the
    C of scikit-learn), where w0 is 0, or the weights of `start`: a head that is taught further
    stays where new images do not speak against it.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    inputs = np.asarray((features - mean) / spread, dtype=np.float64)
    signs = np.where(generated, 1.0, -1.0)
    centre = np.zeros(inputs.shape[1] + 1)
    if start is not None:
        centre[:-1] = start.weight * spread
        centre[-1] = start.bias + float(start.weight @ mean)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (inputs @ parameters[:-1] + parameters[-1])
        moved = parameters - centre
        moved[-1] = 0.0  # the bias is free
        value = strength * float(weights @ np.logaddexp(0, -margins)) + float(moved @ moved) / 2
        slope = -strength * weights * signs / (1 + np.exp(margins))
        gradient = np.append(inputs.T @ slope, slope.sum()) + moved
        return value, gradient

    found = minimize(loss, centre, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    weight = found[:-1] / spread
    return LinearHead(weight=weight, bias=float(found[-1] - weight @ mean))
