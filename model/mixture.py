"""Mixes the logits of experts by how good they have been lately, and so calibrates them: logistic stacking, online.

In: the logits of E experts for events whose labels are known by now, predicted with the delay at which they are served.
Out: weights and a bias. Learning them on *served* predictions is what makes the mixture honest about delay: an expert
that goes stale soon gets little weight where publications are rare. Stacking: Wolpert, 1992; online as a Bayesian
logistic regression with Laplace's approximation whose evidence fades to the prior.
"""

import numpy as np

_HALF_LIFE_EVENTS = 50_000
_PRIOR_PRECISION = 300.0
_NEWTON_STEPS = 5
_LOGIT_RANGE = 12.0
_LEAST_CURVATURE = 0.02


class Mixture:
    """Weights over a constant and E experts: float64 (1 + E,)."""

    def __init__(self, weights: np.ndarray):
        """`weights`: what to begin with, and the prior."""
        self.weights = np.array(weights, np.float64)
        self.precision = np.eye(len(weights)) * _PRIOR_PRECISION

    def update(self, experts_BE: np.ndarray, labels_B: np.ndarray) -> None:
        """Learn from B events, all predicted with the present weights."""
        if not len(labels_B):
            return
        x = _with_constant(experts_BE)
        fade = 0.5 ** (len(labels_B) / _HALF_LIFE_EVENTS)
        before = self.weights
        evidence = self.precision * fade + np.eye(len(before)) * _PRIOR_PRECISION * (1 - fade)
        weights = before
        for _ in range(_NEWTON_STEPS):
            predictions_B = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
            curvature_B = np.maximum(predictions_B * (1 - predictions_B), _LEAST_CURVATURE)
            precision = (x * curvature_B[:, None]).T @ x + evidence
            gradient = x.T @ (predictions_B - labels_B) + evidence @ (weights - before)
            weights = weights - np.linalg.solve(precision, gradient)
        self.weights, self.precision = weights, precision

    def state(self) -> dict[str, np.ndarray]:
        """Everything, for a snapshot."""
        return {"weights": self.weights, "precision": self.precision}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Undo `state`."""
        self.weights, self.precision = arrays["weights"].copy(), arrays["precision"].copy()


def mix(weights: np.ndarray, experts_BE: np.ndarray) -> np.ndarray:
    """(B,) float32 logits."""
    return (_with_constant(experts_BE) @ weights).astype(np.float32)


def _with_constant(experts_BE: np.ndarray) -> np.ndarray:
    clipped = np.clip(experts_BE.astype(np.float64), -_LOGIT_RANGE, _LOGIT_RANGE)
    return np.concatenate([np.ones((len(clipped), 1)), clipped], 1)
