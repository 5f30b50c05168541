"""A Page-Hinkley detector whose sensitivity follows the stream's own noise.

In: values of one signal, in order. Out: changes, as of any measured detector. The first
`calibration_events` that the detector reads, and those after each reset, are a calm stretch from
which the threshold is computed; before the first stretch is over the detector notices nothing.
After a reset the first 8,192 events give mean and spread of now: noise would look like drift
against a mean of fewer. Fluctuations that last for thousands of events do not show in one stretch,
and are measured as long as the detector lives.
"""

import logging
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any, NamedTuple

import numpy as np

from niwaki.stream.drift.calibration import SLACK, cusum_threshold
from niwaki.stream.drift.detectors import DetectorConfig
from niwaki.stream.drift.measured import Change, MeasuredDetector
from niwaki.stream.drift.page_hinkley import PageHinkley
from niwaki.stream.drift.running_sums import RECENT_EVENTS, SPANS

log = logging.getLogger("niwaki")

_BASE_EVENTS = 8_192  # from which mean and spread are taken after a reset
_KEPT_HEIGHTS = 5  # calibrations of which the threshold is the median
_PRIOR_COMPARISONS = 30  # comparisons assumed beforehand, in which fluctuations were short
_GREATEST_EXCESS = 12.0  # that one comparison may contribute
_COMPARED_HALF_LIFE_EVENTS = 1_000_000.0


class _Fluctuations(NamedTuple):
    """Sums over comparisons of neighbouring stretches; they fade."""

    squares: float = 0.0
    """Squared differences of neighbouring spans' sums."""
    spans: float = 0.0
    """Number of these differences."""
    excess: float = 0.0
    """Squared differences of neighbouring stretches' sums, each divided by its expectation from
    `squares`."""
    compared: float = 0.0
    """Number of these ratios."""


class _Parameters(NamedTuple):
    """Parameters of Page-Hinkley found by calibration, in units of the signal."""

    delta: float
    threshold: float


@dataclass
class _SinceReset:
    """Progress since the last reset; a reset begins it anew."""

    calm_left_events: int
    """Events missing in the calm stretch."""
    base_left_events: int
    """Events missing in the stretch that gives mean and spread of now."""
    calm: list[np.ndarray] = field(default_factory=list)
    """Pieces of the calm stretch, float32."""
    unsettled_in_events: int = 0
    """Events that may be read before `settle` is due."""
    previous_total: float | None = None
    """Sum of the last stretch of spans, to compare the next one with."""
    comparison: float | None = None
    """Ratio found by the last comparison, which does not count yet."""


