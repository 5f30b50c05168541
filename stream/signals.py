"""Signals: what drift detectors watch, one value for each event, by name.

In: a batch as the model reads it, and how it was predicted before it was learned. Out: an array for each signal that
some detector asked for; no other is computed, nor one that can't be told yet. Signals of a column have it in their
name, as `unseen:c_item`. Their memory is bounded: one bit for each row of a field's table, or 64 shares for each
column.
"""

import math
from collections.abc import Collection, Mapping
from difflib import get_close_matches

import numpy as np

from model.encoder import Features
from model.features import EventBatch, Schema
from model.kernels import kernel
from stream.errors import ConfigError

SIGNALS = {
    "excess_loss": "log loss less the entropy of the prediction, nats: 0 on average as long as the model is calibrated,"
    " whatever the time of day and however far it has learned",
    "staleness": "the prediction's error times what the slowest expert's logit has above that of the next one, in units"
    " of its own spread: 0 on average as long as the prediction is calibrated, above it where what was learned long ago"
    " no longer holds",
    "surprise": "excess_loss in units of its own spread, outliers cut off",
    "log_loss": "of the prediction made before the event was learned, nats",
    "calibration_error": "that prediction minus the label",
    "label": "the label",
    "adjusted_label": "the label less what is usual at its hour of the day (UTC), beyond the mean: what is usual is"
    " learned in the first day of event time, and the detectors wait for it. Events without a time: the label",
    "prediction": "that prediction",
}
"""What a detector can be set on: name and meaning."""
OF_THE_NETWORK = ("excess_loss", "staleness", "surprise", "log_loss", "calibration_error", "prediction")
"""Those that jump when the network is exchanged; the others do not see it."""
FIELD_SIGNALS = {
    "unseen": "1 where the column has a value that no event before had, else 0; for embedded fields",
    "stability": "how much more often lately than in the long run the column's value occurs, as a logarithm, whose mean"
    " is one side of the population stability index; for embedded fields and numerics",
}
"""Signals of one column: the name goes before a colon and the column's."""

_BUCKETS = 64
_QUANTILES = np.linspace(0, 1, 16)[1:-1]
_FIRST_EVENTS = 2_048
_LONG_EVENTS, _LATE_EVENTS = 100_000.0, 5_000.0
_SPREAD_HALF_LIFE_EVENTS = 10_000.0
_DAY_S, _HOUR_S = 86_400.0, 3_600.0
_COURSE_HALF_LIFE_S = 7 * _DAY_S
_COURSE_PRIOR_EVENTS = 500


def check_signal(name: str) -> None:
    """Raises `ConfigError` unless there may be a signal of this name; which columns there are is not known here."""
    kind, _, column = name.partition(":")
    if name in SIGNALS or (kind in FIELD_SIGNALS and column):
        return
    known = [*SIGNALS, *(f"{one}:COLUMN" for one in FIELD_SIGNALS)]
    nearest = get_close_matches(name, known, 1, cutoff=0.4)
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    raise ConfigError("drift.detectors.signal", f"must be one of {', '.join(known)}{hint}", name)


