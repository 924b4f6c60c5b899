"""The head of the backbone branch: a penalised multinomial regression on frozen features.

Real pictures are of several kinds and generated ones of several families, and no single line parts
them: what makes a drawing unlike a photograph is not what makes a generated image unlike one. Each
kind and each family is a class of its own, and the logit asks for the side alone: the log-odds of
all generated classes against all real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import structlog
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32] | NDArray[np.float64]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SoftmaxHead:
    """Weights (K, D) and biases (K,) of K classes on features as the backbone gives them.

    The classes are those of `real`, then those of `generated`, by name.
    """

    real: tuple[str, ...]
    generated: tuple[str, ...]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def logits(self, features: Floats) -> NDArray[np.float64]:
        """Map features (N, D) to the log-odds (N,) of being generated."""
        scores = features @ self.weight.T + self.bias
        first = len(self.real)
        odds = logsumexp(scores[:, first:], axis=1) - logsumexp(scores[:, :first], axis=1)
        return np.asarray(odds, dtype=np.float64)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the tensors of `detection.backbone.Backbone.head`."""
        return {
            "head.weight": torch.from_numpy(self.weight).float(),
            "head.bias": torch.from_numpy(self.bias).float(),
        }


def allowed_classes(
    names: NDArray[np.str_], real: tuple[str, ...], generated: tuple[str, ...]
) -> NDArray[np.bool_]:
    """Return which classes (N, K) an image may be of, given its class (N,) by name.

    "real" and "generated" allow every class of their side: the kind or the family is not known.
    Raises `ValueError` for a name that is neither a class nor a side.
    """
    of_generated = np.arange(len(real) + len(generated)) >= len(real)
    exact = names[:, None] == np.array([*real, *generated])
    sides = np.select(
        [names[:, None] == "generated", names[:, None] == "real"], [of_generated, ~of_generated]
    )
    allowed = np.asarray(exact | sides, dtype=bool)
    if unknown := sorted(set(names[~allowed.any(axis=1)])):
        raise ValueError(f"the head has no class {', '.join(unknown)}")
    return allowed


def fit_head(
    features: Floats,
    names: NDArray[np.str_],
    weights: NDArray[np.float64],
    *,
    strength: float,
    start: SoftmaxHead,
) -> SoftmaxHead:
    """Fit a head to features (N, D) of images whose classes are `names` (N,).

    Minimises strength x sum of `weights` (N,) x -log p(class) + |W - W0|^2 over standardised
    features, where W0 are the weights of `start`: a head that is taught further stays where new
    images do not speak against it. With W0 = 0 this is the penalised regression of scikit-learn,
    with C = `strength` for one class a side and C = `strength` / 2 for more. Where only the side of
    an image is known, p is the sum over its classes. Raises `ValueError` for a name that is neither
    a class of `start` nor a side.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    inputs = np.asarray((features - mean) / spread, dtype=np.float64)
    allowed = allowed_classes(names, start.real, start.generated)
    barred = np.where(allowed, 0.0, -np.inf)
    classes, width = allowed.shape[1], inputs.shape[1]
    centre = np.zeros((classes, width + 1))
    centre[:, :-1] = start.weight * spread
    centre[:, -1] = start.bias + start.weight @ mean

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = flat.reshape(centre.shape)
        scores = inputs @ parameters[:, :-1].T + parameters[:, -1]
        moved = parameters - centre
        moved[:, -1] = 0.0  # the biases are free
        lost = logsumexp(scores, axis=1) - logsumexp(scores + barred, axis=1)
        value = strength * float(weights @ lost) + float((moved**2).sum())
        slope = softmax(scores, axis=1) - softmax(scores + barred, axis=1)
        slope *= strength * weights[:, None]
        gradient = np.concatenate([slope.T @ inputs, slope.sum(axis=0)[:, None]], axis=1)
        return value, (gradient + 2 * moved).ravel()

    options = {"maxiter": 500}
    result = minimize(loss, centre.ravel(), jac=True, method="L-BFGS-B", options=options)
    if not result.success:
        _log.warning("head_not_converged", reason=result.message, steps=result.nit)
    found = result.x.reshape(centre.shape)
    weight = found[:, :-1] / spread
    return SoftmaxHead(start.real, start.generated, weight, found[:, -1] - weight @ mean)


def zero_head(real: tuple[str, ...], generated: tuple[str, ...], width: int) -> SoftmaxHead:
    """Return a head of D = `width` features that knows nothing, to start from."""
    classes = len(real) + len(generated)
    return SoftmaxHead(real, generated, np.zeros((classes, width)), np.zeros(classes))