class CalibratedDetector(MeasuredDetector):
    """A Page-Hinkley detector that is calibrated to a rate of false alarms on the stream itself."""

    _detector: PageHinkley

    def __init__(
        self,
        config: DetectorConfig,
        quiet_events: int,
        expected_events: int,
        calibration_events: int,
    ):
        """`quiet_events`: number of events at the start that are not read. `expected_events`:
        events between false alarms, > 0. `calibration_events`: length of the calm stretch, > 0."""
        self._expected_events = expected_events
        self._calibration_events = calibration_events
        self._parameters: _Parameters | None = None
        self._heights: list[float] = []  # thresholds of the last calibrations, in deviations
        self._scale = 0.0  # standard deviation of the signal that the parameters are for
        self._fluctuations = _Fluctuations()
        self._since_reset = _SinceReset(calibration_events, 0)
        super().__init__(config, quiet_events)

    def reset(self) -> None:
        """Begin anew, with the sensitivity of before."""
        self._since_reset = _SinceReset(
            self._calibration_events, 0 if self._parameters is None else _BASE_EVENTS
        )
        super().reset()

    @property
    def watching(self) -> bool:
        """True if the detector is calibrated, knows the mean of now, and is past its quiet
        period."""
        calibrated = self._parameters is not None and not self._since_reset.base_left_events
        return calibrated and super().watching

    def settle(self) -> int | None:
        """Calibrate or compare if a stretch is complete.

        Returns the number of values that may be read until `settle` is due again.
        """
        progress = self._since_reset
        if progress.unsettled_in_events > 0:
            return progress.unsettled_in_events
        if progress.calm and not progress.calm_left_events:
            self._calibrate(np.concatenate(progress.calm).astype(np.float64))
            progress.calm = []
        if self.quiet_left_events:
            return self.quiet_left_events
        left_events = self._sums.span_left_events
        if not left_events:
            self._compare()
            left_events = RECENT_EVENTS
        for left in (progress.calm_left_events, progress.base_left_events):
            if left:
                left_events = min(left, left_events)
        progress.unsettled_in_events = left_events
        return left_events

    def achieved(self) -> dict[str, Any]:
        """The figures of any measured detector, with the target and the parameters."""
        return super().achieved() | {
            "expected_events_between_false_alarms": self._expected_events,
            "parameters": self._parameters._asdict() if self._parameters else {},
        }

    def state(self) -> dict[str, Any]:
        """Everything but the quiet period, as plain data, for a snapshot."""
        return super().state() | {
            "parameters": self._parameters,
            "heights": self._heights,
            "scale": self._scale,
            "fluctuations": self._fluctuations,
            "previous_total": self._since_reset.previous_total,
            "comparison": self._since_reset.comparison,
            "calm": b"".join(part.tobytes() for part in self._since_reset.calm),
            "calm_left_events": self._since_reset.calm_left_events,
            "base_left_events": self._since_reset.base_left_events,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._parameters = _Parameters(*state["parameters"]) if state["parameters"] else None
        self._heights = list(state["heights"])
        self._scale = state["scale"]
        self._fluctuations = _Fluctuations(*state["fluctuations"])
        super().restore(state)
        self._since_reset = _SinceReset(
            calm_left_events=state["calm_left_events"],
            base_left_events=state["base_left_events"],
            calm=[np.frombuffer(state["calm"], np.float32)] if state["calm"] else [],
            previous_total=state["previous_total"],
            comparison=state["comparison"],
        )

    def _fresh_detector(self) -> PageHinkley:
        parameters = self._parameters
        return self.config.build_page_hinkley(parameters._asdict() if parameters else None)

    def _read(self, values_B: np.ndarray) -> tuple[int, Change | None]:
        read_events = len(values_B)
        change = None
        if self.watching:
            read_events, change = super()._read(values_B)
        else:
            self._sums.add(values_B)
            self._take_in(values_B)
        self._since_reset.unsettled_in_events -= read_events
        return read_events, change

    def _take_in(self, values_B: np.ndarray) -> None:
        """Add values to the calm stretch, and to the mean and spread of now, while these are
        incomplete."""
        if self._since_reset.calm_left_events:
            self._since_reset.calm.append(values_B.astype(np.float32))
            self._since_reset.calm_left_events -= len(values_B)
        if self._since_reset.base_left_events:
            self._detector.begin_with(values_B)
            self._since_reset.base_left_events -= len(values_B)
            if not self._since_reset.base_left_events and self._sums.deviation:
                self._set_parameters(self._sums.deviation)

    def _compare(self) -> None:
        """Measure how long fluctuations last: how much more sums over many events vary than the
        calibration, which knows those over few, expects. Neighbours are compared, so a slow trend
        is no fluctuation (von Neumann, 1941)."""
        spans_S = self._sums.spans()
        fade = 0.5 ** (RECENT_EVENTS / _COMPARED_HALF_LIFE_EVENTS)
        faded = _Fluctuations(*(fade * part for part in self._fluctuations))
        squares = faded.squares + float((np.diff(spans_S) ** 2).sum())
        spans = faded.spans + SPANS - 1
        excess = faded.excess
        compared = faded.compared
        # The comparison before this one counts only now: a drift would have been noticed since.
        if self._since_reset.comparison is not None:
            excess += self._since_reset.comparison
            compared += 1
        total = float(spans_S.sum())
        if squares and self._since_reset.previous_total is not None:
            ratio = (total - self._since_reset.previous_total) ** 2 / (SPANS * squares / spans)
            self._since_reset.comparison = min(ratio, _GREATEST_EXCESS)
        self._fluctuations = _Fluctuations(squares, spans, excess, compared)
        self._since_reset.previous_total = total
        self._sums.clear_spans()
        if self._scale:
            self._set_parameters(self._scale)

    def _calibrate(self, calm_E: np.ndarray) -> None:
        """Compute the threshold from the calm stretch that has just been read. The median of the
        last stretches counts, the lower one of two: a change within one of them must not make the
        detector deaf."""
        deviation = float(calm_E.std())
        if not deviation:
            return  # a constant has no noise to measure; the next stretch may have some
        threshold = cusum_threshold(
            calm_E, self._slack(deviation), self.config.counts, self._expected_events
        )
        self._heights = [*self._heights[1 - _KEPT_HEIGHTS :], threshold / deviation]
        first = self._parameters is None
        parameters = self._set_parameters(deviation)
        if first:
            self._detector = self._fresh_detector()
            # The model is still learning in the earlier half.
            self._detector.begin_with(calm_E[len(calm_E) // 2 :])
        log.info(
            "%s on %s calibrated: delta %.3g, threshold %.3g",
            self.config.detector,
            self.config.signal,
            *parameters,
        )

    def _slack(self, deviation: float) -> float:
        """The parameter `delta` for a signal of this standard deviation."""
        delta = self.config.delta
        return SLACK * deviation if delta is None else delta

    def _set_parameters(self, deviation: float) -> _Parameters:
        """Set the detector for a signal of this standard deviation, > 0; its sums go on."""
        self._scale = deviation
        excess = _PRIOR_COMPARISONS + self._fluctuations.excess
        lasting = max(excess / (_PRIOR_COMPARISONS + self._fluctuations.compared), 1.0)
        height = float(median_low(self._heights))
        parameters = _Parameters(self._slack(deviation), height * deviation * lasting)
        self._parameters = parameters
        self._detector.set_thresholds(parameters.delta, parameters.threshold)
        return parameters
