"""Drift detectors by name: River's, and the own Page-Hinkley, with their parameters checked.

In: the `[[drift.detectors]]` tables. Out: fresh detectors behind one interface, `Detector`. A
parameter that River would accept, and then be silent or crash late, is refused here with a
`ConfigError` that names field, rule and value. Nothing here sees a stream.
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec
import numpy as np
from river import base, drift

from niwaki.pruning.errors import nearest
from niwaki.stream.drift.page_hinkley import Direction, PageHinkley
from niwaki.stream.drift.river_state import detector_state, restore_detector
from niwaki.stream.drift.signals import SIGNALS, signal_named
from niwaki.stream.errors import ConfigError

_Built = TypeVar("_Built")
_RiverDetector: TypeAlias = base.DriftDetector | base.BinaryDriftDetector
_DETECTORS: Mapping[str, Callable[..., _RiverDetector]] = {
    name: kind
    for module in (drift.binary, drift)
    for name, kind in vars(module).items()
    if inspect.isclass(kind) and issubclass(kind, _RiverDetector)
} | {"PageHinkley": PageHinkley}
_BINARY_DETECTORS = frozenset(vars(drift.binary)) & frozenset(_DETECTORS)


class Detector(Protocol):
    """A detector that reads one signal."""

    def read(self, values_B: np.ndarray, start: int = 0) -> int | None:
        """Read float64 values (B,) from index `start` until a change is detected.

        Returns the index of the value that completed the change; None once all are read.
        """

    def rose(self, events: int, total: float) -> bool | None:
        """Direction of the change just detected: True for a rise, None if the detector does not
        know. `events`, `total`: number and sum of the values since the last change or reset."""

    def state(self) -> dict[str, Any]:
        """Everything that later detections depend on, as plain data, for a snapshot."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; the detector is just built from equal parameters."""


