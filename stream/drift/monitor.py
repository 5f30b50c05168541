"""Drift: River's detectors, each on a named signal of the learner, one value for each event.

After learning in the walk. In: signals of a batch (`stream.drift.signals`). Out: `Drift`s, with the
event at which they were noticed and their size. Detectors see single events, never means of
batches: on means ADWIN notices 24 times later. After a drift, and whenever told (`reset`), all
detectors begin anew once a quiet period is over. It never decides what to do.

The state for a snapshot is exact, at most some hundred kilobytes a detector however long the
stream, and nothing in it is executable. It holds for one version of River and one configuration of
a detector.
"""

import logging
import math
from collections.abc import Mapping
from importlib.metadata import version
from itertools import groupby
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from niwaki.stream.drift.calibrated import STATE_VERSION, CalibratedDetector, Change
from niwaki.stream.drift.detectors import DetectorConfig
from niwaki.stream.drift.running_sums import RunningSums
from niwaki.stream.drift.signals import OF_THE_NETWORK
from niwaki.stream.errors import ConfigError

log = logging.getLogger("niwaki")


class DriftConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is watched, and when not (the `[drift]` section)."""

    detectors: tuple[DetectorConfig, ...] = (
        DetectorConfig(signal="staleness"),
        DetectorConfig(signal="recent_staleness"),
        DetectorConfig(signal="adjusted_label"),
    )
    """Any number of detectors. The first of the default ones sees when what was learned long ago no
    longer holds, even in part; the second when what was learned lately does not, as when an old
    concept comes back; the third small steps of the click rate, which the model learns away before
    they show elsewhere."""
    topic: str = ""
    """Kafka topic to which each drift is written, one JSON object with the fields of `Drift`; "":
    none."""
    agree: Literal["any", "all"] | int = "any"
    """How many of them must notice for a drift: any one, all, or at least so many, 1 .. the number
    of detectors."""
    within_events: int = 2_000
    """Within so many events of each other, >= 1."""
    quiet_events: int = 5_000
    """Events that no detector reads at the start, after a drift and after each change of the
    network; >= 0."""
    expected_events_between_false_alarms: int = 2_000_000
    """PageHinkley is calibrated to this on the stream itself, >= 1,000; several of them share it,
    so it is the run time of all together. 0: not calibrated. Other detectors have parameters of
    their own for it, such as ADWIN's `delta`, which bursts of alike events make fire far too
    often."""
    calibration_events: int = 40_000
    """Events of the calm stretch that it is calibrated on, the first that it reads, and again those
    after each change of the network; >= 1,000. Before the first such stretch is over, it notices
    nothing."""

    def __post_init__(self) -> None:
        expected, detectors = self.expected_events_between_false_alarms, len(self.detectors)
        agreeable = isinstance(self.agree, str) or 1 <= self.agree <= detectors
        for name, holds, rule in (
            ("quiet_events", self.quiet_events >= 0, ">= 0"),
            ("within_events", self.within_events >= 1, ">= 1"),
            ("calibration_events", self.calibration_events >= 1_000, ">= 1,000"),
            (
                "expected_events_between_false_alarms",
                expected == 0 or expected >= 1_000,
                "0, or >= 1,000",
            ),
            ("agree", agreeable, f"any, all, or 1 to {detectors}, the number of detectors"),
        ):
            if not holds:
                raise ConfigError(f"drift.{name}", f"must be {rule}", getattr(self, name))

    @property
    def votes(self) -> int:
        """How many detectors must notice."""
        if isinstance(self.agree, int):
            return self.agree
        return len(self.detectors) if self.agree == "all" else 1

    def names(self) -> list[tuple[str, str]]:
        """Detector and signal of each, as its drifts say them."""
        return [(one.detector, one.signal) for one in self.detectors]


class Drift(NamedTuple):
    """A change that a detector noticed."""

    event: int
    """Index in the stream of the event at which it was noticed."""
    signal: str
    detector: str
    before: float
    """Mean of the signal from the detector's last reset to the change."""
    after: float
    """Mean of the signal since the change, which is placed where the means differ most, 4,096
    events back at most."""
    error: float
    """Standard error of `after - before`. The change is placed where it looks largest, so the
    difference is rather too large than too small."""
    began: int
    """Index of the event at which the change is placed."""
    kind: str
    """abrupt where the change showed within 1,000 events, else gradual. A small step takes as long
    to show as a slide, and is called so too."""
    time_s: float
    """Event time at which it was noticed, seconds since the epoch."""
    loss_before: float | None = None
    """Mean log loss from the last reset to the change, nats. None: there was none."""
    loss_after: float | None = None
    """Mean log loss since the change."""
    loss_error: float | None = None
    """Standard error of their difference."""


