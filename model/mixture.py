"""Mixes the logits of experts by how good they have been lately, and calibrates them: logistic stacking, online.

In: the logits of E experts for events whose labels are known by now, predicted with the delay at which they are served.
Out: weights and a bias. Learning them on *served* predictions is what makes the mixture honest about delay: an expert
that goes stale soon gets little weight where publications are rare. Stacking: Wolpert, 1992; online as a Bayesian
logistic regression with Laplace's approximation whose evidence fades to the prior.

Beside the learned bias there is a debt: clicks that were not predicted, or predicted and did not come, move the next
logits until they are made up for (integral control), so the mean prediction follows the click rate over any long
window. With long delays that does more harm than good, so the gain falls with the cube of the delay.
"""

import numpy as np

_PRIOR_PRECISION = 300.0
_NEWTON_STEPS = 5
LOGIT_RANGE = 12.0
_LEAST_CURVATURE = 0.02
_DEBT_DELAY_EVENTS = 1_000
_LARGEST_DEBT = 2.0


class Mixture:
    """Weights over a constant and E experts: float64 (1 + E,)."""

    def __init__(self, weights: np.ndarray, *, half_life_events: float, debt_rate: float):
        """`weights`: what to begin with, and the prior. `half_life_events`: of evidence, > 0; infinite: weights stay.

        `debt_rate`: logit for each click too many or too few, >= 0; 0: no debt.
        """
        self.learned = np.array(weights, np.float64)
        self.precision = np.eye(len(weights)) * _PRIOR_PRECISION
        self.debt = 0.0
        self._half_life_events, self._debt_rate = half_life_events, debt_rate

    @classmethod
    def initial(cls, scales: int, half_life_events: float, debt_rate: float) -> "Mixture":
        """Half of the weight on the last expert, the rest shared by the `scales` before it. `half_life_events` 0: all
        on the last, for good."""
        last = 0.5 if half_life_events else 1.0
        weights = np.array([0.0, *[(1 - last) / scales] * scales, last])
        return cls(weights, half_life_events=half_life_events or np.inf, debt_rate=debt_rate)

    @property
    def weights(self) -> np.ndarray:
        """What to mix with now, the debt included."""
        weights = self.learned.copy()
        weights[0] += self.debt
        return weights

    def update(self, experts_BE: np.ndarray, labels_B: np.ndarray) -> None:
        """Learn from B events, all predicted with the present weights."""
        if not len(labels_B):
            return
        x = _with_constant(experts_BE)
        missed = float((labels_B - _sigmoid(x @ self.weights)).sum())
        gain = self._debt_rate * min(1.0, _DEBT_DELAY_EVENTS / len(labels_B)) ** 3
        self.debt = float(np.clip(self.debt + gain * missed, -_LARGEST_DEBT, _LARGEST_DEBT))
        if np.isfinite(self._half_life_events):
            self._learn(x, labels_B)

    def _learn(self, x: np.ndarray, labels_B: np.ndarray) -> None:
        fade = 0.5 ** (len(labels_B) / self._half_life_events)
        before = self.learned
        evidence = self.precision * fade + np.eye(len(before)) * _PRIOR_PRECISION * (1 - fade)
        weights = before
        for _ in range(_NEWTON_STEPS):
            predictions_B = _sigmoid(x @ weights)
            curvature_B = np.maximum(predictions_B * (1 - predictions_B), _LEAST_CURVATURE)
            precision = (x * curvature_B[:, None]).T @ x + evidence
            gradient = x.T @ (predictions_B - labels_B) + evidence @ (weights - before)
            weights = weights - np.linalg.solve(precision, gradient)
        self.learned, self.precision = weights, precision

    def state(self) -> dict[str, np.ndarray]:
        """Everything, for a snapshot."""
        return {"weights": self.learned, "precision": self.precision, "debt": np.array([self.debt])}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Undo `state`."""
        self.learned, self.precision = arrays["weights"].copy(), arrays["precision"].copy()
        self.debt = float(arrays["debt"][0])


def mix(weights: np.ndarray, experts_BE: np.ndarray) -> np.ndarray:
    """(B,) float32 logits."""
    return (_with_constant(experts_BE) @ weights).astype(np.float32)


def _sigmoid(logits_B: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits_B, -30, 30)))


def _with_constant(experts_BE: np.ndarray) -> np.ndarray:
    clipped = np.clip(experts_BE.astype(np.float64), -LOGIT_RANGE, LOGIT_RANGE)
    return np.concatenate([np.ones((len(clipped), 1)), clipped], 1)
