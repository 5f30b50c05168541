"""Running sums of a signal since a detector's last reset, and a ring of its last values.

In: values in the order of events; where a batch ends makes no difference. Out: the means before and
after a change, and the standard error of their difference. Memory is bounded: some 30 kilobytes,
however long the stream. This module does not decide where a change lies.
"""

import math
from typing import NamedTuple, TypedDict

import numpy as np

from niwaki.model.jit import kernel, structs, types

RECENT_EVENTS = 4_096
"""Number of last values that are kept: the furthest a change that has just been noticed may lie
back."""
SPAN_EVENTS = 512
"""Number of neighbouring values that make a span; the variance of spans' sums measures how bursty
the signal is."""
SPANS = RECENT_EVENTS // SPAN_EVENTS
_PIECES = 16  # parts of a stretch whose means give the standard error of its mean


class MeansAround(NamedTuple):
    """Means of a signal before and after a change."""

    before: float
    after: float
    error: float
    """Standard error of `after - before`."""


class RunningSumsState(TypedDict):
    """Everything that `RunningSums` remembers, for a snapshot."""

    events: int
    total: float
    squares: float
    recent: bytes
    """The last values, float64, oldest first."""
    span_events: int
    spans: list[float]


_SUMS = np.dtype([("events", np.int64), ("total", np.float64), ("squares", np.float64)])


class RunningSums:
    """Number, sum and sum of squares of a signal's values, its last values, and sums of spans."""

    def __init__(self) -> None:
        self.clear()
        self.clear_spans()

    def clear(self) -> None:
        """Forget everything but the spans."""
        self._sums = np.zeros(1, _SUMS)
        self._recent = np.empty(RECENT_EVENTS)  # a ring

    def clear_spans(self) -> None:
        """Begin the first of `SPANS` spans anew."""
        self._span_events = 0
        self._spans_S = np.zeros(SPANS)

    def add(self, values_B: np.ndarray) -> None:
        """Take in the next values, float64 (B,), contiguous."""
        _add(values_B, self._sums, self._recent, self._span_events, self._spans_S)
        self._span_events = min(self._span_events + len(values_B), SPANS * SPAN_EVENTS)

    @property
    def span_left_events(self) -> int:
        """Number of values until all spans are full; later values are in no span."""
        return SPANS * SPAN_EVENTS - self._span_events

    def spans(self) -> np.ndarray:
        """Sum of each span, float64 (SPANS,)."""
        return self._spans_S.copy()

    @property
    def events(self) -> int:
        """Number of values."""
        return int(self._sums["events"][0])

    @property
    def total(self) -> float:
        """Sum of the values."""
        return float(self._sums["total"][0])

    @property
    def deviation(self) -> float:
        """Standard deviation of the values."""
        squares = float(self._sums["squares"][0])
        return math.sqrt(max(squares / self.events - (self.total / self.events) ** 2, 0.0))

    def last(self) -> np.ndarray:
        """The last `RECENT_EVENTS` values, or all, oldest first."""
        events = self.events
        if events < RECENT_EVENTS:
            return self._recent[:events].copy()
        return np.roll(self._recent, -events % RECENT_EVENTS)

    def around(self, since_events: int) -> MeansAround:
        """Means before and within the last `since_events` values, of which at most the last
        `RECENT_EVENTS` count."""
        since = self.last()[-since_events:]
        before_events = max(self.events - len(since), 1)
        return MeansAround(
            before=(self.total - float(since.sum())) / before_events,
            after=float(since.mean()),
            error=math.hypot(_error(since), self.deviation / math.sqrt(before_events)),
        )

    def state(self) -> RunningSumsState:
        """Everything, for a snapshot."""
        return {
            "events": self.events,
            "total": self.total,
            "squares": float(self._sums["squares"][0]),
            "recent": self.last().tobytes(),
            "span_events": self._span_events,
            "spans": self._spans_S.tolist(),
        }

    def restore(self, state: RunningSumsState) -> None:
        """Continue where `state` was taken."""
        self._sums[0] = (state["events"], state["total"], state["squares"])
        last = np.frombuffer(state["recent"])
        self._recent[(self.events - len(last) + np.arange(len(last))) % RECENT_EVENTS] = last
        self._span_events = state["span_events"]
        self._spans_S = np.array(state["spans"])


def _error(values: np.ndarray) -> float:
    """Standard error of a mean, from the means of pieces, since neighbouring values are alike."""
    pieces = min(_PIECES, len(values))
    if pieces < 2:
        return 0.0
    means = [piece.mean() for piece in np.array_split(values, pieces)]
    return float(np.std(means, ddof=1) / math.sqrt(pieces))


@kernel(
    types.void(
        types.float64[::1], structs(_SUMS), types.float64[::1], types.int64, types.float64[::1]
    ),
    brief=True,
)
def _add(
    values_B: np.ndarray, sums: np.ndarray, recent: np.ndarray, inside: int, spans_S: np.ndarray
) -> None:
    """Take the values, one after the other, into the sums, the ring and the spans. `inside`: number
    of values that the spans hold."""
    total = sums[0].total
    squares = sums[0].squares
    place = sums[0].events % len(recent)
    for value in values_B:
        total += value
        squares += value * value
        recent[place] = value
        place = place + 1 if place + 1 < len(recent) else 0
        if inside < SPANS * SPAN_EVENTS:
            spans_S[inside // SPAN_EVENTS] += value
            inside += 1
    sums[0].events += len(values_B)
    sums[0].total = total
    sums[0].squares = squares
