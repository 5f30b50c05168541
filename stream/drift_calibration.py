"""How sensitive a detector may be: as much as the stream's own noise allows at the false alarms that one accepts.

In: a calm stretch of a signal and the events that are to lie between false alarms. Out: a detector's threshold. Real
streams come in bursts, one user's events in a row, so events are not independent and thresholds from theory are far too
low. So the calm stretch is drawn again many times, in blocks long enough to keep the bursts whole (moving-block
bootstrap, Kuensch, 1989), and what the detector would make of that is counted. Alarms that rare can't be counted: their
tail is exponential (Siegmund, Sequential Analysis, 1985), so it is measured where it can be and prolonged.
"""

import math
from typing import Literal

import numpy as np

from model.kernels import kernel

Direction = Literal["up", "down", "both"]
SLACK = 0.05
"""Shift of the mean, in standard deviations of the signal, below which nothing is a drift."""
SPAN_EVENTS = 512
"""How long the fluctuations are that a calm stretch can show."""
_BLOCK_EVENTS = 2_048
_PATHS = 16
_TAIL_EVENTS = 5_000
_LEAST_PEAKS = 20
_NEWTON_STEPS = 8


def cusum_threshold(calm_E: np.ndarray, slack: float, direction: Direction, expected_events: float) -> float:
    """The height that a cumulative sum of a signal like `calm_E`, less its mean and `slack` an event and never below 0,
    exceeds once in `expected_events`."""
    signs = {"up": (1,), "down": (-1,), "both": (1, -1)}[direction]
    paths_PE = _resample(calm_E)
    return max(_height(sign * calm_E, sign * paths_PE, slack, expected_events * len(signs)) for sign in signs)


def _height(calm_E: np.ndarray, paths_PE: np.ndarray, slack: float, expected_events: float) -> float:
    peaks = np.empty(paths_PE.size)
    peaks_desc = np.sort(peaks[: _excursions(paths_PE, slack, peaks)])[::-1]
    tail = peaks_desc[: max(_LEAST_PEAKS, paths_PE.size // _TAIL_EVENTS)]
    measured = 1 / max(float((tail - tail[-1]).mean()), 1e-12)
    decay = math.sqrt(measured * _decay(calm_E - calm_E.mean(), slack))
    return float(tail[-1]) + max(math.log(len(tail) / paths_PE.size * expected_events), 0.0) / decay


def _resample(calm_E: np.ndarray) -> np.ndarray:
    """(paths, events): the calm stretch drawn again in blocks. The same for the same stretch.

    Each path has the mean of another taken off: a detector does not know the true mean either, and compares with one of
    about as many events.
    """
    block = min(_BLOCK_EVENTS, max(len(calm_E) // 8, 1))
    starts = np.random.default_rng(0).integers(0, len(calm_E) - block + 1, (_PATHS, -(-len(calm_E) // block), 1))
    paths_PE = calm_E[(starts + np.arange(block)).reshape(_PATHS, -1)]
    return paths_PE - np.roll(paths_PE.mean(1, keepdims=True), 1, axis=0)


def _decay(noise_E: np.ndarray, slack: float) -> float:
    """The rate at which high peaks become rare: Lundberg's, the root of E exp(rate (noise - slack)) = 1, which knows of
    skewness. Neighbours that are alike make sums vary more, and peaks that much higher."""
    variance = float(noise_E.var())
    sums_E = np.append(0, np.cumsum(noise_E))
    spans_E = sums_E[SPAN_EVENTS:] - sums_E[:-SPAN_EVENTS]
    apart_E = spans_E[SPAN_EVENTS:] - spans_E[:-SPAN_EVENTS]  # of neighbours: a slow trend is no burst
    inflation = max(float((apart_E**2).mean()) / (2 * SPAN_EVENTS * variance), 1.0)
    # Neither this mean nor the one that a detector compares with is the true one: a standard error is set aside.
    slack -= min(math.sqrt(variance * inflation / len(noise_E)), slack / 2)
    rate = 2 * slack / variance
    while np.exp(rate * (noise_E - slack)).mean() < 1:
        rate *= 2
    for _ in range(_NEWTON_STEPS):  # from above, since the function is convex
        powers_E = np.exp(rate * (noise_E - slack))
        rate -= (powers_E.mean() - 1) / (powers_E * (noise_E - slack)).mean()
    return float(rate / inflation)


@kernel("int64(float64[:,::1], float64, float64[::1])")
def _excursions(paths_PE, slack, peaks):
    """The peak of each excursion of the cumulative sums from 0; returns how many there are."""
    count = 0
    for p in range(len(paths_PE)):
        total = lowest = peak = 0.0
        for step in paths_PE[p]:
            total += step - slack
            if total <= lowest:
                lowest = total
                peaks[count] = peak
                count += 1
                peak = 0.0
            else:
                peak = max(peak, total - lowest)
        peaks[count] = peak
        count += 1
    return count
