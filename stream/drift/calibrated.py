"""One detector at work: it reads its signal event by event, is set to the stream's noise, and
measures what it notices.

In: values of one signal, in order. Out: changes, each with its size, how far that can be trusted,
and whether it came at once. The first `calibration_events` that it reads, and those after each
reset, are the calm stretch that its sensitivity follows from; before the first of them is over it
notices nothing. After a reset the first 8,192 events say what mean and spread are now: compared
with a mean of fewer, noise would look like drift. Fluctuations that last for thousands of events
can't be told from one stretch, and are measured as long as the detector lives.
"""

import logging
import math
from statistics import median_low
from typing import Any, NamedTuple

import numpy as np

from niwaki.stream.drift.calibration import SLACK, cusum_threshold
from niwaki.stream.drift.detectors import DetectorConfig, begin_with, next_change
from niwaki.stream.drift.river_state import freeze, thaw
from niwaki.stream.drift.running_sums import RECENT_EVENTS, SPANS, RunningSums

log = logging.getLogger("niwaki")

STATE_VERSION = 2
"""Of what `CalibratedDetector.state` tells."""
_LEAST_EVENTS = 64  # how far back a change has begun at least: a few outliers are none
_ABRUPT_EVENTS = 1_000
_BASE_EVENTS = (
    8_192  # that mean and spread are taken of before a calibrated detector compares with them
)
_KEPT_HEIGHTS = 5  # calibrations that the present threshold is a median of
_BEFOREHAND, _GREATEST = (
    30,
    12.0,
)  # comparisons that showed nothing, and how much one of them may show
_COMPARED_HALF_LIFE_EVENTS = 1_000_000.0


class Change(NamedTuple):
    """What a detector noticed."""

    before: float
    """Mean from the last reset to the change."""
    after: float
    """Mean since the change, which is placed where the means differ most."""
    error: float
    """Standard error of their difference."""
    events: int
    """Events since the change."""
    kind: str
    """abrupt or gradual."""
    rose: bool


