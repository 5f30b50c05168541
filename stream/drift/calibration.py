"""Calibration: the threshold that a detector's noise allows, at an accepted rate of false alarms.

In: a calm stretch of a signal and the events that are to lie between false alarms. Out: a
detector's threshold. Real streams come in bursts, one user's events in a row, so events are not
independent, and thresholds from theory are far too low. Therefore the calm stretch is resampled
many times, in blocks that are long enough to keep the bursts whole (moving-block bootstrap,
Kuensch, 1989), and the peaks of a detector's sums are counted. Alarms as rare as accepted ones
cannot be counted: the peaks' tail is exponential (Siegmund, Sequential Analysis, 1985), so it is
measured where there are enough of them, and extrapolated.
"""

import math

import numpy as np

from niwaki.model.jit import kernel
from niwaki.stream.drift.page_hinkley import Direction
from niwaki.stream.drift.running_sums import SPAN_EVENTS

SLACK = 0.05
"""Shift of the mean, in standard deviations of the signal, below which nothing is a drift."""
_BLOCK_EVENTS = 2_048
_PATHS = 16
_TAIL_EVENTS = 5_000
_LEAST_PEAKS = 20
_NEWTON_STEPS = 8
_STEEPEST = 8.0
"""Factor on the rate at which peaks would become rare by theory, which no other rate exceeds."""


def cusum_threshold(
    calm_E: np.ndarray, slack: float, direction: Direction, expected_events: float
) -> float:
    """Height that a cumulative sum of a signal like `calm_E` exceeds once in `expected_events`.

    At each event the sum gains the signal's value less its mean and `slack`, and never falls below
    0. `calm_E`: float64 (E,), contiguous. `slack`: > 0, in units of the signal.
    """
    signs = {"up": (1,), "down": (-1,), "both": (1, -1)}[direction]
    return max(_height(sign * calm_E, slack, expected_events * len(signs)) for sign in signs)


def _height(calm_E: np.ndarray, slack: float, expected_events: float) -> float:
    """`cusum_threshold` for rises alone."""
    block = min(_BLOCK_EVENTS, max(len(calm_E) // 8, 1))
    # A fixed seed: equal stretches have equal thresholds.
    starts_PK = np.random.default_rng(0).integers(
        0, len(calm_E) - block + 1, (_PATHS, -(-len(calm_E) // block))
    )
    events = starts_PK.size * block
    sums_E = np.append(0, np.cumsum(calm_E))
    # A detector does not know the true mean either; its own is of about as many events, as is
    # another path's.
    means_P = np.roll((sums_E[starts_PK + block] - sums_E[starts_PK]).mean(1) / block, 1)
    kept = max(_LEAST_PEAKS, events // _TAIL_EVENTS)
    peaks = np.empty(events)
    peaks[:kept] = 0
    count = _excursions(calm_E, starts_PK, block, means_P + slack, peaks)
    tail = np.partition(peaks[: max(count, kept)], -kept)[-kept:]
    lundberg = _decay(calm_E - calm_E.mean(), slack)
    # Where calm sums never rise above 0 all peaks are 0, and their decay cannot be measured.
    measured = 1 / max(float((tail - tail.min()).mean()), 1 / (_STEEPEST * lundberg))
    decay = math.sqrt(measured * lundberg)
    return float(tail.min()) + max(math.log(kept / events * expected_events), 0.0) / decay


def _decay(noise_E: np.ndarray, slack: float) -> float:
    """Rate at which high peaks become rare: Lundberg's exponent, the root of
    E exp(rate (noise - slack)) = 1, which takes skewness into account. Neighbours that are alike
    make sums vary more, and peaks higher by that factor.

    Where no value of the noise exceeds the slack, or hardly one, there is no root, or one that says
    nothing of the next values; the rate is then that of normal noise of the same variance, or at
    most 8 times that.
    """
    variance = float(noise_E.var())
    span = min(SPAN_EVENTS, len(noise_E) // 4)
    sums_E = np.append(0, np.cumsum(noise_E))
    spans_E = sums_E[span:] - sums_E[:-span]
    apart_E = spans_E[span:] - spans_E[:-span]  # of neighbours: a slow trend is no burst
    inflation = max(float((apart_E**2).mean()) / (2 * span * variance), 1.0)
    # Neither this mean nor the detector's is the true one, so the slack is less by a standard
    # error.
    slack -= min(math.sqrt(variance * inflation / len(noise_E)), slack / 2)
    rate = normal = 2 * slack / variance
    if noise_E.max() <= slack:
        return float(normal / inflation)
    while np.exp(rate * (noise_E - slack)).mean() < 1:
        rate *= 2
        if rate > _STEEPEST * normal:
            return float(_STEEPEST * normal / inflation)
    for _ in range(_NEWTON_STEPS):  # from above, since the function is convex
        powers_E = np.exp(rate * (noise_E - slack))
        step = (powers_E.mean() - 1) / (powers_E * (noise_E - slack)).mean()
        rate -= step
        if abs(step) < 1e-9 * rate:
            break
    return float(rate / inflation)


@kernel("int64(float64[::1], int64[:,::1], int64, float64[::1], float64[::1])")
def _excursions(
    calm_E: np.ndarray,
    starts_PK: np.ndarray,
    block: int,
    slack_P: np.ndarray,
    peaks: np.ndarray,
) -> int:
    """Write the peak of each excursion of the cumulative sums above 0 to `peaks`; returns their
    number. A path consists of blocks of the calm stretch, one after the other."""
    count = 0
    for p in range(len(starts_PK)):
        above = peak = 0.0
        for start in starts_PK[p]:
            for e in range(start, start + block):
                above += calm_E[e] - slack_P[p]
                if above > 0:
                    peak = max(peak, above)
                    continue
                if peak > 0:
                    peaks[count] = peak
                    count += 1
                above = peak = 0.0
        if peak > 0:
            peaks[count] = peak
            count += 1
    return count
