"""How a signal has gone since a detector's last reset: sums of all its values, and the last of
them.

In: values, event by event; where a batch ends makes no difference. Out: the means before and after
a change, and how far their difference can be trusted. Bounded: some 30 kilobytes however long the
stream.
"""

import math
from typing import Any

import numpy as np

from niwaki.model.jit import kernel

RECENT_EVENTS = 4_096
"""How far back a change that has just been noticed may have begun."""
SPAN_EVENTS = 512
"""How many neighbours are summed, to see how far sums of them vary."""
SPANS = RECENT_EVENTS // SPAN_EVENTS
_PIECES = 16  # of a stretch, to see how far its mean can be trusted


class RunningSums:
    """Sums since the last `clear`, and the last values."""

    def __init__(self):
        self.clear()
        self.clear_spans()

    def clear(self) -> None:
        """Forget everything but the spans."""
        self._sums_3 = np.zeros(3)  # events, values, squares
        self._recent = np.empty(RECENT_EVENTS)  # a ring

    def add(self, values_B: np.ndarray) -> None:
        """Take in the next ones, float64 (B,)."""
        tally_add(values_B, *self.arrays)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What `tally_add` writes to."""
        return self._sums_3, self._recent, self._spans

    def clear_spans(self) -> None:
        """Begin the first of `SPANS` spans anew."""
        self._spans = np.zeros(1 + SPANS)  # events, and the sum of each span

    @property
    def span_left_events(self) -> int:
        """How many are missing in all spans; those beyond them are in none."""
        return SPANS * SPAN_EVENTS - int(self._spans[0])

    def spans(self) -> np.ndarray:
        """(SPANS,) sums."""
        return self._spans[1:].copy()

    @property
    def events(self) -> int:
        """How many there have been."""
        return int(self._sums_3[0])

    @property
    def total(self) -> float:
        """Their sum."""
        return float(self._sums_3[1])

    @property
    def deviation(self) -> float:
        """Their standard deviation."""
        events, total, squares = self._sums_3.tolist()
        return math.sqrt(max(squares / events - (total / events) ** 2, 0.0))

    def last(self) -> np.ndarray:
        """The last `RECENT_EVENTS` of them, or all."""
        events = self.events
        if events < RECENT_EVENTS:
            return self._recent[:events].copy()
        return np.roll(self._recent, -events % RECENT_EVENTS)

    def around(self, since_events: int) -> tuple[float, float, float]:
        """Mean before the last `since_events` values (of which the last `RECENT_EVENTS` count),
        mean of them, and the standard error of the difference."""
        since = self.last()[-since_events:]
        before_events = max(self.events - len(since), 1)
        before = (self.total - float(since.sum())) / before_events
        return (
            before,
            float(since.mean()),
            math.hypot(_error(since), self.deviation / math.sqrt(before_events)),
        )

    def state(self) -> list[Any]:
        """Everything, for a snapshot."""
        return [self._sums_3.tolist(), self.last().tobytes(), self._spans.tolist()]

    def restore(self, state: list[Any]) -> None:
        """Undo `state`."""
        self._sums_3, last, self._spans = (
            np.array(state[0]),
            np.frombuffer(state[1]),
            np.array(state[2]),
        )
        self._recent[(self.events - len(last) + np.arange(len(last))) % RECENT_EVENTS] = last


def _error(values: np.ndarray) -> float:
    """Standard error of a mean, from the means of pieces, since neighbours are alike."""
    pieces = min(_PIECES, len(values))
    if pieces < 2:
        return 0.0
    return float(
        np.std([piece.mean() for piece in np.array_split(values, pieces)], ddof=1)
        / math.sqrt(pieces)
    )


@kernel("void(float64[::1], float64[::1], float64[::1], float64[::1])", brief=True)
def tally_add(values_B, sums_3, recent, spans):
    """Sums, one after the other; the ring of the last values; and the sums of spans."""
    events, total, squares = sums_3
    place, inside = int(events) % len(recent), int(spans[0])
    for value in values_B:
        total += value
        squares += value * value
        recent[place] = value
        place = place + 1 if place + 1 < len(recent) else 0
        if inside < SPANS * SPAN_EVENTS:
            spans[1 + inside // SPAN_EVENTS] += value
            inside += 1
    sums_3[0], sums_3[1], sums_3[2] = events + len(values_B), total, squares
    spans[0] = inside
