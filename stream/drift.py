"""Drift: River's detectors, each on a named signal of the learner, one value for each event.

After learning in the walk. In: signals of a batch (log loss and the like). Out: `Drift`s, with the event at which they
were noticed and the means before and after. Detectors see single events, never means of batches: on means ADWIN notices
24 times later. After a drift, and whenever told (`reset`), all detectors begin anew once a quiet period is over. It
never decides what to do.

The state for a snapshot is read off River's objects attribute by attribute: numbers, windows, random generators, and
the bytes in which compiled parts say their own. So it is exact, at most some 40 kilobytes a detector however long the
stream, and nothing in it is executable. It holds for one version of River and one configuration of a detector.
"""

import inspect
import logging
import math
import random
from collections import deque
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import version
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from river import base, drift

from stream.errors import ConfigError

log = logging.getLogger("niwaki")

SIGNALS = {
    "log_loss": "of the prediction made before the event was learned, nats",
    "calibration_error": "that prediction minus the label",
    "label": "the label",
    "prediction": "that prediction",
}
"""What a detector can be set on: name and meaning."""

_BINARY_SIGNALS = ("label",)
_RECENT_EVENTS = 4096  # how far back a change that was just noticed may have begun
_LEAST_EVENTS = 64  # and how far back at least: a few outliers are not a change
_DETECTORS = {
    name: kind
    for module in (drift.binary, drift)
    for name, kind in vars(module).items()
    if inspect.isclass(kind) and issubclass(kind, base.DriftDetector | base.BinaryDriftDetector)
}


class DetectorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One detector on one signal (`[[drift.detectors]]`)."""

    detector: str = "ADWIN"
    """Any class of `river.drift` or `river.drift.binary`. HDDMA and HDDMW are 10 times slower than the others, KSWIN
    500 times."""
    signal: str = "log_loss"
    """One of `SIGNALS`. Those of `river.drift.binary` need one of zeros and ones: label."""
    direction: Literal["up", "down", "both"] | None = None
    """Changes of the mean that count. None: up for log_loss, which falls whenever the model learns; else both."""
    parameters: dict[str, bool | int | float | str | None] = {}
    """Parameters of the River class; those left out are River's defaults, but `seed`, which is 0."""

    def __post_init__(self) -> None:
        kind = _known("detector", self.detector.removeprefix("binary."), _DETECTORS)
        _known("signal", self.signal, SIGNALS)
        if not issubclass(kind, base.DriftDetector) and self.signal not in _BINARY_SIGNALS:
            rule = f"{self.detector} reads zeros and ones, so its signal must be {' or '.join(_BINARY_SIGNALS)}"
            raise ConfigError("drift.detectors.signal", rule, self.signal)
        self.build()

    @property
    def counts(self) -> str:
        """The direction, resolved: up, down or both."""
        return self.direction or ("up" if self.signal == "log_loss" else "both")

    def build(self) -> base.DriftDetector | base.BinaryDriftDetector:
        """A fresh detector. Raises `ConfigError` for a parameter that River does not know or allow."""
        kind = _DETECTORS[self.detector.removeprefix("binary.")]
        known = inspect.signature(kind).parameters
        for name, value in self.parameters.items():
            _known(f"parameters of {self.detector}", name, known)
            rule = _broken_rule(kind, name, known[name].default, value)
            if rule:
                raise ConfigError(f"drift.detectors.parameters.{name}", rule, value)
        seed = {"seed": 0} if "seed" in known else {}  # River's own default is not reproducible
        try:
            return kind(**(seed | self.parameters))
        except (ValueError, TypeError, OverflowError) as error:
            rule = f"River's {self.detector} refuses them ({error})"
            raise ConfigError("drift.detectors.parameters", rule, self.parameters) from error


class DriftConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is watched, and when not (the `[drift]` section)."""

    detectors: tuple[DetectorConfig, ...] = msgspec.field(default_factory=lambda: (DetectorConfig(),))
    """Any number of detectors; the first to notice counts."""
    quiet_events: int = 5_000
    """Events that no detector reads at the start, after a drift and after each change of the network; >= 0."""

    def __post_init__(self) -> None:
        if self.quiet_events < 0:
            raise ConfigError("drift.quiet_events", "must be >= 0", self.quiet_events)

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
    """Mean of the signal since the change, which is placed where the means differ most, 4,096 events back at most."""
    time_s: float
    """Event time at which it was noticed, seconds since the epoch."""


class DriftMonitor:
    """Feeds the signals of consecutive batches to all detectors. Where one batch ends makes no difference."""

    def __init__(self, config: DriftConfig):
        self.config = config
        self._watches = [_Watch(one) for one in config.detectors]
        self._quiet_left_events = config.quiet_events

    def update(self, signals: Mapping[str, np.ndarray], first_event: int, times_s_B: np.ndarray) -> list[Drift]:
        """Read the signals, (B,) each, of the events from `first_event` on, and their times; new drifts in order."""
        for signal in {watch.config.signal for watch in self._watches}:
            if not np.isfinite(signals[signal]).all():
                raise ValueError(f"signal {signal} is not finite in the batch from event {first_event} on")
        drifts: list[Drift] = []
        start, size = 0, len(times_s_B)
        while True:
            skipped = min(self._quiet_left_events, size - start)
            self._quiet_left_events -= skipped
            start += skipped
            if start == size:
                return drifts
            noticed = [watch.read(signals[watch.config.signal][start:].tolist()) for watch in self._watches]
            at = min((index for index in noticed if index is not None), default=None)
            if at is None:
                return drifts
            event, time_s = first_event + start + at, float(times_s_B[start + at])
            first = [watch for watch, index in zip(self._watches, noticed, strict=True) if index == at]
            drifts += [watch.drift(event, time_s) for watch in first]
            self.reset()  # what others have read or noticed beyond that event lies in the quiet period
            start += at + 1

    def reset(self, hold_events: int | None = None) -> None:
        """Forget everything, and read nothing for `hold_events` (None: `quiet_events`): the loss is about to jump."""
        self._quiet_left_events = self.config.quiet_events if hold_events is None else hold_events
        for watch in self._watches:
            watch.reset()

    def state(self) -> dict[str, np.ndarray]:
        """Everything that later drifts depend on, as one array of bytes."""
        watches = {_key(watch.config): watch.state() for watch in self._watches}
        state = {"river": version("river"), "quiet": self._quiet_left_events, "watches": watches}
        return {"detectors": np.frombuffer(msgspec.msgpack.encode(state), np.uint8).copy()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on exactly where `state` was taken."""
        state = msgspec.msgpack.decode(arrays["detectors"].tobytes())
        self._quiet_left_events = state["quiet"]
        for watch in self._watches:
            watch.reset()
            if state["river"] == version("river") and _key(watch.config) in state["watches"]:
                watch.restore(state["watches"][_key(watch.config)])
            else:
                log.warning("the snapshot has no %s on %s for this River: it begins anew", *watch.name)


