"""A detector at work on its signal, and the size of the changes that it detects.

In: values of one signal, in the order of events. Out: changes, each with the means before and
after, the standard error of their difference, and its kind. A detector is silent during a quiet
period. Several detectors make a drift in `niwaki.stream.drift.monitor`, not here.
"""

from typing import Any, NamedTuple

import numpy as np

from niwaki.stream.drift.detectors import Detector, DetectorConfig
from niwaki.stream.drift.running_sums import MeansAround, RunningSums

_LEAST_EVENTS = 64  # a change is placed no nearer, since a few outliers are none
_ABRUPT_EVENTS = 1_000


class Change(NamedTuple):
    """A change of a signal's mean that a detector noticed."""

    means: MeansAround
    """Mean from the last reset to the change, and since the change, which is placed where the means
    differ most."""
    events: int
    """Events since the change."""
    kind: str
    """abrupt or gradual."""
    rose: bool


class MeasuredDetector:
    """A detector with the parameters of its configuration, and the sums that give the size of a
    change."""

    def __init__(self, config: DetectorConfig, quiet_events: int):
        """`quiet_events`: number of events at the start that are not read."""
        self.config = config
        self.quiet_left_events = quiet_events
        self.watched_events = 0
        """Events in which the detector could notice a change."""
        self.alarms = 0
        """Drifts in which the detector had a part."""
        self._sums = RunningSums()
        self._detector = self._fresh_detector()

    def reset(self) -> None:
        """Begin anew, with the sensitivity of before."""
        self._detector = self._fresh_detector()
        self._sums.clear()
        self._sums.clear_spans()

    @property
    def watching(self) -> bool:
        """True if the detector can notice a change now."""
        return not self.quiet_left_events

    def settle(self) -> int | None:
        """Complete what is due before the next value is read.

        Returns the number of values that may be read until `settle` is due again; None for any.
        """
        return self.quiet_left_events or None

    def wait(self, events: int) -> None:
        """Let events pass unread."""
        self.quiet_left_events = max(self.quiet_left_events - events, 0)

    def read(self, values_B: np.ndarray) -> tuple[int, Change | None]:
        """Read values (B,), at most as many as `settle` allows, to the first change that counts.

        Returns the number of values that were read, and the change that the last one completed.
        """
        if self.quiet_left_events:
            self.wait(len(values_B))
            return len(values_B), None
        return self._read(np.ascontiguousarray(values_B, np.float64))

    def achieved(self) -> dict[str, Any]:
        """The detector's name, its false-alarm target and its counts, for a report; `parameters`
        are those found by calibration."""
        return {
            "detector": self.config.detector,
            "signal": self.config.signal,
            "expected_events_between_false_alarms": None,
            "watched_events": self.watched_events,
            "drifts": self.alarms,
            "parameters": {},
        }

    def state(self) -> dict[str, Any]:
        """Everything but the quiet period, as plain data, for a snapshot."""
        return {
            "detector": self._detector.state(),
            "sums": self._sums.state(),
            "watched_events": self.watched_events,
            "alarms": self.alarms,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.reset()
        self._detector.restore(state["detector"])
        self._sums.restore(state["sums"])
        self.watched_events = state["watched_events"]
        self.alarms = state["alarms"]

    def _fresh_detector(self) -> Detector:
        return self.config.build()

    def _read(self, values_B: np.ndarray) -> tuple[int, Change | None]:
        """`read` outside the quiet period; contiguous float64 values."""
        start = 0
        while start < len(values_B):
            found = self._detector.read(values_B, start)
            stop = len(values_B) if found is None else found + 1
            self._sums.add(values_B[start:stop])
            self._take_in(values_B[start:stop])
            if found is not None:
                change = self._measure()
                self._sums.clear()  # as River's detectors do after a change
                if self.config.counts in ("up" if change.rose else "down", "both"):
                    return stop, change
            start = stop
        return start, None

    def _take_in(self, values_B: np.ndarray) -> None:
        """Called with the values that the detector has just read; for subclasses."""

    def _measure(self) -> Change:
        """The change just detected, placed where the means before and after differ most."""
        events = self._sums.events
        total = self._sums.total
        recent = self._sums.last()
        least = min(_LEAST_EVENTS, max(events // 2, 1))
        lengths = np.arange(least, max(min(len(recent), events - least), least) + 1)
        totals = np.cumsum(recent[::-1])[lengths - 1]
        rests = np.maximum(events - lengths, 1)
        # in units of the signal's spread
        rise = (totals / lengths - (total - totals) / rests) * np.sqrt(lengths * rests)
        rose = self._detector.rose(events, total)
        if rose is None:
            rose = bool(rise.max() > -rise.min())
        since = min(int(lengths[np.argmax(rise if rose else -rise)]), len(recent))
        kind = "abrupt" if since <= _ABRUPT_EVENTS else "gradual"
        return Change(self._sums.around(since), since, kind, rose)


class Reading:
    """One detector's way through a batch."""

    def __init__(self, detector: MeasuredDetector, values_B: np.ndarray):
        self.detector = detector
        self.position = 0
        """Index of the next value to be read."""
        self.change: Change | None = None
        """The change that the value before it completed."""
        self.watched_B = np.zeros(len(values_B), bool)
        """True for events in which the detector could notice a change."""
        self._values_B = values_B

    def read_to(self, stop: int) -> None:
        """Read on, to the next change that counts or up to index `stop`."""
        while self.position < stop and self.change is None:
            left_events = self.detector.settle()
            last = min(self.position + left_events, stop) if left_events else stop
            watching = self.detector.watching
            read_events, self.change = self.detector.read(self._values_B[self.position : last])
            if watching:
                self.watched_B[self.position : self.position + read_events] = True
            self.position += read_events
