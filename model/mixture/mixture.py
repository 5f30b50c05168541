"""The mixture: it weighs the logits of experts by their recent quality, and calibrates them
(logistic stacking, online).

In: the logits of E experts for events whose labels are known by now, predicted with the delay at
which they are served. Out: weights and a bias. The weights are learned on *served* predictions, so
they account for the delay: an expert whose predictions are soon out of date gets little weight
where publications are rare. Stacking: Wolpert, 1992; online as a Bayesian logistic regression with
Laplace's approximation, whose evidence fades to the prior. The errors of events that were predicted
with one model are correlated: their evidence is divided by the root of the measured overdispersion.
(Quasi-likelihood, Wedderburn, 1974, divides by all of it, which taught the mixture too little.)

Beside the learned bias there is integral calibration (leaky integral control): clicks beyond the
predicted number, or missing from it, move the next logits until the difference is made up for or
forgotten, so the mean prediction follows the click rate over a long window. With long delays this
does more harm than good, so the gain falls with the cube of the delay.

Events count by their weights, and for those that a producer left out by sampling: so the mixture
calibrates predictions for the stream before that, whether or not the experts fit it.

Where nothing can be learned, the click rate is the best prediction, and every expert is worse. So
the mixture and the click rate are averaged in the logit, by the likelihood of each.
"""

import math
from typing import NamedTuple

import numpy as np

from niwaki.model.features.outcomes import Outcomes
from niwaki.model.jit import kernel

_PRIOR_PRECISION = 300.0
_NEWTON_STEPS = 5
_NEGLIGIBLE_STEP = 1e-6
"""Step of a weight at which Newton's method ends. Steps shrink by their square, so the next would
be a millionth."""
LOGIT_RANGE = 12.0
"""Logits of experts are clipped to -12..12."""
_LEAST_CURVATURE = 0.001
_OVERDISPERSION_UPDATES = 20
_USUAL_DISPERSION = 4.0
_INTEGRAL_DELAY_EVENTS = 1_000
_INTEGRAL_HALF_LIFE_EVENTS = 12_000
_LARGEST_INTEGRAL = 2.0
_PRIOR_LOG_RATIO = 3.0
_SUMS = {
    "debt": "integral",
    "clicks": "clicks",
    "events": "events",
    "lead": "log_ratio",
    "overdispersion": "overdispersion",
    "updates": "updates",
}
"""Attributes by their names in a snapshot."""


class _Outcome(NamedTuple):
    """Sums over events."""

    missed: float
    """Clicks beyond those predicted, by weight."""
    variance: float
    """The predicted variance of `missed`."""
    loss: float
    """Log loss, nats."""
    events: float
    """The weights."""
    clicks: float
    """The weights of clicks."""


