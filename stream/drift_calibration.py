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

Direction = Literal["up", "down", "both"]
SLACK = 0.05
"""Shift of the mean, in standard deviations of the signal, below which nothing is a drift."""
_BLOCK_EVENTS = 2_048
_PATHS = 16
_TAIL_EVENTS = 5_000
_LEAST_PEAKS = 20
_SPAN_EVENTS = 512


def cusum_threshold(calm_E: np.ndarray, slack: float, direction: Direction, expected_events: float) -> float:
    """The height that a cumulative sum of a signal like `calm_E`, less its mean and `slack` an event and never below 0,
    exceeds once in `expected_events`."""
    signs = {"up": (1,), "down": (-1,), "both": (1, -1)}[direction]
    paths_PE = _resample(calm_E)
    return max(_height(sign * calm_E, sign * paths_PE, slack, expected_events * len(signs)) for sign in signs)


def _height(calm_E: np.ndarray, paths_PE: np.ndarray, slack: float, expected_events: float) -> float:
    steps_PE = paths_PE - slack
    sums_PE = np.cumsum(steps_PE, axis=1)
    heights_PE = sums_PE - np.minimum(np.minimum.accumulate(sums_PE, axis=1), 0)
    peaks = []
    for heights_E in heights_PE:  # the peak of each excursion from 0
        starts = np.append(0, np.flatnonzero(heights_E == 0))
        peaks.append(np.maximum.reduceat(heights_E, starts))
    peaks_desc = np.sort(np.concatenate(peaks))[::-1]
    tail = peaks_desc[: max(_LEAST_PEAKS, steps_PE.size // _TAIL_EVENTS)]
    decay = min(1 / max(float((tail - tail[-1]).mean()), 1e-12), _decay(calm_E - calm_E.mean(), slack))
    return float(tail[-1]) + max(math.log(len(tail) / steps_PE.size * expected_events), 0.0) / decay


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
    spans_E = sums_E[_SPAN_EVENTS:] - sums_E[:-_SPAN_EVENTS]
    inflation = max(float(spans_E.var()) / (_SPAN_EVENTS * variance), 1.0)
    # Neither this mean nor the one that a detector compares with is the true one: a standard error is set aside.
    slack -= min(math.sqrt(variance * inflation / len(noise_E)), slack / 2)
    low, high = 0.0, 2 * slack / variance
    while np.exp(high * (noise_E - slack)).mean() < 1:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if np.exp(middle * (noise_E - slack)).mean() < 1 else (low, middle)
    return low / inflation
