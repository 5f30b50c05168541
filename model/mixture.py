"""Mixes the logits of experts by how good they have been lately, and calibrates them: logistic
stacking, online.

In: the logits of E experts for events whose labels are known by now, predicted with the delay at
which they are served. Out: weights and a bias. Learning them on *served* predictions is what makes
the mixture honest about delay: an expert that goes stale soon gets little weight where publications
are rare. Stacking: Wolpert, 1992; online as a Bayesian logistic regression with Laplace's
approximation whose evidence fades to the prior. Events that were predicted with one model miss
together, in a burst by far more than independent ones would: their evidence is divided by the root
of that overdispersion, which is measured. (Quasi-likelihood, Wedderburn, 1974, divides by all of
it; so it learned too little.)

Beside the learned bias there is a debt: clicks that were not predicted, or predicted and did not
come, move the next logits until they are made up for or forgotten (leaky integral control), so the
mean prediction follows the click rate over a long window. With long delays that does more harm than
good, so the gain falls with the cube of the delay.

Where nothing can be learned, the click rate is the best prediction, and every expert worse. So
mixture and click rate are averaged in the logit, by the likelihood of either.
"""

import math

import numpy as np

from niwaki.model.jit import kernel

_PRIOR_PRECISION = 300.0
_NEWTON_STEPS = 5
_NEGLIGIBLE_STEP = 1e-6
"""Of a weight. Steps shrink by their square, so the next would be a millionth of this."""
LOGIT_RANGE = 12.0
_LEAST_CURVATURE = 0.001
_OVERDISPERSION_UPDATES = 20
_USUAL_DISPERSION = 4.0
_DEBT_DELAY_EVENTS = 1_000
_DEBT_HALF_LIFE_EVENTS = 12_000
_LARGEST_DEBT = 2.0
_PRIOR_LEAD = 3.0
_SUMS = ("debt", "clicks", "events", "lead", "overdispersion", "updates")


