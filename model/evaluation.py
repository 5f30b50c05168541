"""Evaluation of predictions: log loss, normalized entropy, AUC, calibration, over any stretch of
the stream.

In: probabilities or logits with their labels, in order, each predicted before it was learned. Out:
plain numbers. Everything is a sum or a histogram, so two stretches add up and memory does not grow
with the stream.
"""

import math
from typing import NamedTuple

import numpy as np

from niwaki.model.features.outcomes import Outcomes
from niwaki.model.jit import kernel, types

_BINS = 4096
_LOGIT_RANGE = 16.0
_EPSILON = 1e-7


def log_losses(logits_B: np.ndarray, labels_B: np.ndarray) -> np.ndarray:
    """(B,) float64 log loss of each event, in nats, from logits: exact where probabilities would
    round to 0 or 1."""
    logits_B = logits_B.astype(np.float64)
    losses_B: np.ndarray = np.logaddexp(0.0, logits_B) - labels_B * logits_B
    return losses_B


def binary_entropy(rate: float) -> float:
    """Entropy of a coin with probability `rate`, in nats."""
    rate = min(max(rate, _EPSILON), 1 - _EPSILON)
    return -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)


class Decile(NamedTuple):
    """A slice of the events, by prediction."""

    predicted: float
    """Mean prediction."""
    clicked: float
    """Click rate."""
    events: int


class Evaluation:
    """Running sums over events; every measure is a property of them."""

    def __init__(self) -> None:
        self.events = 0
        self.weight_sum = 0.0
        self.loss_sum = 0.0
        self.label_sum = 0.0
        self.prediction_sum = 0.0
        self._clicks = np.zeros(_BINS)  # by bin of the predicted logit
        self._shown = np.zeros(_BINS)

    def update(
        self, logits_B: np.ndarray, labels_B: np.ndarray, weights_B: np.ndarray | None = None
    ) -> np.ndarray:
        """Add B events, each by its weight, >= 0, or 1; returns the log loss of each, without its
        weight."""
        logits_B = np.ascontiguousarray(logits_B, np.float32)
        labels_B = np.ascontiguousarray(labels_B, np.float32)
        weights_B = np.ones_like(labels_B) if weights_B is None else weights_B
        losses_B = np.empty(len(labels_B))
        sums = _evaluate(logits_B, labels_B, weights_B, losses_B, self._clicks, self._shown)
        self.events += len(labels_B)
        self.loss_sum += sums[0]
        self.label_sum += sums[1]
        self.prediction_sum += sums[2]
        self.weight_sum += sums[3]
        return losses_B

    @property
    def log_loss(self) -> float:
        """Mean log loss, nats."""
        return self.loss_sum / self.weight_sum if self.weight_sum else math.nan

    @property
    def base_rate(self) -> float:
        """Share of clicks."""
        return self.label_sum / self.weight_sum if self.weight_sum else math.nan

    @property
    def normalized_entropy(self) -> float:
        """Log loss over the entropy of the base rate (He et al., ADKDD 2014): 1 is a constant
        prediction, lower is better."""
        return self.log_loss / binary_entropy(self.base_rate) if self.weight_sum else math.nan

    @property
    def calibration(self) -> float:
        """Sum of predictions over sum of labels: 1 is calibrated, above 1 predicts too much."""
        return self.prediction_sum / self.label_sum if self.label_sum else math.nan

    @property
    def auc(self) -> float:
        """Area under the ROC curve, from 4,096 bins of the logit between -16 and 16; ties within a
        bin count half."""
        others = self._shown - self._clicks
        pairs = self._clicks.sum() * others.sum()
        if pairs <= 0:
            return math.nan
        below = np.cumsum(others) - others
        return float((self._clicks * (below + others / 2)).sum() / pairs)

    def calibration_by_decile(self) -> list[Decile]:
        """Ten slices of about equally many events, from the lowest prediction to the highest."""
        total = self._shown.sum()
        if not total:
            return []
        centres = 1 / (
            1 + np.exp(-((np.arange(_BINS) + 0.5) * (2 * _LOGIT_RANGE / _BINS) - _LOGIT_RANGE))
        )
        decile = np.minimum((np.cumsum(self._shown) - self._shown / 2) / total * 10, 9).astype(int)
        shown = np.bincount(decile, self._shown, 10)
        predicted = np.bincount(decile, self._shown * centres, 10)
        clicked = np.bincount(decile, self._clicks, 10)
        return [Decile(predicted[i] / n, clicked[i] / n, int(n)) for i, n in enumerate(shown) if n]

    def summary(self) -> dict[str, float]:
        """The measures by name."""
        return {
            "events": self.events,
            "log_loss": self.log_loss,
            "normalized_entropy": self.normalized_entropy,
            "auc": self.auc,
            "calibration": self.calibration,
            "base_rate": self.base_rate,
        }