class _Watch:
    """One detector, and the sums that say by how much its signal has changed."""

    def __init__(self, config: DetectorConfig):
        self.config = config
        self.name = (config.detector, config.signal)
        self.before = self.after = math.nan
        self.reset()

    def reset(self) -> None:
        self._detector = self.config.build()
        self._clear()

    def _clear(self) -> None:
        self._events, self._total = 0, 0.0
        self._recent: deque[float] = deque(maxlen=_RECENT_EVENTS)

    def read(self, values: list[float]) -> int | None:
        """Read on until a change that counts, and return its index."""
        start = 0
        while start < len(values):
            at = self._next_change(values, start)
            stop = len(values) if at is None else at + 1
            self._events += stop - start
            # one after the other, so that sums do not depend on where a batch ends (numpy's and Python's own do)
            self._total = deque(accumulate(values[start:stop], initial=self._total), maxlen=1)[0]
            self._recent.extend(values[start:stop])
            start = stop
            if at is not None:
                direction = "up" if self._measure() else "down"
                self._clear()  # as River's detectors do after a change
                if self.config.counts in (direction, "both"):
                    return at
        return None

    def drift(self, event: int, time_s: float) -> Drift:
        detector, signal = self.name
        return Drift(event, signal, detector, self.before, self.after, time_s)

    def state(self) -> dict[str, Any]:
        return {"detector": _freeze(self._detector), "sums": [self._events, self._total], "recent": list(self._recent)}

    def restore(self, state: dict[str, Any]) -> None:
        _thaw(self._detector, state["detector"])
        self._events, self._total = state["sums"]
        self._recent.extend(state["recent"])

    def _next_change(self, values: list[float], start: int) -> int | None:
        detector, update = self._detector, self._detector.update
        for index in range(start, len(values)):
            update(values[index])
            if detector.drift_detected:
                return index
        return None

    def _measure(self) -> bool:
        """Whether the mean rose in the change just noticed; sets `before` and `after`, cut where they differ most."""
        least = min(_LEAST_EVENTS, max(self._events // 2, 1))
        lengths = np.arange(least, max(min(len(self._recent), self._events - least), least) + 1)
        totals = np.cumsum(np.array(self._recent)[::-1])[lengths - 1]
        rests = np.maximum(self._events - lengths, 1)
        after, before = totals / lengths, (self._total - totals) / rests
        rise = (after - before) * np.sqrt(lengths * rests)  # in units of the signal's spread
        if isinstance(self._detector, drift.ADWIN):  # has compared what it dropped with what it kept
            width, total = self._detector.width, self._detector.total
            rose = total * (self._events - width) > (self._total - total) * width
        else:
            rose = bool(rise.max() > -rise.min())
        cut = int(np.argmax(rise if rose else -rise))
        self.before, self.after = float(before[cut]), float(after[cut])
        return rose


def _known(what: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        nearest = get_close_matches(name, known, 1, cutoff=0.4)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise ConfigError(f"drift.detectors.{what}", f"must be one of {', '.join(sorted(known))}{hint}", name)
    return known[name]


def _broken_rule(kind: type, name: str, default: object, value: object) -> str | None:
    """The rule that a parameter breaks. River checks few; a detector with a bad one is silent, or crashes late."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "must be true or false"
    if isinstance(default, str):
        return None if isinstance(value, str) else "must be a string"
    if value is None:
        return None if default is None else "must have a value"
    if isinstance(value, bool | str) or not math.isfinite(value):
        return "must be a number"
    if not isinstance(default, float):  # None stands for an integer that may be absent: a seed, a window
        least = 1 if default else 0
        return None if isinstance(value, int) and least <= value < 2**31 else f"must be an integer >= {least}"
    if default < 1 and (kind, name) != (drift.PageHinkley, "delta"):  # a probability, a share, a fading factor
        return None if 0 < value < 1 else "must be above 0 and below 1"
    return None if value > 0 else "must be above 0"


def _key(config: DetectorConfig) -> str:
    return msgspec.json.encode(config, order="sorted").decode()


def _freeze(value: Any) -> Any:
    """What a part of a detector is made of, as numbers, strings, bytes, lists and dictionaries."""
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, deque | list | tuple):
        return [_freeze(one) for one in value]
    if isinstance(value, random.Random):
        return _freeze(value.getstate())
    if inspect.ismethod(value):
        return value.__name__
    if hasattr(value, "__dict__"):
        return {name: _freeze(one) for name, one in vars(value).items()}
    return value.__getstate__()  # compiled: bytes


def _thaw(fresh: Any, state: Any) -> Any:
    """`state` in the form of `fresh`, the same part of a detector just built; objects are changed in place."""
    if isinstance(fresh, deque):
        return deque(state, fresh.maxlen)
    if isinstance(fresh, random.Random):
        kind, words, gauss = state
        fresh.setstate((kind, tuple(words), gauss))
    elif hasattr(fresh, "__dict__") and isinstance(state, dict):
        for name, part in state.items():
            before = getattr(fresh, name, None)
            setattr(fresh, name, getattr(fresh, part) if inspect.ismethod(before) else _thaw(before, part))
    elif hasattr(fresh, "__setstate__"):
        fresh.__setstate__(state)
    else:
        return state
    return fresh