class Mixture:
    """Weights over a constant and E experts: float64 (1 + E,)."""

    def __init__(self, weights: np.ndarray, *, half_life_events: float, debt_rate: float):
        """`weights`: what to begin with, and the prior. `half_life_events`: of evidence, > 0;
        infinite: weights stay.

        `debt_rate`: logit for each click too many or too few, >= 0; 0: no debt.
        """
        self.learned = np.array(weights, np.float64)
        self.precision = np.eye(len(weights)) * _PRIOR_PRECISION
        self.debt = 0.0
        self.clicks = self.events = 0.0
        self.lead = 0.0
        """Log-likelihood of the mixture over that of the click rate, fading."""
        self.overdispersion = 1.0
        self.updates = 0
        self._half_life_events, self._debt_rate = half_life_events, debt_rate

    @classmethod
    def initial(cls, scales: int, half_life_events: float, debt_rate: float) -> "Mixture":
        """Half of the weight on the last expert, the rest shared by the `scales` before it.
        `half_life_events` 0: all on the last, for good."""
        last = 0.5 if half_life_events else 1.0
        weights = np.array([0.0, *[(1 - last) / scales] * scales, last])
        return cls(weights, half_life_events=half_life_events or np.inf, debt_rate=debt_rate)

    @property
    def weights(self) -> np.ndarray:
        """What to mix with now, the debt included."""
        trust = self._trust()
        weights = self.learned * trust
        weights[0] += self.debt + (1 - trust) * self._rate_logit()
        return weights

    def update(self, experts_BE: np.ndarray, labels_B: np.ndarray) -> None:
        """Learn from B events, all predicted with the present weights."""
        if not len(labels_B):
            return
        experts_BE, labels_B = (
            np.ascontiguousarray(experts_BE, np.float32),
            np.ascontiguousarray(labels_B, np.float32),
        )
        missed, _, _ = _outcome(self.weights, experts_BE, labels_B)
        if np.isfinite(self._half_life_events):
            self._learn(experts_BE, labels_B, 0.5 ** (len(labels_B) / self._half_life_events))
        gain = self._debt_rate * min(1.0, _DEBT_DELAY_EVENTS / len(labels_B)) ** 3
        debt = self.debt * 0.5 ** (len(labels_B) / _DEBT_HALF_LIFE_EVENTS) + gain * missed
        self.debt = min(max(debt, -_LARGEST_DEBT), _LARGEST_DEBT)

    def _learn(self, experts_BE: np.ndarray, labels_B: np.ndarray, fade: float) -> None:
        events, clicks, mixed = (
            len(labels_B),
            float(labels_B.sum(dtype=np.float64)),
            self.learned.copy(),
        )
        mixed[0] += self.debt
        missed, variance, loss = _outcome(mixed, experts_BE, labels_B)
        dispersion = missed**2 / variance
        self.updates = min(self.updates + 1, _OVERDISPERSION_UPDATES)
        self.overdispersion += (dispersion - self.overdispersion) / self.updates
        share = max(1.0, self.overdispersion, dispersion / _USUAL_DISPERSION) ** -0.5
        if self.events:
            rate = self._rate_logit()
            self.lead = self.lead * fade + share * (
                events * np.logaddexp(0.0, rate) - clicks * rate - loss
            )
        self.clicks, self.events = self.clicks * fade + clicks, self.events * fade + events
        evidence = self.precision * fade + np.eye(len(mixed)) * _PRIOR_PRECISION * (1 - fade)
        self.learned, self.precision = _newton(self.learned, evidence, experts_BE, labels_B, share)

    def _trust(self) -> float:
        """Share of the mixture in the prediction; the rest is the click rate's."""
        return _sigmoid(_PRIOR_LEAD + self.lead) if self.events else 1.0

    def _rate_logit(self) -> float:
        return math.log((self.clicks + 0.5) / (self.events - self.clicks + 0.5))

    def state(self) -> dict[str, np.ndarray]:
        """Everything, for a snapshot."""
        return {"weights": self.learned, "precision": self.precision} | {
            name: np.array([getattr(self, name)], np.float64) for name in _SUMS
        }

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Undo `state`."""
        self.learned, self.precision = arrays["weights"].copy(), arrays["precision"].copy()
        for name in _SUMS:
            setattr(self, name, float(arrays[name][0]))


def mix(weights: np.ndarray, experts_BE: np.ndarray) -> np.ndarray:
    """(B,) float32 logits."""
    return _mix(weights, np.ascontiguousarray(experts_BE, np.float32))


@kernel("float64(float32)")
def _clip(logit):
    return min(max(np.float64(logit), -LOGIT_RANGE), LOGIT_RANGE)


@kernel("float64(float64)")
def _sigmoid(logit):
    return 1 / (1 + math.exp(-min(max(logit, -30.0), 30.0)))


@kernel("float32[::1](float64[::1], float32[:,::1])")
def _mix(weights, experts_BE):
    events, experts = experts_BE.shape
    logits_B = np.empty(events, np.float32)
    for b in range(events):
        logit = weights[0]
        for e in range(experts):
            logit += weights[1 + e] * _clip(experts_BE[b, e])
        logits_B[b] = logit
    return logits_B


@kernel("UniTuple(float64, 3)(float64[::1], float32[:,::1], float32[::1])")
def _outcome(weights, experts_BE, labels_B):
    """Clicks beyond those predicted, the variance that was predicted for them, and the log loss,
    all summed."""
    missed = variance = loss = 0.0
    for b in range(len(labels_B)):
        logit = weights[0]
        for e in range(len(weights) - 1):
            logit += weights[1 + e] * _clip(experts_BE[b, e])
        prediction = _sigmoid(logit)
        missed += labels_B[b] - prediction
        variance += max(prediction * (1 - prediction), _LEAST_CURVATURE)
        loss += max(logit, 0.0) + math.log1p(math.exp(-abs(logit))) - labels_B[b] * logit
    return missed, variance, loss


@kernel("float64[::1](float64[:,::1], float64[::1])")
def _solve(matrix, vector):
    """x of matrix @ x = vector for a symmetric positive definite matrix, by elimination."""
    left, x = matrix.copy(), vector.copy()
    size = len(x)
    for i in range(size):
        for j in range(i + 1, size):
            factor = left[j, i] / left[i, i]
            for k in range(i, size):
                left[j, k] -= factor * left[i, k]
            x[j] -= factor * x[i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            x[i] -= left[i, k] * x[k]
        x[i] /= left[i, i]
    return x


@kernel(
    "Tuple((float64[::1], float64[:,::1]))(float64[::1], float64[:,::1], float32[:,::1], float32[::1], float64)"
)
def _newton(before, evidence, experts_BE, labels_B, share):
    """Weights and their precision after some steps of Newton's. `evidence`: the precision of
    `before`. `share`: what the events count for."""
    size = len(before)
    weights, precision, gradient, x = before.copy(), evidence.copy(), np.empty(size), np.ones(size)
    for _ in range(_NEWTON_STEPS):
        precision[:] = evidence
        for i in range(size):
            gradient[i] = 0
            for j in range(size):
                gradient[i] += evidence[i, j] * (weights[j] - before[j])
        for b in range(len(labels_B)):
            logit = weights[0]
            for i in range(1, size):
                x[i] = _clip(experts_BE[b, i - 1])
                logit += weights[i] * x[i]
            prediction = _sigmoid(logit)
            error = share * (prediction - labels_B[b])
            curvature = share * max(prediction * (1 - prediction), _LEAST_CURVATURE)
            for i in range(size):
                gradient[i] += error * x[i]
                for j in range(size):
                    precision[i, j] += curvature * x[i] * x[j]
        step = _solve(precision, gradient)
        weights -= step
        if np.abs(step).max() < _NEGLIGIBLE_STEP:
            break
    return weights, precision