class DriftMonitor:
    """Feeds the signals of consecutive batches to all detectors. Where one batch ends makes no
    difference."""

    def __init__(self, config: DriftConfig):
        self.config = config
        calibrated = sum(one.calibrated for one in config.detectors)
        expected_events = (
            config.expected_events_between_false_alarms * calibrated
        )  # together they keep to it
        self._watches = [
            CalibratedDetector(one, expected_events, config.calibration_events, config.quiet_events)
            for one in config.detectors
        ]
        self._votes: dict[int, Drift] = {}
        self._losses = RunningSums()
        self._watched_events = self._drifts = 0

    def update(
        self,
        signals: Mapping[str, np.ndarray],
        first_event: int,
        times_s_B: np.ndarray,
        losses_B: np.ndarray | None = None,
    ) -> list[Drift]:
        """Read the signals, (B,) each, of the events from `first_event` on, and their times; new
        drifts in order. A detector whose signal is not among them waits. `losses_B`: log losses, by
        which drifts are sized.

        Where several detectors must agree, each has a `Drift` of its own, at the event where it
        noticed.
        """
        for signal, values_B in signals.items():
            if not math.isfinite(np.dot(values_B, values_B)):
                raise ValueError(
                    f"signal {signal} is not finite in the batch from event {first_event} on"
                )
        reading = [(place, one) for place, one in enumerate(self._watches) if one.signal in signals]
        for watch in self._watches:
            if watch.signal not in signals:
                watch.wait(len(times_s_B))
        drifts: list[Drift] = []
        start, size = 0, len(times_s_B)
        while reading and start < size:
            stop = size
            for _, watch in reading:
                room = watch.settle()
                if room and start + room < stop:
                    stop = start + room
            watching = [watch for _, watch in reading if watch.watching]
            noticed = [
                (start + index, place, change)
                for place, watch in reading
                for index, change in watch.read(signals[watch.signal][start:stop])
            ]
            at = self._agreed(noticed, first_event, times_s_B) if noticed else None
            stop = stop if at is None else at + 1
            self._watched_events += (stop - start) * bool(watching)
            if losses_B is not None:
                self._losses.add(losses_B[start:stop].astype(np.float64))
            for watch in watching:
                watch.watched_events += stop - start
            if at is not None:
                votes = sorted(self._votes.values(), key=lambda vote: vote.event)
                drifts += [self._sized(vote, first_event + stop) for vote in votes]
                self._drifts += 1
                for place in self._votes:
                    self._watches[place].alarms += 1
                self.reset()  # what was read or noticed beyond that event lies in the quiet period
                for watch in self._watches:
                    if watch.signal not in signals:
                        watch.wait(size - stop)
            start = stop
        if losses_B is not None and start < size:
            self._losses.add(losses_B.astype(np.float64))  # no detector reads yet
        return drifts

    def reset(self, hold_events: int | None = None, *, exchanged: bool = False) -> None:
        """Forget everything but the noise of the stream, and read nothing for `hold_events` (None:
        `quiet_events`). `exchanged`: another network predicts from now on, whose loss is another;
        what does not depend on it goes on."""
        self._losses.clear()
        for place, watch in enumerate(self._watches):
            if exchanged and watch.config.signal not in OF_THE_NETWORK:
                continue
            self._votes.pop(place, None)
            watch.quiet_left_events = (
                self.config.quiet_events if hold_events is None else hold_events
            )
            watch.reset()

    def achieved(self) -> dict[str, Any]:
        """What was asked for and what came of it: expected events between false alarms, the events
        in which at least one detector watched, the drifts noticed in them (false ones and true
        ones), and the same of each detector with what calibration has set it to."""
        return {
            "expected_events_between_false_alarms": self.config.expected_events_between_false_alarms,
            "watched_events": self._watched_events,
            "drifts": self._drifts,
            "detectors": [watch.achieved() for watch in self._watches],
        }

    def state(self) -> dict[str, np.ndarray]:
        """Everything that later drifts depend on, as one array of bytes."""
        watches = [
            [_key(watch.config), watch.quiet_left_events, watch.state()] for watch in self._watches
        ]
        votes = [[place, list(vote)] for place, vote in self._votes.items()]
        state = {"river": _form(), "watches": watches, "votes": votes}
        state |= {"counts": [self._watched_events, self._drifts], "losses": self._losses.state()}
        return {"detectors": np.frombuffer(msgspec.msgpack.encode(state), np.uint8).copy()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on exactly where `state` was taken."""
        state = msgspec.msgpack.decode(arrays["detectors"].tobytes())
        self._watched_events, self._drifts = state["counts"]
        kept = {key: one for key, *one in state["watches"]}
        for watch in self._watches:
            watch.reset()
            watch.quiet_left_events, detector = kept.get(
                _key(watch.config), (self.config.quiet_events, None)
            )
            if detector and state["river"] == _form():
                watch.restore(detector)
            else:
                log.warning(
                    "the snapshot has no %s on %s for this River: it begins anew", *watch.name
                )
        if state["river"] == _form():
            self._losses.restore(state["losses"])
        if [key for key, *_ in state["watches"]] == [_key(watch.config) for watch in self._watches]:
            self._votes = {place: Drift(*vote) for place, vote in state["votes"]}

    def _sized(self, drift: Drift, events: int) -> Drift:
        """The drift that has just been agreed on, with the losses before and after; so many
        `events` are read."""
        since_events = events - drift.began
        if self._losses.events <= since_events:
            return drift
        before, after, error = self._losses.around(since_events)
        return drift._replace(loss_before=before, loss_after=after, loss_error=error)

    def _agreed(
        self, noticed: list[tuple[int, int, Change]], first_event: int, times_s_B: np.ndarray
    ) -> int | None:
        """Where in the batch enough detectors had noticed; `_votes` then holds what they said."""
        for index, together in groupby(sorted(noticed), key=lambda one: one[0]):
            event, time_s = first_event + index, float(times_s_B[index])
            for _, place, change in together:
                detector, signal = self._watches[place].name
                size = (change.before, change.after, change.error)
                began = event + 1 - change.events
                self._votes[place] = Drift(
                    event, signal, detector, *size, began, change.kind, time_s
                )
            oldest = event - self.config.within_events
            self._votes = {
                place: vote for place, vote in self._votes.items() if vote.event >= oldest
            }
            if len(self._votes) >= self.config.votes:
                return index
        return None


def _form() -> str:
    """What a detector's state depends on, beside its configuration: River's version, and that of
    `CalibratedDetector.state`."""
    return f"{version('river')}/{STATE_VERSION}"


def _key(config: DetectorConfig) -> str:
    return msgspec.json.encode(config, order="sorted").decode()