class RiverDetector:
    """A detector of River, behind the interface `Detector`."""

    def __init__(self, detector: _RiverDetector):
        self._detector = detector

    def read(self, values_B: np.ndarray, start: int = 0) -> int | None:
        """Read value by value, until River's detector has detected a change."""
        detector = self._detector
        update: Callable[[Any], None] = detector.update
        for index, value in enumerate(values_B[start:].tolist(), start):
            update(value)
            if detector.drift_detected:
                return index
        return None

    def rose(self, events: int, total: float) -> bool | None:
        """None: River's detectors do not tell."""
        return None

    def state(self) -> dict[str, Any]:
        """The detector's state, as plain data."""
        return {"river": detector_state(self._detector)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        restore_detector(self._detector, state["river"])


class AdwinDetector(RiverDetector):
    """River's ADWIN, whose window gives the direction of a change."""

    def __init__(self, detector: drift.ADWIN):
        super().__init__(detector)
        self._adwin = detector

    def rose(self, events: int, total: float) -> bool:
        """True if the mean of the values that ADWIN has kept is above that of the dropped ones."""
        width = self._adwin.width
        kept = self._adwin.total
        return bool(kept * (events - width) > (total - kept) * width)


class DetectorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One detector on one signal (`[[drift.detectors]]`)."""

    detector: str = "PageHinkley"
    """Any class of `river.drift` or `river.drift.binary`. HDDMA and HDDMW are 10 times slower than
    the others, KSWIN 500 times."""
    signal: str = "staleness"
    """One of `stream.drift.signals.SIGNALS`, as `NAME` or, for a signal of a column, `NAME:COLUMN`.
    Detectors of `river.drift.binary` need a signal of zeros and ones: label."""
    direction: Direction | None = None
    """Changes of the mean that count. None: the signal's own direction, which is up for signals
    that fall whenever the model learns."""
    parameters: dict[str, bool | int | float | str | None] = {}
    """Parameters of the detector's class; the defaults are River's, except `seed`, which is 0. The
    threshold of PageHinkley is calibrated unless it is set here."""

    def __post_init__(self) -> None:
        _check_known("detector", "must be", self._class_name, _DETECTORS)
        signal = signal_named(self.signal)
        if self._class_name in _BINARY_DETECTORS and not signal.binary:
            binary = " or ".join(one.form for one in SIGNALS.values() if one.binary)
            rule = f"{self.detector} reads zeros and ones, so its signal must be {binary}"
            raise ConfigError("signal", rule, self.signal)
        self._check_parameters()
        self.build()

    @property
    def counts(self) -> Direction:
        """Changes of the mean that count: up, down or both."""
        return self.direction or signal_named(self.signal).counts

    @property
    def calibrated(self) -> bool:
        """True if the threshold is left to calibration, which exists for PageHinkley."""
        return self.detector == "PageHinkley" and "threshold" not in self.parameters

    @property
    def delta(self) -> float | None:
        """The parameter `delta`, as a number; None where it is not configured."""
        value = self.parameters.get("delta")
        return float(value) if isinstance(value, int | float) else None

    def build(self) -> Detector:
        """A fresh detector with the parameters of this configuration.

        Raises `ConfigError` for parameters that the detector's class refuses.
        """
        if self._class_name == "PageHinkley":
            return self._made(PageHinkley, {})
        if self._class_name == "ADWIN":
            return AdwinDetector(self._made(drift.ADWIN, {}))
        return RiverDetector(self._made(_DETECTORS[self._class_name], {}))

    def build_page_hinkley(self, calibrated: Mapping[str, float] | None) -> PageHinkley:
        """A fresh Page-Hinkley with the parameters found by calibration, or None before the first
        one. A calibrated detector forgets nothing, and looks for the changes that count only."""
        if calibrated is None:
            return self._made(PageHinkley, {})
        return self._made(PageHinkley, {**calibrated, "alpha": 1.0, "mode": self.counts})

    @property
    def _class_name(self) -> str:
        return self.detector.removeprefix("binary.")

    def _made(self, kind: Callable[..., _Built], calibrated: Mapping[str, float | str]) -> _Built:
        """A detector of class `kind`; configured parameters take precedence over calibrated
        ones."""
        known = inspect.signature(kind).parameters
        seed = {"seed": 0} if "seed" in known else {}  # River's own default is not reproducible
        try:
            return kind(**{**seed, **calibrated, **self.parameters})
        except (ValueError, TypeError, OverflowError) as error:
            rule = f"{self.detector} refuses them ({error})"
            raise ConfigError("parameters", rule, self.parameters) from error

    def _check_parameters(self) -> None:
        known = inspect.signature(_DETECTORS[self._class_name]).parameters
        for name, value in self.parameters.items():
            rule = f"must be a parameter of {self.detector},"
            _check_known(f"parameters.{name}", rule, name, known)
            broken = _broken_rule(self._class_name, name, known[name].default, value)
            if broken:
                raise ConfigError(f"parameters.{name}", broken, value)


def _check_known(field: str, rule: str, name: str, known: Collection[str]) -> None:
    """Raises `ConfigError` unless `name` is one of `known`."""
    if name not in known:
        meant = nearest(name, known)
        hint = f" (did you mean {meant}?)" if meant else ""
        raise ConfigError(field, f"{rule} one of {', '.join(sorted(known))}{hint}", name)


def _broken_rule(detector: str, name: str, default: object, value: object) -> str | None:
    """The rule that a parameter's value breaks, or None. River checks few; a detector with a wrong
    one is silent, or crashes late."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "must be true or false"
    if isinstance(default, str):
        return None if isinstance(value, str) else "must be a string"
    if value is None:
        return None if default is None else "must have a value"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "must be a number"
    if not isinstance(default, float):  # an integer; None where it may be absent: a seed, a window
        least = 1 if default else 0
        holds = isinstance(value, int) and least <= value < 2**31
        return None if holds else f"must be an integer >= {least}"
    # A default below 1 belongs to a probability, a share or a fading factor.
    if default < 1 and (detector, name) != ("PageHinkley", "delta"):
        return None if 0 < value < 1 else "must be above 0 and below 1"
    return None if value > 0 else "must be above 0"
