"""Seasonal adjustment: a signal's usual value at each hour of the day, removed from the signal.

In: values with their event times, in order. Out: the values with the daily cycle removed, and their
mean kept. Memory is bounded: sums of 24 hours. Weekly and yearly cycles are not modelled.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.lib.recfunctions import structured_to_unstructured, unstructured_to_structured

from niwaki.model.features.event_clock import BEHIND_S
from niwaki.model.jit import kernel, structs, types

_DAY_S, _HOUR_S = 86_400.0, 3_600
_HALF_LIFE_S = 7 * _DAY_S
_PRIOR_EVENTS = 500
_LEAST_DAY_EVENTS = 2_400


HOURLY_SUMS = np.dtype([("events", np.float64), ("values", np.float64), ("squares", np.float64)])
"""Sums of a signal over one hour of the day (UTC)."""
USUAL = np.dtype([("mean", np.float64), ("target", np.float64), ("scale", np.float64)])
"""The usual course of one hour of the day; a value is adjusted to
`target + (value - mean) * scale`."""


class _Forecast(NamedTuple):
    """Quality of the hours' means as a forecast of later days; sums over events that fade."""

    covariance: float
    variance: float


_FORECAST_TYPE = types.NamedUniTuple(types.float64, 2, _Forecast)


class Seasonality:
    """The usual mean and spread of a signal at each hour of the day (UTC).

    A day's sums are added to the known ones when the day is over, together with the following days
    if it had few events; so no drift becomes usual while it is looked for. The daily cycle is
    removed in proportion to how well it has forecast the days since: noise and single incidents are
    not repeated, and so not removed.
    """

    def __init__(self, learned: bool):
        """`learned`: True for a signal that depends on the model's learning; its first day is left
        out, and the second day's cycle is not removed before another day has repeated it."""
        self._known_H = np.zeros(24, HOURLY_SUMS)  # fade from day to day
        self.today_H = np.zeros(24, HOURLY_SUMS)
        """Sums of the day that is not over yet; `by_hour` adds to them."""
        self._forecast = _Forecast(0.0, 1e-12) if learned else _Forecast(1e-12, 1e-12)
        self._day_ends_s = math.nan
        self._left_out = learned
        self._derive()

    @property
    def known(self) -> bool:
        """True once a day is over, and for events without times."""
        return self._day_known or math.isnan(self._day_ends_s)

    def begin(self, times_s_B: np.ndarray) -> None:
        """Announce the times of the next batch, float64 (B,), seconds; ends the day if it is over.

        The median of three of these times counts, so that no single event moves the day. A stream
        that begins anew, more than 30 days earlier, begins a day anew.
        """
        size = len(times_s_B)
        now_s = sorted(float(times_s_B[b]) for b in (0, size // 2, size - 1))[1]
        if now_s >= self._day_ends_s and self._day_events >= _LEAST_DAY_EVENTS:
            self._end_day(now_s)
        elif now_s and not now_s >= self._day_ends_s - _DAY_S - BEHIND_S:
            self._day_ends_s = now_s + _DAY_S
        self._day_events += len(times_s_B)

    def update(self, values_B: np.ndarray, times_s_B: np.ndarray) -> np.ndarray:
        """Take in the next values, float64 (B,), and return them adjusted. Values of the first day
        and values without times stay as they are."""
        self.begin(times_s_B)
        adjusted_B = np.empty_like(values_B)
        _adjust(values_B, times_s_B, self.usual_H, self.today_H, adjusted_B)
        return adjusted_B

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays by name, for a snapshot."""
        return {
            "known": structured_to_unstructured(self._known_H, copy=True),
            "today": structured_to_unstructured(self.today_H, copy=True),
            "forecast": np.array(self._forecast),
            "day_ends_s": np.array([self._day_ends_s]),
            "left_out": np.array([self._left_out]),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue where `state` was taken."""
        self._known_H = unstructured_to_structured(arrays["known"].copy(), HOURLY_SUMS)
        self.today_H = unstructured_to_structured(arrays["today"].copy(), HOURLY_SUMS)
        self._forecast = _Forecast(*arrays["forecast"].tolist())
        self._day_ends_s = float(arrays["day_ends_s"][0])
        self._left_out = bool(arrays["left_out"][0])
        self._derive()

    def _end_day(self, now_s: float) -> None:
        fade = 0.5 ** ((now_s - self._day_ends_s + _DAY_S) / _HALF_LIFE_S)
        if self.known and not self._left_out:
            forecast = _forecast(self.today_H, np.ascontiguousarray(self.usual_H["mean"]))
            self._forecast = _Forecast(
                fade * self._forecast.covariance + forecast.covariance,
                fade * self._forecast.variance + forecast.variance,
            )
        for name in HOURLY_SUMS.fields or ():
            self._known_H[name] *= fade
            if not self._left_out:
                self._known_H[name] += self.today_H[name]
            self.today_H[name] = 0
        self._day_ends_s = now_s + _DAY_S
        self._left_out = False
        self._derive()

    def _derive(self) -> None:
        """Compute everything that follows from the sums. The target of an hour lies near the median
        of the hours' means, which a few unusual hours do not change."""
        self._day_events = int(self.today_H["events"].sum())
        self._day_known = bool(self._known_H["events"].any())
        trust = min(max(self._forecast.covariance / self._forecast.variance, 0.0), 1.0)
        self.usual_H = np.empty(24, USUAL)
        """The usual course of a day, by the days that are over."""
        _usual(self._known_H, trust, self.usual_H)


@kernel(_FORECAST_TYPE(structs(HOURLY_SUMS), types.float64[::1]), brief=True)
def _forecast(today_H: np.ndarray, means_H: np.ndarray) -> _Forecast:
    """The quality of the hours' means as a forecast of a day's: their covariance, and the variance
    of the forecast, summed over events."""
    events_H = today_H["events"]
    events = max(events_H.sum(), 1.0)
    mean = today_H["values"].sum() / events
    forecast = (events_H * means_H).sum() / events
    apart_H = today_H["values"] / np.maximum(events_H, 1.0) - mean
    means_H = means_H - forecast
    return _Forecast(
        (events_H * apart_H * means_H).sum(),
        (events_H * means_H * means_H).sum(),
    )


@kernel(types.void(structs(HOURLY_SUMS), types.float64, structs(USUAL)), brief=True)
def _usual(known_H: np.ndarray, trust: float, usual_H: np.ndarray) -> None:
    """Write the usual course of a day to `usual_H`. An hour with few events is pulled towards the
    mean of all hours. `trust`: share of the daily cycle that is removed, 0 to 1."""
    events = max(known_H["events"].sum(), 1.0)
    mean = known_H["values"].sum() / events
    squares = known_H["squares"].sum() / events
    events_H = known_H["events"] + _PRIOR_EVENTS
    means_H = (known_H["values"] + _PRIOR_EVENTS * mean) / events_H
    spreads_H = np.sqrt(
        np.maximum((known_H["squares"] + _PRIOR_EVENTS * squares) / events_H - means_H**2, 0.0)
    )
    targets_H = means_H + trust * (np.median(means_H) - means_H)
    scales_H = np.ones(len(means_H))
    if spreads_H.min() > 0:
        scales_H += trust * (np.median(spreads_H) / spreads_H - 1)
    for hour in range(len(means_H)):
        usual_H[hour].mean = means_H[hour]
        usual_H[hour].target = targets_H[hour]
        usual_H[hour].scale = scales_H[hour]


@kernel(
    types.float64(types.float64, types.float64, structs(USUAL), structs(HOURLY_SUMS)), brief=True
)
def by_hour(value: float, time_s: float, usual_H: np.ndarray, today_H: np.ndarray) -> float:
    """A value adjusted by the usual course of its hour; adds the value to `today_H`."""
    hour = int(math.floor(time_s)) // _HOUR_S % 24
    today = today_H[hour]
    today.events += 1.0
    today.values += value
    today.squares += value * value
    usual = usual_H[hour]
    adjusted: float = usual.target + (value - usual.mean) * usual.scale
    return adjusted


@kernel(
    types.void(
        types.float64[::1],
        types.float64[:],
        structs(USUAL),
        structs(HOURLY_SUMS),
        types.float64[::1],
    ),
    brief=True,
)
def _adjust(
    values_B: np.ndarray,
    times_s_B: np.ndarray,
    usual_H: np.ndarray,
    today_H: np.ndarray,
    adjusted_B: np.ndarray,
) -> None:
    """Write `by_hour` of each value to `adjusted_B`."""
    for b in range(len(values_B)):
        adjusted_B[b] = by_hour(values_B[b], times_s_B[b], usual_H, today_H)
