"""Staleness: evidence that an expert's knowledge no longer holds.

In: prediction errors, experts' logits and event times. Out: for each event, the prediction's error
times the difference between the logits of an expert and of the next faster one, scaled and
seasonally adjusted. Its mean is 0 while the prediction is calibrated, and above 0 where the slower
expert misleads. Memory is bounded: two sums, and those of `Seasonality`.
"""

import math
from collections.abc import Mapping

import numpy as np

from niwaki.model.jit import kernel, structs, types
from niwaki.stream.drift.observations import Observations
from niwaki.stream.drift.seasonal.seasonality import HOURLY_SUMS, USUAL, Seasonality, by_hour

_SPREAD_HALF_LIFE_EVENTS = 10_000.0
_KEPT_EVENTS = 1_000.0  # weight that a reset leaves to the spread measured before
_OUTLIER = 8.0


class Staleness:
    """Staleness of one expert, divided by its recent root mean square and adjusted for the hour of
    day."""

    begun = False

    def __init__(self, expert: int):
        """`expert`: index of the expert, counted from the slowest; the next one is compared with
        it."""
        self._expert = expert
        self._squares = 0.0  # both sums fade
        self._events = 0.0
        self._season = Seasonality(learned=True)

    def reset(self) -> None:
        """Let the scale follow the events from now on. In the scale of a drift's turmoil, staleness
        would seem low at first and then rise, which would be taken for another drift."""
        kept = min(_KEPT_EVENTS / max(self._events, 1.0), 1.0)
        self._squares *= kept
        self._events *= kept

    def update(self, observed: Observations, errors_B: np.ndarray) -> np.ndarray | None:
        """Staleness, float64 (B,), in units of the root mean square before this batch, outliers cut
        off at 8. None if there is no such scale yet, or no faster expert."""
        if observed.experts_BE.shape[1] < self._expert + 2:
            return None
        times_s_B = observed.times_s_B
        spread = math.sqrt(self._squares / max(self._events, 1.0))
        season = self._season
        if spread:
            season.begin(times_s_B)
        adjusted_B = np.empty_like(errors_B)
        gained = _staleness(
            errors_B,
            observed.experts_BE,
            self._expert,
            times_s_B,
            spread,
            season.usual_H,
            season.today_H,
            adjusted_B,
        )
        fade = 0.5 ** (len(errors_B) / _SPREAD_HALF_LIFE_EVENTS)
        self._squares = self._squares * fade + gained
        self._events = self._events * fade + len(errors_B)
        return adjusted_B if spread else None

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays by name, for a snapshot."""
        season = {f":season:{name}": array for name, array in self._season.state().items()}
        spread = {":squares": np.array([self._squares]), ":events": np.array([self._events])}
        return spread | season

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue where `state` was taken."""
        self._squares = float(arrays[":squares"][0])
        self._events = float(arrays[":events"][0])
        self._season.restore({name: arrays[f":season:{name}"] for name in self._season.state()})


@kernel(
    types.float64(
        types.float64[::1],
        types.float32[:, :],
        types.int64,
        types.float64[:],
        types.float64,
        structs(USUAL),
        structs(HOURLY_SUMS),
        types.float64[::1],
    ),
    brief=True,
)
def _staleness(
    errors_B: np.ndarray,
    experts_BE: np.ndarray,
    expert: int,
    times_s_B: np.ndarray,
    spread: float,
    usual_H: np.ndarray,
    today_H: np.ndarray,
    adjusted_B: np.ndarray,
) -> float:
    """Write the scaled and adjusted staleness to `adjusted_B`, if `spread` is above 0; returns the
    sum of squares of the raw one."""
    squares = 0.0
    for b in range(len(errors_B)):
        value = errors_B[b] * (np.float64(experts_BE[b, expert]) - experts_BE[b, expert + 1])
        squares += value * value
        if spread > 0:
            scaled = min(max(value / spread, -_OUTLIER), _OUTLIER)
            adjusted_B[b] = by_hour(scaled, times_s_B[b], usual_H, today_H)
    return squares