class Mixture:
    """Weights over a constant and E experts: float64 (1 + E,)."""

    def __init__(
        self,
        weights: np.ndarray,
        *,
        half_life_events: float,
        debt_rate: float,
        seen_ratio: float = 1.0,
    ):
        """`weights`: the first weights, and the prior. `half_life_events`: of evidence, > 0;
        infinite: weights stay. `debt_rate`: gain of the integral calibration, logit for each click
        too many or too few, >= 0; 0: none. `seen_ratio`: share of the stream's events that the
        mixture is given, (0, 1]; half-lives and delays are in events of the stream."""
        self.learned = np.array(weights, np.float64)
        self._prior_precision = np.eye(len(weights)) * _PRIOR_PRECISION
        self.precision = self._prior_precision.copy()
        self.integral = 0.0
        """Integral calibration: the logit that is added to all predictions."""
        self.clicks = 0.0
        self.events = 0.0
        self.log_ratio = 0.0
        """Log-likelihood of the mixture over that of the click rate, fading, nats."""
        self.overdispersion = 1.0
        self.updates = 0.0
        self._half_life_events = half_life_events
        # The clicks that a part of the events missed are a noisy estimate of all: a gain that grows
        # with the root of the inverse leaves the noise in predictions as it is.
        self._integral_rate = debt_rate * seen_ratio**-0.5
        self._seen_ratio = seen_ratio

    @classmethod
    def initial(
        cls, others: int, half_life_events: float, debt_rate: float, seen_ratio: float = 1.0
    ) -> "Mixture":
        """Half of the weight on the last expert, the rest shared by the `others` before it.
        `half_life_events` 0: all weight stays on the last. The others: see `Mixture`."""
        last = 0.5 if half_life_events else 1.0
        weights = np.array([0.0, *[(1 - last) / others] * others, last])
        return cls(
            weights,
            half_life_events=half_life_events or np.inf,
            debt_rate=debt_rate,
            seen_ratio=seen_ratio,
        )

    @property
    def weights(self) -> np.ndarray:
        """(1 + E,): the weights to mix with now, integral calibration and click rate included in
        the constant."""
        trust = self._trust()
        weights = self.learned * trust
        weights[0] += self.integral + (1 - trust) * self._rate_logit()
        return weights

    def update(self, experts_BE: np.ndarray, outcomes: Outcomes) -> None:
        """Learn from B events, all predicted with the present weights."""
        if not len(outcomes.labels_B):
            return
        delay_events = len(outcomes.labels_B) / self._seen_ratio
        experts_BE = np.ascontiguousarray(experts_BE, np.float32)
        labels_B = np.ascontiguousarray(outcomes.labels_B, np.float32)
        weights_B = np.ascontiguousarray(outcomes.effective_B, np.float32)
        whole_B = np.ascontiguousarray(outcomes.whole_B, np.float32)
        whole = _Outcome(*_outcome(self.weights, experts_BE, labels_B, whole_B))
        if np.isfinite(self._half_life_events):
            fade = 0.5 ** (delay_events / self._half_life_events)
            self._learn(experts_BE, labels_B, weights_B, fade)
        gain = self._integral_rate * min(1.0, _INTEGRAL_DELAY_EVENTS / delay_events) ** 3
        fade = 0.5 ** (whole.events / self._seen_ratio / _INTEGRAL_HALF_LIFE_EVENTS)
        integral = self.integral * fade + gain * whole.missed
        self.integral = min(max(integral, -_LARGEST_INTEGRAL), _LARGEST_INTEGRAL)

    def _learn(
        self, experts_BE: np.ndarray, labels_B: np.ndarray, weights_B: np.ndarray, fade: float
    ) -> None:
        mixed = self.learned.copy()
        mixed[0] += self.integral
        outcome = _Outcome(*_outcome(mixed, experts_BE, labels_B, weights_B))
        events, clicks = outcome.events, outcome.clicks
        dispersion = outcome.missed**2 / max(outcome.variance, _LEAST_CURVATURE**2)
        self.updates = min(self.updates + 1, _OVERDISPERSION_UPDATES)
        self.overdispersion += (dispersion - self.overdispersion) / self.updates
        share = max(1.0, self.overdispersion, dispersion / _USUAL_DISPERSION) ** -0.5
        if self.events:
            rate = self._rate_logit()
            rate_loss = events * float(np.logaddexp(0.0, rate)) - clicks * rate
            self.log_ratio = self.log_ratio * fade + share * (rate_loss - outcome.loss)
        self.clicks = self.clicks * fade + clicks
        self.events = self.events * fade + events
        evidence = self.precision * fade + self._prior_precision * (1 - fade)
        events_seen = experts_BE, labels_B, weights_B
        self.learned, self.precision = _newton(self.learned, evidence, *events_seen, share)

    def _trust(self) -> float:
        """Share of the mixture in the prediction, 0..1; the rest is the click rate's."""
        return _sigmoid(_PRIOR_LOG_RATIO + self.log_ratio) if self.events else 1.0

    def _rate_logit(self) -> float:
        return math.log((self.clicks + 0.5) / (self.events - self.clicks + 0.5))

    def state(self) -> dict[str, np.ndarray]:
        """Everything, for a snapshot."""
        sums = {
            name: np.array([getattr(self, attribute)], np.float64)
            for name, attribute in _SUMS.items()
        }
        return {"weights": self.learned, "precision": self.precision} | sums

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Continue where `state` was taken."""
        self.learned = arrays["weights"].copy()
        self.precision = arrays["precision"].copy()
        for name, attribute in _SUMS.items():
            setattr(self, attribute, float(arrays[name][0]))


def mix(weights: np.ndarray, experts_BE: np.ndarray) -> np.ndarray:
    """(B,) float32: the mixed logits of events. `weights`: (1 + E,)."""
    return _mix(weights, np.ascontiguousarray(experts_BE, np.float32))


@kernel("float64(float32)")
def _clip(logit: float) -> float:
    return min(max(np.float64(logit), -LOGIT_RANGE), LOGIT_RANGE)


@kernel("float64(float64)")
def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-min(max(logit, -30.0), 30.0)))


@kernel("float32[::1](float64[::1], float32[:,::1])")
def _mix(weights: np.ndarray, experts_BE: np.ndarray) -> np.ndarray:
    events, experts = experts_BE.shape
    logits_B = np.empty(events, np.float32)
    for b in range(events):
        logit = weights[0]
        for e in range(experts):
            logit += weights[1 + e] * _clip(experts_BE[b, e])
        logits_B[b] = logit
    return logits_B


@kernel("UniTuple(float64, 5)(float64[::1], float32[:,::1], float32[::1], float32[::1])")
def _outcome(
    weights: np.ndarray, experts_BE: np.ndarray, labels_B: np.ndarray, weights_B: np.ndarray
) -> tuple[float, float, float, float, float]:
    """The sums of an `_Outcome`."""
    missed = variance = loss = total = clicks = 0.0
    for b in range(len(experts_BE)):
        label, weight = labels_B[b], weights_B[b]
        logit = weights[0]
        for e in range(len(weights) - 1):
            logit += weights[1 + e] * _clip(experts_BE[b, e])
        prediction = _sigmoid(logit)
        missed += weight * (label - prediction)
        variance += weight * weight * max(prediction * (1 - prediction), _LEAST_CURVATURE)
        loss += weight * (max(logit, 0.0) + math.log1p(math.exp(-abs(logit))) - label * logit)
        total += weight
        clicks += weight * label
    return missed, variance, loss, total, clicks


@kernel("float64[::1](float64[:,::1], float64[::1])")
def _solve(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
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
    "Tuple((float64[::1], float64[:,::1]))"
    "(float64[::1], float64[:,::1], float32[:,::1], float32[::1], float32[::1], float64)"
)
def _newton(
    before: np.ndarray,
    evidence: np.ndarray,
    experts_BE: np.ndarray,
    labels_B: np.ndarray,
    weights_B: np.ndarray,
    share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and their precision after some steps of Newton's method. `evidence`: the precision of
    `before`. `share`: a factor on the weight of each event."""
    size = len(before)
    weights, precision = before.copy(), evidence.copy()
    gradient, x = np.empty(size), np.ones(size)
    for _ in range(_NEWTON_STEPS):
        precision[:] = evidence
        for i in range(size):
            gradient[i] = 0
            for j in range(size):
                gradient[i] += evidence[i, j] * (weights[j] - before[j])
        for b in range(len(experts_BE)):
            logit = weights[0]
            for i in range(1, size):
                x[i] = _clip(experts_BE[b, i - 1])
                logit += weights[i] * x[i]
            prediction = _sigmoid(logit)
            weight = share * weights_B[b]
            error = weight * (prediction - labels_B[b])
            curvature = weight * max(prediction * (1 - prediction), _LEAST_CURVATURE)
            for i in range(size):
                gradient[i] += error * x[i]
                for j in range(size):
                    precision[i, j] += curvature * x[i] * x[j]
        step = _solve(precision, gradient)
        weights -= step
        if np.abs(step).max() < _NEGLIGIBLE_STEP:
            break
    return weights, precision
