"""Signals: what drift detectors watch, one value for each event, by name.

In: events as the model reads them, and how they were predicted before they were learned. Out: an
array for each signal that some detector asked for; no other is computed, nor one that can't be told
yet. Signals of a column have it in their name, as `unseen:c_item`. Their memory is bounded: one bit
for each row of a field's table, or 64 shares for each column.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np

from niwaki.model.features.schema import Schema
from niwaki.model.jit import kernel
from niwaki.stream.drift.seasonality import Seasonality, by_hour
from niwaki.stream.errors import ConfigError

SIGNALS = {
    "excess_loss": "log loss less the entropy of the prediction, nats: 0 on average as long as the model is calibrated,"
    " whatever the time of day and however far it has learned",
    "staleness": "the prediction's error times what the slowest expert's logit has above that of the next one, in units"
    " of its own spread, seasonally adjusted: 0 on average as long as the prediction is calibrated, above it where what"
    " was learned long ago no longer holds",
    "recent_staleness": "the same of the next expert and the one after it: above 0 where what was learned lately no"
    " longer holds, be it that what was learned long ago holds again",
    "log_loss": "of the prediction made before the event was learned, nats",
    "calibration_error": "that prediction minus the label",
    "label": "the label",
    "adjusted_label": "the label, seasonally adjusted. What is usual is learned in the first day of event time, and"
    " detectors wait for it",
    "prediction": "that prediction",
}
"""What a detector can be set on: name and meaning."""
OF_THE_NETWORK = (
    "excess_loss",
    "staleness",
    "recent_staleness",
    "log_loss",
    "calibration_error",
    "prediction",
)
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
_SPREAD_HALF_LIFE_EVENTS, _KEPT_EVENTS = 10_000.0, 1_000.0
_STALENESS = {"staleness": 0, "recent_staleness": 1}  # by the expert whose it is
_OUTLIER = 8.0


class Observations(NamedTuple):
    """What signals are made of, of B events: how the model read them, and what it made of them
    before it learned."""

    labels_B: np.ndarray
    times_s_B: np.ndarray
    experts_BE: np.ndarray
    """Logits of the experts, of which `logits_B` are mixed."""
    logits_B: np.ndarray
    losses_B: np.ndarray
    """Log losses."""
    rows_BF: np.ndarray | None = None
    numerics_BN: np.ndarray | None = None
    """As in `model.features.encoder.Features`; None where no signal reads columns."""

    @classmethod
    def concat(cls, parts: "Sequence[Seen]") -> "Seen":
        """The events of `parts`, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            *(
                np.concatenate(arrays)
                for arrays in zip(*parts, strict=True)
                if arrays[0] is not None
            )
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, those that there are."""
        return {name: array for name, array in self._asdict().items() if array is not None}


def check_signal(name: str) -> None:
    """Raises `ConfigError` unless there may be a signal of this name; which columns there are is
    not known here."""
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
        """`rows`: of each field's table. `names`: what is asked for. Raises `ConfigError` for an
        unknown column."""
        self._names = [(name, *name.partition(":")[::2]) for name in sorted(set(names))]
        self._rows = rows
        self._seen: dict[str, np.ndarray] = {}
        self._shares: dict[str, _Shares] = {}
        self._staleness = {
            name: _Staleness(_STALENESS[name]) for name, *_ in self._names if name in _STALENESS
        }
        self._course = Seasonality(learned=False)
        self._place: dict[str, int] = {}
        for name, kind, column in self._names:
            check_signal(name)
            if kind not in FIELD_SIGNALS:
                continue
            columns = schema.fields if kind == "unseen" else (*schema.fields, *schema.numeric)
            if column not in columns:
                raise ConfigError(
                    "drift.detectors.signal", f"{kind} takes one of {', '.join(columns)}", name
                )
            if kind == "unseen":
                self._seen[column] = np.zeros(rows, bool)
            else:
                self._shares[column] = _Shares(binned=column not in schema.fields)
            fields = schema.fields
            self._place[column] = (
                fields.index(column) if column in fields else schema.numeric.index(column)
            )

    @property
    def reads_columns(self) -> bool:
        """Whether any signal is one of a column."""
        return bool(self._place)

    def compute(self, seen: Observations) -> dict[str, np.ndarray]:
        """float64 (B,) by name; what can't be told yet is left out. Call it in the order of
        events."""
        labels_B, times_s_B, logits_B, signals = (
            seen.labels_B.astype(np.float64),
            seen.times_s_B,
            seen.logits_B,
            {},
        )
        errors_B = _errors(logits_B, labels_B)
        for name, kind, column in self._names:
            if kind in _STALENESS:
                signals[name] = self._staleness[name].update(errors_B, seen.experts_BE, times_s_B)
            elif kind == "adjusted_label":
                adjusted_B = self._course.update(labels_B, times_s_B)
                signals[name] = adjusted_B if self._course.known else None
            elif kind == "label":
                signals[name] = labels_B
            elif kind == "log_loss":
                signals[name] = seen.losses_B
            elif kind == "prediction":
                signals[name] = _predictions(logits_B)
            elif kind == "calibration_error":
                signals[name] = errors_B
            elif kind == "excess_loss":  # the loss less the entropy of the prediction, exactly
                signals[name] = errors_B * logits_B
            elif kind == "unseen":
                signals[name] = self._unseen(seen.rows_BF, column)
            else:
                shares = self._shares[column]
                values_B = seen.numerics_BN if shares.binned else seen.rows_BF
                signals[name] = shares.update(values_B[:, self._place[column]])
        return {name: values_B for name, values_B in signals.items() if values_B is not None}

    def reset(self) -> None:
        """The turmoil of a drift is over: what follows is soon told in units of its own. In those
        of the turmoil it would seem quiet at first, and then ever louder, until that is taken for a
        drift."""
        for staleness in self._staleness.values():
            staleness.reset()

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays."""
        arrays = {f"unseen:{column}": np.packbits(seen) for column, seen in self._seen.items()}
        for column, shares in self._shares.items():
            arrays |= {
                f"stability:{column}:{name}": array for name, array in shares.state().items()
            }
        return arrays | {name: part.state() for name, part in self._parts()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Undo `state`; what is not among the arrays begins anew."""
        for column in self._seen:
            if f"unseen:{column}" in arrays:
                self._seen[column] = np.unpackbits(
                    arrays[f"unseen:{column}"], count=self._rows
                ).astype(bool)
        for column, shares in self._shares.items():
            prefix = f"stability:{column}:"
            if found := {
                n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)
            }:
                shares.restore(found)
        for name, part in self._parts():
            if name in arrays:
                part.restore(arrays[name])

    def _parts(self) -> "list[tuple[str, _Staleness | Course]]":
        return [*self._staleness.items(), ("adjusted_label", self._course)]

    def _unseen(self, rows_BF: np.ndarray, column: str) -> np.ndarray:
        """Two values that are hashed to one row count as one. Missing is seen from the start."""
        seen = self._seen[column]
        rows_B = rows_BF[:, self._place[column]] % self._rows
        rows_U, first_U = np.unique(rows_B, return_index=True)
        unseen_B = np.zeros(len(rows_B))
        unseen_B[first_U[~seen[rows_U] & (rows_U > 0)]] = 1
        seen[rows_U] = True
        return unseen_B


class _Shares:
    """How often each bucket of a column's values occurs, in the long run and lately."""

    def __init__(self, binned: bool):
        """`binned`: numbers, cut at quantiles of the first events; else rows, spread over
        buckets."""
        self.binned = binned
        self._first = np.empty(0)
        self._edges = np.empty(0)
        self._counts_2K = np.ones((2, _BUCKETS))

    def update(self, values_B: np.ndarray) -> np.ndarray:
        """(B,) logarithm of late share over long-run share of each event's bucket, both of before
        this batch."""
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
        self._counts_2K = (
            (self._counts_2K - 1) * fade_21 + np.bincount(buckets_B, minlength=_BUCKETS) + 1
        )
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


class _Staleness:
    """Of one expert, in units of its spread lately, by the course of the day."""

    def __init__(self, slow: int):
        """`slow`: which expert it is of."""
        self._slow = slow
        self._squares = self._events = 0.0  # sums that fade
        self._course = Seasonality(learned=True)

    def reset(self) -> None:
        """What was counts for a few events only from now on."""
        kept = min(_KEPT_EVENTS / max(self._events, 1.0), 1.0)
        self._squares, self._events = self._squares * kept, self._events * kept

    def update(
        self, errors_B: np.ndarray, experts_BE: np.ndarray, times_s_B: np.ndarray
    ) -> np.ndarray | None:
        """(B,) in units of the root mean square of before the batch, outliers cut off, then
        adjusted; None: there is no such spread, or no faster expert. `errors_B`: predictions less
        labels."""
        if experts_BE.shape[1] < self._slow + 2:
            return None
        spread = math.sqrt(self._squares / max(self._events, 1.0))
        if spread:
            self._course.begin(times_s_B)
        course, adjusted_B, events = self._course, np.empty_like(errors_B), len(errors_B)
        inputs = errors_B, experts_BE, self._slow, times_s_B, spread
        gained = _stale(*inputs, course.usual_3H, course.day_3H, adjusted_B)
        fade = 0.5 ** (events / _SPREAD_HALF_LIFE_EVENTS)
        self._squares, self._events = self._squares * fade + gained, self._events * fade + events
        return adjusted_B if spread else None

    def state(self) -> np.ndarray:
        return np.append([self._squares, self._events], self._course.state())

    def restore(self, state: np.ndarray) -> None:
        self._squares, self._events = state[:2].tolist()
        self._course.restore(state[2:])


def _predictions(logits_B: np.ndarray) -> np.ndarray:
    return _errors(logits_B, np.zeros(len(logits_B)))


@kernel("float64[::1](float32[:], float64[::1])", brief=True)
def _errors(logits_B, labels_B):
    """Predictions less labels."""
    errors_B = np.empty(len(labels_B))
    for b in range(len(labels_B)):
        errors_B[b] = 1 / (1 + math.exp(-np.float64(logits_B[b]))) - labels_B[b]
    return errors_B


@kernel(
    "float64(float64[::1], float32[:,:], int64, float64[:], float64, float64[:,::1], float64[:,::1], float64[::1])",
    brief=True,
)
def _stale(errors_B, experts_BE, slow, times_s_B, spread, usual_3H, day_3H, adjusted_B):
    """Staleness, adjusted; returns the sum of its squares before that."""
    squares = 0.0
    for b in range(len(errors_B)):
        value = errors_B[b] * (np.float64(experts_BE[b, slow]) - experts_BE[b, slow + 1])
        squares += value * value
        if spread > 0:
            scaled = min(max(value / spread, -_OUTLIER), _OUTLIER)
            adjusted_B[b] = by_hour(scaled, times_s_B[b], usual_3H, day_3H)
    return squares
