"""The drift monitor: all detectors, and the agreement that makes a drift of their changes.

In: signals of consecutive batches, after the model learned from them. Out: `Drift`s, each with the
event at which it was noticed and its size. Detectors see single events, never means of batches: on
means ADWIN notices 24 times later. After a drift the detectors that noticed it begin anew once a
quiet period is over, and the others go on; what they notice within that period is a sign of the
same drift. (A trainer resets all of them where more than the click rate has changed.) The monitor
never decides what follows from a drift.

The state for a snapshot is exact and nothing in it is executable; it has at most some hundred
kilobytes a detector, however long the stream. It holds for one version of River and one
configuration of a detector.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from niwaki.pruning.errors import check_rules
from niwaki.stream.drift.calibrated import CalibratedDetector
from niwaki.stream.drift.detectors import DetectorConfig
from niwaki.stream.drift.measured import MeasuredDetector, Reading
from niwaki.stream.drift.running_sums import RunningSums
from niwaki.stream.drift.signals import signal_named

log = logging.getLogger("niwaki")

_STATE_VERSION = 2  # of the detectors' state


class DriftConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The detectors, their agreement and their quiet periods (the `[drift]` section)."""

    detectors: tuple[DetectorConfig, ...] = (
        DetectorConfig(signal="staleness"),
        DetectorConfig(signal="recent_staleness"),
        DetectorConfig(signal="adjusted_label"),
    )
    """Any number of detectors. The first default one notices that knowledge from long ago no longer
    holds, even in part; the second that recent knowledge does not, as when an old concept comes
    back; the third notices small steps of the click rate, which the model learns before they show
    elsewhere."""
    topic: str = ""
    """Kafka topic to which each drift is written, one JSON object with the fields of `Drift`; "":
    none."""
    agree: Literal["any", "all"] | int = "any"
    """Detectors that must notice a change for a drift: any one, all, or at least so many, 1 .. the
    number of detectors."""
    within_events: int = 2_000
    """Events within which they must notice, >= 1."""
    quiet_events: int = 5_000
    """Events that no detector reads at the start, after a drift and after each change of the
    network; >= 0."""
    expected_events_between_false_alarms: int = 2_000_000
    """Mean run length between false alarms to which PageHinkley is calibrated on the stream itself,
    >= 1,000; for all detectors of that class together. 0: not calibrated. Other detectors have
    parameters of their own, such as ADWIN's `delta`, with which bursts of alike events cause far
    more alarms."""
    calibration_events: int = 40_000
    """Length of the calm stretch that calibration reads, at the start and after each change of the
    network; >= 1,000. Before the first one is over, PageHinkley notices nothing."""
    answer_click_rate: bool = False
    """True: a step of the click rate alone is answered as any other drift. The experts repair such
    a step by themselves."""

    def __post_init__(self) -> None:
        expected = self.expected_events_between_false_alarms
        detectors = len(self.detectors)
        agreeable = isinstance(self.agree, str) or 1 <= self.agree <= detectors
        rules = {
            "quiet_events": (self.quiet_events >= 0, "must be >= 0"),
            "within_events": (self.within_events >= 1, "must be >= 1"),
            "calibration_events": (self.calibration_events >= 1_000, "must be >= 1,000"),
            "expected_events_between_false_alarms": (
                expected == 0 or expected >= 1_000,
                "must be 0, or >= 1,000",
            ),
            "agree": (agreeable, f"must be any, all, or 1 to {detectors}, the number of detectors"),
        }
        check_rules(self, rules)

    @property
    def votes(self) -> int:
        """Number of detectors that must notice a change."""
        if isinstance(self.agree, int):
            return self.agree
        return len(self.detectors) if self.agree == "all" else 1

    def names(self) -> list[tuple[str, str]]:
        """Detector and signal of each detector, as in its drifts."""
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
    sign_of: int = 0
    """Index of the event at which the drift was first noticed: `event`, or an earlier one that
    another detector noticed less than `quiet_events` before."""
    answered: bool = True
    """False for a step of the click rate alone and for a further sign of an answered drift, for
    which nothing is regrown, and where the policy never regrows."""