_READ = types.Array(types.float32, 1, "C", readonly=True)


@kernel((_READ, _READ, _READ, types.float64[::1], types.float64[::1], types.float64[::1]))
def _evaluate(
    logits_B: np.ndarray,
    labels_B: np.ndarray,
    weights_B: np.ndarray,
    losses_B: np.ndarray,
    clicks: np.ndarray,
    shown: np.ndarray,
) -> tuple[float, float, float, float]:
    """Write log losses and add to the histograms; returns the weighted sums of losses, labels and
    predictions, and the sum of weights."""
    losses = labels = predictions = weights = 0.0
    for b in range(len(logits_B)):
        logit = np.float64(logits_B[b])
        label = np.float64(labels_B[b])
        power = math.exp(-abs(logit))
        losses_B[b] = max(logit, 0.0) + math.log1p(power) - label * logit
        weight = np.float64(weights_B[b])
        losses += weight * losses_B[b]
        labels += weight * label
        predictions += weight * ((1.0 if logit >= 0 else power) / (1 + power))
        weights += weight
        place = (logit + _LOGIT_RANGE) * (_BINS / (2 * _LOGIT_RANGE))
        bin_ = int(min(place, _BINS - 1.0)) if place > 0 else 0
        clicks[bin_] += weight * label
        shown[bin_] += weight
    return losses, labels, predictions, weights


class WindowedEvaluation:
    """An `Evaluation` of the whole stream, and one of each window of about `window_events` in
    turn: of the stream before sampling, by the weights of events where they have any."""

    def __init__(self, window_events: int):
        self.window_events = window_events
        self.total, self.window = Evaluation(), Evaluation()
        self.unweighted = Evaluation()
        """Of the whole stream, in which all events weigh the same; empty where they have no
        weights."""
        self.last: dict[str, float] = {}
        """Summary of the last complete window; of the current one until there is one."""
        self.completed = 0

    def update(self, logits_B: np.ndarray, outcomes: Outcomes) -> np.ndarray:
        """Add B events; returns the log loss of each. A window ends with the batch that fills
        it."""
        events = outcomes.labels_B, outcomes.importance_B
        self.total.update(logits_B, *events)
        losses_B = self.window.update(logits_B, *events)
        if outcomes.weighted:
            self.unweighted.update(logits_B, outcomes.labels_B, outcomes.unweighted.importance_B)
        if self.window.events >= self.window_events or not self.completed:
            self.last = self.window.summary()
        if self.window.events >= self.window_events:
            self.completed += 1
            self.window = Evaluation()
        return losses_B

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays, for a snapshot."""
        arrays = {"completed": np.array([self.completed], np.float64)}
        for name, part in self._parts().items():
            sums = [part.events, part.loss_sum, part.label_sum, part.prediction_sum]
            arrays |= {
                f"{name}.sums": np.array([*sums, part.weight_sum], np.float64),
                f"{name}.clicks": part._clicks,
                f"{name}.shown": part._shown,
            }
        keys = sorted(self.last)
        arrays["last"] = np.array([self.last[key] for key in keys], np.float64)
        return arrays

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Continue where `state` was taken."""
        self.completed = int(arrays["completed"][0])
        for name, part in self._parts().items():
            sums = arrays[f"{name}.sums"].tolist()
            part.events = int(sums[0])
            part.loss_sum, part.label_sum = sums[1:3]
            part.prediction_sum, part.weight_sum = sums[3:]
            part._clicks = arrays[f"{name}.clicks"].copy()
            part._shown = arrays[f"{name}.shown"].copy()
        keys = sorted(Evaluation().summary())
        self.last = dict(zip(keys, arrays["last"].tolist(), strict=False))

    def _parts(self) -> dict[str, Evaluation]:
        return {"total": self.total, "window": self.window, "unweighted": self.unweighted}
