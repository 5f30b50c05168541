"""How a signal goes with the hour of the day, so that daily cycles are known: seasonal adjustment.

In: values with their event times, in order. Out: the values less what was usual at their hour.
Bounded: sums of 24 hours.
"""

import math

import numpy as np

from niwaki.model.jit import kernel

_DAY_S, _HOUR_S = 86_400.0, 3_600
_HALF_LIFE_S = 7 * _DAY_S
_PRIOR_EVENTS = 500
_LEAST_DAY_EVENTS = 2_400


class Seasonality:
    """How a signal goes with the hour of the day (UTC), so that daily cycles are known: seasonal
    adjustment.

    A day is taken in when it is over, and with those after it if it had few events; so no drift
    becomes usual while it is looked for. The usual course is trusted as far as it has foretold the
    days since: noise and what happened once are not repeated.
    """

    def __init__(self, learned: bool):
        """`learned`: the signal depends on what the model has learned, so its first day is left
        out, and the course of the next not trusted before it is repeated."""
        self._sums_23H = np.zeros(
            (2, 3, 24)
        )  # known, and of this day: events, values, squares; they fade with days
        self._products_2 = (
            np.array([0.0, 1e-12]) if learned else np.full(2, 1e-12)
        )  # whose ratio is the trust
        self._day_ends_s, self._left_out = math.nan, learned
        self._set()

    @property
    def known(self) -> bool:
        """Whether a day has been taken in, or events have no times."""
        return self._taken_in or math.isnan(self._day_ends_s)

    @property
    def day_3H(self) -> np.ndarray:
        """The sums of this day."""
        return self._sums_23H[1]

    def begin(self, times_s_B: np.ndarray) -> None:
        """A batch of these times is next: take the day in that is over."""
        first_s = float(times_s_B[0])
        if first_s >= self._day_ends_s and self._day_events >= _LEAST_DAY_EVENTS:
            self._take_in(first_s)
        elif math.isnan(self._day_ends_s) and (first_s or times_s_B[-1]):
            self._day_ends_s = first_s + _DAY_S
        self._day_events += len(times_s_B)

    def update(self, values_B: np.ndarray, times_s_B: np.ndarray) -> np.ndarray:
        """(B,) values less what was usual at their hour, in proportion to the usual spread. Those
        of the first day stay as they are, and so do those of events without times."""
        self.begin(times_s_B)
        adjusted_B = np.empty_like(values_B)
        _adjust(values_B, times_s_B, self.usual_3H, self.day_3H, adjusted_B)
        return adjusted_B

    def state(self) -> np.ndarray:
        return np.concatenate(
            [self._sums_23H.ravel(), self._products_2, [self._day_ends_s, self._left_out]]
        )

    def restore(self, state: np.ndarray) -> None:
        self._sums_23H, self._products_2 = state[:-4].reshape(2, 3, 24).copy(), state[-4:-2].copy()
        self._day_ends_s, self._left_out = float(state[-2]), bool(state[-1])
        self._set()

    def _take_in(self, now_s: float) -> None:
        known_3H, day_3H = self._sums_23H
        fade = 0.5 ** ((now_s - self._day_ends_s + _DAY_S) / _HALF_LIFE_S)
        if self.known and not self._left_out:
            self._products_2 = fade * self._products_2 + _foretold(day_3H, self.usual_3H[0])
        known_3H *= fade
        if not self._left_out:
            known_3H += day_3H
        day_3H[:] = 0
        self._day_ends_s, self._left_out = now_s + _DAY_S, False
        self._set()

    def _set(self) -> None:
        """What is usual at each hour: its mean, and what that is mapped to, which some unusual
        hours do not change; and its spread, likewise."""
        known_3H = self._sums_23H[0]
        self._day_events = int(self._sums_23H[1, 0].sum())
        self._taken_in = bool(known_3H[0].any())
        self.usual_3H = _usual(
            known_3H, min(max(self._products_2[0] / self._products_2[1], 0.0), 1.0)
        )


@kernel("float64[::1](float64[:,::1], float64[::1])", brief=True)
def _foretold(day_3H, means_H):
    """How far the hours' means foretold those of a day: their product and the former's square, each
    less its own mean, summed over events."""
    events = max(day_3H[0].sum(), 1.0)
    mean, foretold = day_3H[1].sum() / events, (day_3H[0] * means_H).sum() / events
    apart_H, means_H = day_3H[1] / np.maximum(day_3H[0], 1.0) - mean, means_H - foretold
    return np.array([(day_3H[0] * apart_H * means_H).sum(), (day_3H[0] * means_H * means_H).sum()])


@kernel("float64[:,::1](float64[:,::1], float64)", brief=True)
def _usual(known_3H, trust):
    """Of each hour the mean, what that is mapped to, and what the spread is multiplied with. Hours
    with few events are taken to be like the others."""
    events = max(known_3H[0].sum(), 1.0)
    mean, squares = known_3H[1].sum() / events, known_3H[2].sum() / events
    events_H = known_3H[0] + _PRIOR_EVENTS
    means_H = (known_3H[1] + _PRIOR_EVENTS * mean) / events_H
    spreads_H = np.sqrt(
        np.maximum((known_3H[2] + _PRIOR_EVENTS * squares) / events_H - means_H**2, 0.0)
    )
    usual_3H = np.empty(known_3H.shape)
    usual_3H[0], usual_3H[1], usual_3H[2] = (
        means_H,
        means_H + trust * (np.median(means_H) - means_H),
        1.0,
    )
    if spreads_H.min() > 0:
        usual_3H[2] += trust * (np.median(spreads_H) / spreads_H - 1)
    return usual_3H


@kernel("float64(float64, float64, float64[:,::1], float64[:,::1])", brief=True)
def by_hour(value, time_s, usual_3H, day_3H):
    """A value by what is usual at its hour; `day_3H` takes it in."""
    hour = int(math.floor(time_s)) // _HOUR_S % 24
    day_3H[0, hour] += 1.0
    day_3H[1, hour] += value
    day_3H[2, hour] += value * value
    return usual_3H[1, hour] + (value - usual_3H[0, hour]) * usual_3H[2, hour]


@kernel("void(float64[::1], float64[:], float64[:,::1], float64[:,::1], float64[::1])", brief=True)
def _adjust(values_B, times_s_B, usual_3H, day_3H, adjusted_B):
    """Values by what is usual at their hour."""
    for b in range(len(values_B)):
        adjusted_B[b] = by_hour(values_B[b], times_s_B[b], usual_3H, day_3H)