class DriftMonitor:
    """Feeds the signals of consecutive batches to all detectors. Where one batch ends makes no
    difference."""

    def __init__(self, config: DriftConfig):
        self.config = config
        self._detectors = [_detector(one, config) for one in config.detectors]
        self._votes: dict[int, Drift] = {}
        self._losses = RunningSums()
        self._watched_events = 0
        self._drifts = 0
        self._first: Drift | None = None
        """The first sign of the last drift."""

    def update(
        self,
        signals: Mapping[str, np.ndarray],
        first_event: int,
        times_s_B: np.ndarray,
        losses_B: np.ndarray | None = None,
        confirmed: Callable[[Drift], bool] | None = None,
    ) -> list[Drift]:
        """Read the next batch and return its drifts, in order.

        `signals`: values (B,) by name; a detector whose signal is missing waits. `first_event`:
        index in the stream of the batch's first event. `times_s_B`: event times, seconds.
        `losses_B`: log losses, from which a drift's losses are computed. `confirmed`: called with
        each change before it counts; where it returns False the detector takes its mean anew. Where
        several detectors must agree, each has a `Drift` of its own, at the event where it noticed.

        Raises `ValueError` for a signal that is not finite.
        """
        for signal, values_B in signals.items():
            if not math.isfinite(np.dot(values_B, values_B)):
                raise ValueError(
                    f"signal {signal} is not finite in the batch from event {first_event} on"
                )
        size = len(times_s_B)
        readings: dict[int, Reading] = {}
        for place, detector in enumerate(self._detectors):
            if detector.config.signal in signals:
                readings[place] = Reading(detector, signals[detector.config.signal])
            else:
                detector.wait(size)
        drifts: list[Drift] = []
        start = 0
        while (index := self._next_change(readings, size)) is not None:
            time_s = float(times_s_B[index])
            self._vote(readings, index, first_event + index, time_s, confirmed)
            if not self._votes or len(self._votes) < self.config.votes:
                continue
            if losses_B is not None:
                self._losses.add(losses_B[start : index + 1].astype(np.float64))
            start = index + 1
            drifts += self._new_drifts(first_event + start)
            for place in list(self._votes):  # the others go on: each notices in its own time
                self._reset_detector(place, self.config.quiet_events)
        if losses_B is not None:
            self._losses.add(losses_B[start:].astype(np.float64))
        watched_B = np.zeros(size, bool)
        for reading in readings.values():
            reading.detector.watched_events += int(reading.watched_B.sum())
            watched_B |= reading.watched_B
        self._watched_events += int(watched_B.sum())
        return drifts

    def reset(self, hold_events: int | None = None, *, network_replaced: bool = False) -> None:
        """Begin all detectors anew after `hold_events` events (None: `quiet_events`), which none of
        them reads; calibration is kept.

        `network_replaced`: another network predicts from now on, and its loss is another. Detectors
        whose signal does not depend on the network go on.
        """
        self._losses.clear()
        for place, detector in enumerate(self._detectors):
            if network_replaced and not signal_named(detector.config.signal).of_the_network:
                continue
            quiet_events = self.config.quiet_events if hold_events is None else hold_events
            self._reset_detector(place, quiet_events)

    def begin_anew(self, signals: Collection[str]) -> None:
        """Begin the detectors on `signals` anew, at once: their values come from another
        computation from now on."""
        for place, detector in enumerate(self._detectors):
            if detector.config.signal in signals:
                self._reset_detector(place, detector.quiet_left_events)

    def achieved(self) -> dict[str, Any]:
        """The false-alarm target and its outcome, for a report: events between false alarms asked
        for, events in which at least one detector watched, drifts noticed in them (false and true),
        and likewise for each detector, with its calibrated parameters."""
        expected_events = self.config.expected_events_between_false_alarms
        return {
            "expected_events_between_false_alarms": expected_events,
            "watched_events": self._watched_events,
            "drifts": self._drifts,
            "detectors": [detector.achieved() for detector in self._detectors],
        }

    def state(self) -> dict[str, np.ndarray]:
        """Everything that later drifts depend on, as one array of bytes."""
        state = {
            "river": _form(),
            "detectors": [
                {
                    "config": _key(detector.config),
                    "quiet_left_events": detector.quiet_left_events,
                    "state": detector.state(),
                }
                for detector in self._detectors
            ],
            "votes": [[place, list(vote)] for place, vote in self._votes.items()],
            "watched_events": self._watched_events,
            "drifts": self._drifts,
            "first": None if self._first is None else list(self._first),
            "losses": self._losses.state(),
        }
        return {"detectors": np.frombuffer(msgspec.msgpack.encode(state), np.uint8).copy()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on exactly where `state` was taken. A detector of another configuration or version of
        River begins anew, with a warning."""
        state = msgspec.msgpack.decode(arrays["detectors"].tobytes())
        self._watched_events = state["watched_events"]
        self._drifts = state["drifts"]
        readable = state["river"] == _form()
        kept = {one["config"]: one for one in state["detectors"]}
        for detector in self._detectors:
            detector.reset()
            one = kept.get(_key(detector.config))
            detector.quiet_left_events = (
                one["quiet_left_events"] if one else self.config.quiet_events
            )
            if one and readable:
                detector.restore(one["state"])
            else:
                log.warning(
                    "the snapshot has no %s on %s for this River: it begins anew",
                    detector.config.detector,
                    detector.config.signal,
                )
        if readable:
            self._losses.restore(state["losses"])
        self._first = Drift(*state["first"]) if state["first"] else None
        keys = [_key(detector.config) for detector in self._detectors]
        if [one["config"] for one in state["detectors"]] == keys:
            self._votes = {place: Drift(*vote) for place, vote in state["votes"]}

    def _reset_detector(self, place: int, quiet_events: int) -> None:
        self._votes.pop(place, None)
        self._detectors[place].quiet_left_events = quiet_events
        self._detectors[place].reset()

    def _new_drifts(self, events: int) -> list[Drift]:
        """The votes as drifts, in order, counted, and with their losses; `events` are read. Within
        the quiet period after a drift, what further detectors notice is a sign of the same one."""
        for place in self._votes:
            self._detectors[place].alarms += 1
        votes = sorted(self._votes.values(), key=lambda vote: vote.event)
        first = self._first
        if first and 0 <= votes[-1].event - first.event < self.config.quiet_events:
            losses = first.loss_before, first.loss_after, first.loss_error
            return [
                vote._replace(
                    sign_of=first.event,
                    loss_before=losses[0],
                    loss_after=losses[1],
                    loss_error=losses[2],
                )
                for vote in votes
            ]
        self._drifts += 1
        event = votes[-1].event
        drifts = [self._with_losses(vote, events)._replace(sign_of=event) for vote in votes]
        self._first = drifts[-1]
        self._losses.clear()
        return drifts

    def _with_losses(self, drift: Drift, events: int) -> Drift:
        """The drift with the mean losses before and after; `events` are read."""
        since_events = events - drift.began
        if self._losses.events <= since_events:
            return drift
        means = self._losses.around(since_events)
        return drift._replace(
            loss_before=means.before, loss_after=means.after, loss_error=means.error
        )

    def _next_change(self, readings: Mapping[int, Reading], size: int) -> int | None:
        """Index in the batch of the next change that any detector notices; None: there is none, and
        all have read `size` values. A detector that has voted reads no further than that, since it
        begins anew where another one agrees."""
        free = [reading for place, reading in readings.items() if place not in self._votes]
        stop = size
        for reading in free:
            reading.read_to(size)
            if reading.change is not None:
                stop = min(stop, reading.position)
        for place in self._votes:
            if place in readings:
                readings[place].read_to(stop)
                if readings[place].change is not None:
                    stop = min(stop, readings[place].position)
        noticed = any(reading.change is not None for reading in readings.values())
        return stop - 1 if noticed else None

    def _vote(
        self,
        readings: Mapping[int, Reading],
        index: int,
        event: int,
        time_s: float,
        confirmed: Callable[[Drift], bool] | None,
    ) -> None:
        """Turn the changes noticed at an index in the batch, which is an event of the stream, into
        votes; votes that are too old end."""
        for place, reading in readings.items():
            change = reading.change
            if change is None or reading.position != index + 1:
                continue
            reading.change = None
            config = reading.detector.config
            vote = Drift(
                event=event,
                signal=config.signal,
                detector=config.detector,
                before=change.means.before,
                after=change.means.after,
                error=change.means.error,
                began=event + 1 - change.events,
                kind=change.kind,
                time_s=time_s,
            )
            if confirmed is None or confirmed(vote):
                self._votes[place] = vote
            else:
                self._reset_detector(place, 0)
        oldest = event - self.config.within_events
        self._votes = {place: vote for place, vote in self._votes.items() if vote.event >= oldest}


def _detector(config: DetectorConfig, drift: DriftConfig) -> MeasuredDetector:
    """A detector at work. Those that are calibrated share the rate of false alarms."""
    calibrated = sum(one.calibrated for one in drift.detectors)
    expected_events = drift.expected_events_between_false_alarms * calibrated
    if not config.calibrated or not expected_events:
        return MeasuredDetector(config, drift.quiet_events)
    return CalibratedDetector(config, drift.quiet_events, expected_events, drift.calibration_events)


def _form() -> str:
    """The versions that a detector's state depends on, beside its configuration: River's, and that
    of the state itself."""
    return f"{version('river')}/{_STATE_VERSION}"


def _key(config: DetectorConfig) -> str:
    """The configuration as text, to recognise it in a snapshot."""
    return msgspec.json.encode(config, order="sorted").decode()