class CalibratedDetector:
    """A detector, and the sums that say by how much its signal has changed."""

    def __init__(
        self,
        config: DetectorConfig,
        expected_events: int,
        calibration_events: int,
        quiet_events: int,
    ):
        """`expected_events`: between false alarms, to calibrate to; 0: not calibrated.
        `quiet_events`: that it does not read at first."""
        self.config = config
        self.name, self.signal = (config.detector, config.signal), config.signal
        self.levels: dict[str, float] = {}
        """The parameters found by calibration."""
        self.quiet_left_events = quiet_events
        self.watched_events = 0
        """Those in which it could notice something."""
        self.alarms = 0
        """Drifts that it had a part in."""
        self.expected_events = expected_events if config.calibrated else 0
        self._calibration_events = calibration_events if self.expected_events else 0
        self._heights: list[float] = []
        self._scale = 0.0  # standard deviation that the detector is set for
        self._tally = RunningSums()
        self._compared_4 = np.zeros(
            4
        )  # of spans, of all of them together: sum of squares, number; they fade
        self.reset()

    def reset(self) -> None:
        """Begin anew, as sensitive as before."""
        self._detector = self.config.build(self.levels)
        self._calm: list[np.ndarray] = []
        self._calm_left_events = self._calibration_events
        self._base_left_events = _BASE_EVENTS if self.levels else 0
        self._before = self._comparison = math.nan
        self._unsettled_in_events = 0
        self._tally.clear()
        self._tally.clear_spans()

    @property
    def watching(self) -> bool:
        """Whether it can notice anything yet."""
        calibrated = not self.expected_events or (bool(self.levels) and not self._base_left_events)
        return calibrated and not self.quiet_left_events

    def settle(self) -> int | None:
        """Calibrate if a stretch is complete. How many events it may read until there is something
        to settle again; None: any."""
        if self._unsettled_in_events > 0:
            return self._unsettled_in_events
        if self._calm and not self._calm_left_events:
            self._calibrate(np.concatenate(self._calm).astype(np.float64))
            self._calm = []
        if self.quiet_left_events:
            return self.quiet_left_events
        if not self.expected_events:
            return None
        left_events = self._tally.span_left_events
        if not left_events:
            self._compare()
            left_events = RECENT_EVENTS
        for left in (self._calm_left_events, self._base_left_events):
            if left:
                left_events = min(left, left_events)
        self._unsettled_in_events = left_events
        return left_events

    def wait(self, events: int) -> None:
        """Let events pass unread."""
        self.quiet_left_events = max(self.quiet_left_events - events, 0)

    def read(self, values_B: np.ndarray) -> list[tuple[int, Change]]:
        """Read on, at most as many as `settle` allows, and return the changes that count, each with
        its index."""
        if self.quiet_left_events:
            self.wait(len(values_B))
            return []
        start, size, changes, values_B = (
            0,
            len(values_B),
            [],
            np.ascontiguousarray(values_B, np.float64),
        )
        self._unsettled_in_events -= size
        if not self.watching:
            self._tally.add(values_B)
            self._learn(values_B)
            return []
        while start < size:
            at = next_change(self._detector, self._tally, values_B, start)
            stop = size if at is None else at + 1
            if self._calm_left_events:
                self._learn(values_B[start:stop])
            if at is not None:
                change = self._measure()
                self._tally.clear()  # as River's detectors do after a change
                if self.config.counts in ("up" if change.rose else "down", "both"):
                    changes.append((at, change))
            start = stop
        return changes

    def achieved(self) -> dict[str, Any]:
        """What was asked of it and what came of it; `parameters` are those found by calibration."""
        return {
            "detector": self.config.detector,
            "signal": self.config.signal,
            "expected_events_between_false_alarms": self.expected_events or None,
            "watched_events": self.watched_events,
            "drifts": self.alarms,
            "parameters": self.levels,
        }

    def state(self) -> dict[str, Any]:
        """Everything, for a snapshot."""
        return {
            "detector": freeze(self._detector),
            "tally": self._tally.state(),
            "compared": [self._before, self._comparison, self._compared_4.tolist()],
            "calm": [
                b"".join(part.tobytes() for part in self._calm),
                self._calm_left_events,
                self._base_left_events,
            ],
            "levels": self.levels,
            "heights": self._heights,
            "scale": self._scale,
            "counts": [self.watched_events, self.alarms],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo `state`."""
        self.levels, self._heights, self._scale = state["levels"], state["heights"], state["scale"]
        self.watched_events, self.alarms = state["counts"]
        self.reset()
        thaw(self._detector, state["detector"])
        self._tally.restore(state["tally"])
        self._before, self._comparison, compared = state["compared"]
        self._compared_4 = np.array(compared)
        calm, self._calm_left_events, self._base_left_events = state["calm"]
        self._calm = [np.frombuffer(calm, np.float32)] if calm else []

    def _learn(self, values_B: np.ndarray) -> None:
        """Take in values of a calm stretch, or of those that say what mean and spread are now."""
        events = len(values_B)
        if self._calm_left_events:
            self._calm.append(values_B.astype(np.float32))
            self._calm_left_events -= events
        if self._base_left_events:
            begin_with(self._detector, values_B)
            self._base_left_events -= events
            if not self._base_left_events:
                self._set(self._tally.deviation)

    def _compare(self) -> None:
        """See how long fluctuations last: how much more sums over many events vary than the
        calibration, which knows those over few, expects. Neighbours are compared, so a slow trend
        is no fluctuation (von Neumann, 1941)."""
        spans_S, fade = self._tally.spans(), 0.5 ** (RECENT_EVENTS / _COMPARED_HALF_LIFE_EVENTS)
        squares, spans, excess, compared = (fade * self._compared_4).tolist()
        if not math.isnan(
            self._comparison
        ):  # has waited: had it been a drift, it would have been noticed since
            excess, compared = excess + self._comparison, compared + 1
        squares, spans = squares + float((np.diff(spans_S) ** 2).sum()), spans + SPANS - 1
        total = float(spans_S.sum())
        if squares and not math.isnan(self._before):
            self._comparison = min(
                (total - self._before) ** 2 / (SPANS * squares / spans), _GREATEST
            )
        self._compared_4[:] = squares, spans, excess, compared
        self._before = total
        self._tally.clear_spans()
        self._set(self._scale)

    def _calibrate(self, calm_E: np.ndarray) -> None:
        """Be as sensitive as the stretch that has just been read allows. Of later stretches the
        median counts, the lower one of two: a change within one of them must not make it deaf."""
        deviation = float(calm_E.std())
        if not deviation:
            return  # nothing to be learned of a constant; the next stretch may say more
        slack = float(self.config.parameters.get("delta", SLACK * deviation))
        threshold = cusum_threshold(calm_E, slack, self.config.counts, self.expected_events)
        self._heights = [*self._heights[1 - _KEPT_HEIGHTS :], threshold / deviation]
        first = not self.levels
        self._set(deviation)
        if first:
            self._detector = self.config.build(self.levels)
            begin_with(
                self._detector, calm_E[len(calm_E) // 2 :]
            )  # the earlier half is still learning
        log.info(
            "%s on %s calibrated: %s",
            *self.name,
            ", ".join(f"{n} {v:.3g}" for n, v in self.levels.items()),
        )

    def _set(self, deviation: float) -> None:
        """Set the detector for a signal of this standard deviation; it goes on from where it is."""
        if not deviation:
            return
        self._scale = deviation
        slack = float(self.config.parameters.get("delta", SLACK * deviation))
        _, _, excess, compared = self._compared_4.tolist()
        lasting = max((_BEFOREHAND + excess) / (_BEFOREHAND + compared), 1.0)
        self.levels = {
            "delta": slack,
            "threshold": float(median_low(self._heights)) * deviation * lasting,
        }
        vars(self._detector).update(self.levels)

    def _measure(self) -> Change:
        """The change just noticed, cut where the means differ most."""
        events, total, recent = self._tally.events, self._tally.total, self._tally.last()
        least = min(_LEAST_EVENTS, max(events // 2, 1))
        lengths = np.arange(least, max(min(len(recent), events - least), least) + 1)
        totals = np.cumsum(recent[::-1])[lengths - 1]
        rests = np.maximum(events - lengths, 1)
        # in units of the signal's spread
        rise = (totals / lengths - (total - totals) / rests) * np.sqrt(lengths * rests)
        if self.config.detector == "ADWIN":  # has compared what it dropped with what it kept
            width, kept = self._detector.width, self._detector.total
            rose = kept * (events - width) > (total - kept) * width
        else:
            mode = getattr(self._detector, "mode", "both")
            rose = mode == "up" or (mode == "both" and bool(rise.max() > -rise.min()))
        since = min(int(lengths[np.argmax(rise if rose else -rise)]), len(recent))
        return Change(
            *self._tally.around(since),
            since,
            "abrupt" if since <= _ABRUPT_EVENTS else "gradual",
            rose,
        )