class Signals:
    """Computes the signals asked for."""

    def __init__(self, schema: Schema, rows: int, names: Collection[str]):
        """`rows`: of each field's table. `names`: what is asked for. Raises `ConfigError` for an unknown column."""
        self._names = sorted(set(names))
        self._rows = rows
        self._seen: dict[str, np.ndarray] = {}
        self._shares: dict[str, _Shares] = {}
        self._staleness, self._surprise = _Scale(8.0), _Scale(5.0)
        self._course = _Course()
        self._place: dict[str, int] = {}
        for name in self._names:
            check_signal(name)
            kind, _, column = name.partition(":")
            if kind not in FIELD_SIGNALS:
                continue
            columns = schema.fields if kind == "unseen" else (*schema.fields, *schema.numeric)
            if column not in columns:
                raise ConfigError("drift.detectors.signal", f"{kind} takes one of {', '.join(columns)}", name)
            if kind == "unseen":
                self._seen[column] = np.zeros(rows, bool)
            else:
                self._shares[column] = _Shares(binned=column not in schema.fields)
            fields = schema.fields
            self._place[column] = fields.index(column) if column in fields else schema.numeric.index(column)

    def compute(
        self,
        features: Features,
        batch: EventBatch,
        experts_BE: np.ndarray,
        logits_B: np.ndarray,
        losses_B: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """float64 (B,) by name; what can't be told yet is left out. Call it once a batch, in order.

        `experts_BE`: logits of the experts, of which `logits_B` are mixed.
        """
        labels_B = batch.labels_B
        logits_B = logits_B.astype(np.float64)
        predictions_B = 1 / (1 + np.exp(-logits_B))
        errors_B = predictions_B - labels_B
        signals = {}
        for name in self._names:
            kind, _, column = name.partition(":")
            if kind == "excess_loss":
                signals[name] = errors_B * logits_B  # the loss less the entropy of the prediction, exactly
            elif kind == "log_loss":
                signals[name] = losses_B
            elif kind == "calibration_error":
                signals[name] = errors_B
            elif kind == "label":
                signals[name] = labels_B.astype(np.float64)
            elif kind == "staleness":
                apart_B = experts_BE[:, 0].astype(np.float64) - experts_BE[:, 1]
                signals[name] = self._staleness.update(errors_B * apart_B)
            elif kind == "surprise":
                signals[name] = self._surprise.update(errors_B * logits_B)
            elif kind == "adjusted_label":
                signals[name] = self._course.update(labels_B.astype(np.float64), batch.times_s_B)
            elif kind == "prediction":
                signals[name] = predictions_B
            elif kind == "unseen":
                signals[name] = self._unseen(features, column)
            else:
                shares = self._shares[column]
                values_B = features.numerics_BN if shares.binned else features.rows_BF
                signals[name] = shares.update(values_B[:, self._place[column]].numpy())
        return {name: values_B for name, values_B in signals.items() if values_B is not None}

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays."""
        arrays = {f"unseen:{column}": np.packbits(seen) for column, seen in self._seen.items()}
        for column, shares in self._shares.items():
            arrays |= {f"stability:{column}:{name}": array for name, array in shares.state().items()}
        return arrays | {name: part.state() for name, part in self._parts()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Undo `state`; what is not among the arrays begins anew."""
        for column in self._seen:
            if f"unseen:{column}" in arrays:
                self._seen[column] = np.unpackbits(arrays[f"unseen:{column}"], count=self._rows).astype(bool)
        for column, shares in self._shares.items():
            prefix = f"stability:{column}:"
            if found := {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}:
                shares.restore(found)
        for name, part in self._parts():
            if name in arrays:
                part.restore(arrays[name])

    def _parts(self) -> "list[tuple[str, _Scale | _Course]]":
        return [("staleness", self._staleness), ("surprise", self._surprise), ("course", self._course)]

    def _unseen(self, features: Features, column: str) -> np.ndarray:
        """Two values that are hashed to one row count as one. Missing is seen from the start."""
        seen = self._seen[column]
        rows_B = features.rows_BF[:, self._place[column]].numpy() % self._rows
        rows_U, first_U = np.unique(rows_B, return_index=True)
        unseen_B = np.zeros(len(rows_B))
        unseen_B[first_U[~seen[rows_U] & (rows_U > 0)]] = 1
        seen[rows_U] = True
        return unseen_B


class _Shares:
    """How often each bucket of a column's values occurs, in the long run and lately."""

    def __init__(self, binned: bool):
        """`binned`: numbers, cut at quantiles of the first events; else rows, spread over buckets."""
        self.binned = binned
        self._first = np.empty(0)
        self._edges = np.empty(0)
        self._counts_2K = np.ones((2, _BUCKETS))

    def update(self, values_B: np.ndarray) -> np.ndarray:
        """(B,) logarithm of late share over long-run share of each event's bucket, both of before this batch."""
        if self.binned and not len(self._edges):
            self._first = np.append(self._first, values_B)
            known = self._first[~np.isnan(self._first)]
            if len(self._first) >= _FIRST_EVENTS and len(known):
                self._edges, self._first = np.quantile(known, _QUANTILES), np.empty(0)
            return np.zeros(len(values_B))
        buckets_B = self._buckets(values_B)
        shares_2K = self._counts_2K / self._counts_2K.sum(1, keepdims=True)
        logs_B = np.log(shares_2K[1] / shares_2K[0])[buckets_B]
        fade_21 = 0.5 ** (len(values_B) / np.array([[_LONG_EVENTS], [_LATE_EVENTS]]))
        # One event in each bucket beforehand keeps the logarithm finite.
        self._counts_2K = (self._counts_2K - 1) * fade_21 + np.bincount(buckets_B, minlength=_BUCKETS) + 1
        return logs_B

    def state(self) -> dict[str, np.ndarray]:
        return {"first": self._first, "edges": self._edges, "counts": self._counts_2K}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._first, self._edges = arrays["first"].copy(), arrays["edges"].copy()
        self._counts_2K = arrays["counts"].copy()

    def _buckets(self, values_B: np.ndarray) -> np.ndarray:
        if not self.binned:
            return values_B % _BUCKETS
        return np.where(np.isnan(values_B), _BUCKETS - 1, np.searchsorted(self._edges, values_B))


class _Scale:
    """The spread of a signal lately, to measure it by."""

    def __init__(self, outlier: float):
        """`outlier`: where values are cut off."""
        self._outlier = outlier
        self._sums_2 = np.zeros(2)  # of squares, and of events; they fade

    def update(self, values_B: np.ndarray) -> np.ndarray | None:
        """(B,) in units of the root mean square of before the batch, outliers cut off; None: there is none."""
        squares, events = self._sums_2.tolist()
        spread = math.sqrt(squares / max(events, 1.0))
        fade = 0.5 ** (len(values_B) / _SPREAD_HALF_LIFE_EVENTS)
        scaled_B = np.empty_like(values_B)
        gained = _scale(values_B, spread, self._outlier, scaled_B)
        self._sums_2[:] = squares * fade + gained, events * fade + len(values_B)
        return scaled_B if spread else None

    def state(self) -> np.ndarray:
        return self._sums_2.copy()

    def restore(self, state: np.ndarray) -> None:
        self._sums_2 = state.copy()


class _Course:
    """How the label goes with the hour of the day, so that a daily cycle is known (seasonal adjustment)."""

    def __init__(self):
        self._counts_2H = np.zeros((2, 24))  # sums of labels, and events; they fade with event time
        self._first_s = self._last_s = math.nan

    def update(self, labels_B: np.ndarray, times_s_B: np.ndarray) -> np.ndarray | None:
        """(B,) labels less what is usual at their hour beyond the mean, by what was known before the batch; None within
        the first day."""
        if not (times_s_B[0] or times_s_B[-1]):
            return labels_B
        if math.isnan(self._first_s):
            self._first_s = self._last_s = float(times_s_B[0])
        known = times_s_B[0] - self._first_s >= _DAY_S
        adjusted_B = np.empty_like(labels_B)
        self._last_s = _adjust(labels_B, np.ascontiguousarray(times_s_B), self._last_s, self._counts_2H, adjusted_B)
        return adjusted_B if known else None

    def state(self) -> np.ndarray:
        return np.append(self._counts_2H, [self._first_s, self._last_s])

    def restore(self, state: np.ndarray) -> None:
        self._counts_2H = state[:-2].reshape(2, 24).copy()
        self._first_s, self._last_s = state[-2:].tolist()


@kernel("float64(float64[::1], float64, float64, float64[::1])")
def _scale(values_B, spread, outlier, scaled_B):
    """Values in units of `spread`, cut off; returns the sum of their squares."""
    squares = 0.0
    for b in range(len(values_B)):
        squares += values_B[b] * values_B[b]
        scaled_B[b] = min(max(values_B[b] / spread, -outlier), outlier) if spread > 0 else 0.0
    return squares


@kernel("float64(float64[::1], float64[::1], float64, float64[:,::1], float64[::1])")
def _adjust(labels_B, times_s_B, last_s, counts_2H, adjusted_B):
    """Labels less what is usual at their hour by `counts_2H`, which then take them in; returns the latest time."""
    labels = events = 0.0
    for hour in range(24):
        labels += counts_2H[0, hour]
        events += counts_2H[1, hour]
    mean = labels / max(events, 1.0)
    latest_s = last_s
    for b in range(len(labels_B)):
        hour = int(times_s_B[b] // _HOUR_S) % 24
        # Hours with few events are taken to be like the others.
        usual = (counts_2H[0, hour] + _COURSE_PRIOR_EVENTS * mean) / (counts_2H[1, hour] + _COURSE_PRIOR_EVENTS)
        adjusted_B[b] = labels_B[b] - (usual - mean)
        latest_s = max(latest_s, times_s_B[b])
    counts_2H *= 0.5 ** ((latest_s - last_s) / _COURSE_HALF_LIFE_S)
    for b in range(len(labels_B)):
        hour = int(times_s_B[b] // _HOUR_S) % 24
        counts_2H[0, hour] += labels_B[b]
        counts_2H[1, hour] += 1.0
    return latest_s
