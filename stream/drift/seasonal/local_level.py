"""The label less its own level of the last half hour: what can be watched before a day is known.

In: labels and event times. Out: for each event the label, less the level that the labels before it
lead to, plus the level at which that began. The level follows a slope (double exponential
smoothing; Brown, Smoothing, Forecasting and Prediction, 1963), as a daily cycle is one within half
an hour; a step is followed only after thousands of events, and shows until then. Memory is bounded:
a few numbers.
"""

import math
from collections.abc import Mapping

import numpy as np

from niwaki.model.jit import kernel, structs, types

_SPAN_S = 1_800.0
"""Time constant of the level. Where the logit follows a wave of amplitude 1 in a day, the level is
off by less than 0.01 standard deviations of the label, a fifth of the least shift that counts."""
_LEAST_EVENTS = 8_192.0
"""Events of the level's time constant at least: so many give the mean of a detector, too."""
_LONGEST_SPAN_S = 3_600.0
"""A slope within a longer time is no longer that of a wave of a day."""

_LEVEL = np.dtype(
    [
        ("events", np.float64),
        ("once", np.float64),  # labels smoothed once
        ("twice", np.float64),
        ("gap_s", np.float64),  # mean time between events, likewise
        ("now_s", np.float64),
        ("offset", np.float64),  # the level at which the values began; NaN before
    ]
)


class LocalLevel:
    """Labels less their local level."""

    def __init__(self) -> None:
        self._level = np.array([(0.0, 0.0, 0.0, 0.0, math.nan, math.nan)], _LEVEL)

    def update(self, labels_B: np.ndarray, times_s_B: np.ndarray) -> np.ndarray | None:
        """Take in the next labels, float64 (B,), contiguous, and return them less the level before
        them; None while there are not enough of them, or where the stream has too few events an
        hour."""
        level = self._level[0]
        size = len(labels_B)
        now_s = sorted(float(times_s_B[b]) for b in (0, size // 2, size - 1))[1]
        passed_s = min(max(now_s - float(level["now_s"]), 0.0), _LONGEST_SPAN_S)
        level["now_s"] = np.fmax(level["now_s"], now_s)
        values_B = np.empty(size)
        _follow(labels_B, 0.0 if math.isnan(passed_s) else passed_s / size, self._level, values_B)
        known = level["events"] >= 2 * _LEAST_EVENTS
        if not known or _LEAST_EVENTS * level["gap_s"] > _LONGEST_SPAN_S:
            return None
        if math.isnan(level["offset"]):
            level["offset"] = level["once"]
        values_B += level["offset"]
        return values_B

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays by name, for a snapshot."""
        return {"level": np.array(self._level[0].tolist())}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue where `state` was taken."""
        self._level[0] = tuple(arrays["level"].tolist())


@kernel(
    types.void(types.float64[::1], types.float64, structs(_LEVEL), types.float64[::1]), brief=True
)
def _follow(labels_B: np.ndarray, gap_s: float, level: np.ndarray, values_B: np.ndarray) -> None:
    """Write labels less the level before each; the level goes on."""
    one = level[0]
    for b in range(len(labels_B)):
        values_B[b] = labels_B[b] - (2 * one.once - one.twice)
        one.events += 1.0
        share = max(min(gap_s / _SPAN_S, 1 / _LEAST_EVENTS), 1 / one.events)
        one.once += share * (labels_B[b] - one.once)
        one.twice = one.once if one.events == 1 else one.twice + share * (one.once - one.twice)
        one.gap_s += share * (gap_s - one.gap_s)
