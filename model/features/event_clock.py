"""The stream's clock: event times that are far from those around them, put back.

In: event times in the order of the stream, a batch at a time. Out: the same times, but for those
that lie far ahead of the running median of the last events, or far behind it, and from which the
rest of the batch returns: such an event happens at that median. So no single event moves what
depends on event time: ages, histories, rates, seasonal adjustment. Where event time really jumps,
as after a pause, the rest of the batch shows it; the median follows within 128 events, whatever the
batches. Memory is bounded: 255 times.
"""

from collections.abc import Mapping

import numpy as np

from niwaki.model.jit import inlined, kernel, types

AHEAD_S = 2 * 86_400.0
"""Event time that may pass from one event to the next, as over a night or a holiday."""
BEHIND_S = 30 * 86_400.0
"""Lateness that an event may have, seconds. A time remembered from further ahead than this is from
before the stream began anew at an earlier time."""
_EVENTS = 255
_SPREADS = 8.0
"""Deviations of the last times by which the next may differ, whatever the bounds: in a stream of
few events a day 255 events are a long time. In an even stream the latest event lies two deviations
after the median."""

_F1, _I1 = types.float64[::1], types.int64[::1]


class EventClock:
    """Bounds event times by the running median of the last 255 and by the rest of their batch."""

    def __init__(self) -> None:
        self._recent = np.zeros(_EVENTS)  # a ring
        self._sorted = np.zeros(_EVENTS)
        self._counts = np.zeros(2, np.int64)  # times in the ring, and the place of the next one

    def bound(self, times_s_B: np.ndarray) -> tuple[np.ndarray, int]:
        """Event times, float64 (B,), seconds since the epoch, with outliers put back, and how many
        there were. 0, which stands for no time, stays."""
        bounded_B = np.empty(len(times_s_B))
        state = self._recent, self._sorted, self._counts
        outliers = _bound(np.ascontiguousarray(times_s_B, np.float64), *state, bounded_B)
        return (bounded_B, outliers) if outliers else (times_s_B, 0)

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays by name, for a snapshot: the last times, oldest first."""
        events, place = self._counts.tolist()
        return {"recent": np.roll(self._recent, -place)[_EVENTS - events :]}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue where `state` was taken; a snapshot without a clock begins it anew."""
        recent = arrays.get("recent", np.empty(0))
        self._recent = np.zeros(_EVENTS)
        self._recent[: len(recent)] = recent
        self._sorted = np.zeros(_EVENTS)
        self._sorted[: len(recent)] = np.sort(recent)
        self._counts = np.array([len(recent), len(recent) % _EVENTS])


@inlined
def _spread(ordered: np.ndarray, events: int) -> float:
    """Distance from the median within which half of the times lie."""
    middle = (events - 1) // 2
    low = high = middle
    while high - low < events // 2:
        below = ordered[middle] - ordered[low - 1] if low > 0 else np.inf
        above = ordered[high + 1] - ordered[middle] if high + 1 < events else np.inf
        if below <= above:
            low -= 1
        else:
            high += 1
    spread: float = max(ordered[middle] - ordered[low], ordered[high] - ordered[middle])
    return spread


@inlined
def _insert(recent: np.ndarray, ordered: np.ndarray, counts: np.ndarray, time_s: float) -> None:
    """Put a time into the ring, in the place of the oldest one, and into the sorted times."""
    events, place = counts
    at = events
    if events == len(recent):
        at = np.searchsorted(ordered, recent[place])
    else:
        events += 1
    while at > 0 and ordered[at - 1] > time_s:
        ordered[at] = ordered[at - 1]
        at -= 1
    while at + 1 < events and ordered[at + 1] < time_s:
        ordered[at] = ordered[at + 1]
        at += 1
    ordered[at] = time_s
    recent[place] = time_s
    counts[0], counts[1] = events, (place + 1) % len(recent)


@kernel(types.int64(_F1, _F1, _F1, _I1, _F1), brief=True)
def _bound(
    times_s_B: np.ndarray,
    recent: np.ndarray,
    ordered: np.ndarray,
    counts: np.ndarray,
    bounded_B: np.ndarray,
) -> int:
    """Write the bounded times; returns the number of outliers. `ordered`: the times of the ring
    `recent`, sorted."""
    outliers = 0
    for b in range(len(times_s_B)):
        time_s = times_s_B[b]
        bounded_B[b] = time_s
        if time_s == 0:
            continue
        events = counts[0]
        median_s = ordered[(events - 1) // 2] if events > 0 else np.nan
        ahead_s = time_s - median_s
        far = not -BEHIND_S <= ahead_s <= AHEAD_S
        if far and events > 1:
            within_s = _SPREADS * _spread(ordered, events)
            far = not -BEHIND_S - within_s <= ahead_s <= AHEAD_S + within_s
        _insert(recent, ordered, counts, time_s)
        if not far:
            continue
        rest = times_s_B[b + 1 :]
        rest = np.sort(rest[rest != 0])
        if len(rest) > 0:
            rest_s = rest[(len(rest) - 1) // 2]
            if events == 0:
                median_s = rest_s
            returns = time_s - rest_s > AHEAD_S if time_s > median_s else rest_s - time_s > BEHIND_S
        elif b > 0 and bounded_B[b - 1] == times_s_B[b - 1]:
            returns = not -BEHIND_S <= time_s - times_s_B[b - 1] <= AHEAD_S
        else:
            returns = events > 0
        if returns:
            bounded_B[b] = median_s
            outliers += 1
    return outliers
