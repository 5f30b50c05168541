"""Detectors: River's, by name, with their parameters checked, and how each is to be set on a
signal.

In: the `[[drift.detectors]]` tables. Out: fresh detectors. A parameter that River would take and
then be silent or crash late with is refused here, with a `ConfigError` that names field, rule and
value.
"""

import inspect
import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

import msgspec
import numpy as np
from river import base, drift

from niwaki.model.jit import kernel, types
from niwaki.stream.drift.running_sums import RunningSums, tally_add
from niwaki.stream.drift.signals import check_signal
from niwaki.stream.errors import ConfigError

_BINARY_SIGNALS = ("label",)
_DETECTORS = {
    name: kind
    for module in (drift.binary, drift)
    for name, kind in vars(module).items()
    if inspect.isclass(kind) and issubclass(kind, base.DriftDetector | base.BinaryDriftDetector)
}


class DetectorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One detector on one signal (`[[drift.detectors]]`)."""

    detector: str = "PageHinkley"
    """Any class of `river.drift` or `river.drift.binary`. HDDMA and HDDMW are 10 times slower than
    the others, KSWIN 500 times."""
    signal: str = "staleness"
    """One of those in `stream.drift.signals`. Detectors of `river.drift.binary` need one of zeros
    and ones: label."""
    direction: Literal["up", "down", "both"] | None = None
    """Changes of the mean that count. None: up for both kinds of staleness, excess_loss and
    log_loss, which fall whenever the model learns, and for unseen and stability; else both."""
    parameters: dict[str, bool | int | float | str | None] = {}
    """Parameters of the River class; those left out are River's defaults, but `seed`, which is 0.
    The threshold of PageHinkley is calibrated unless it stands here."""

    def __post_init__(self) -> None:
        kind = _known("detector", self.detector.removeprefix("binary."), _DETECTORS)
        check_signal(self.signal)
        if not issubclass(kind, base.DriftDetector) and self.signal not in _BINARY_SIGNALS:
            rule = f"{self.detector} reads zeros and ones, so its signal must be {' or '.join(_BINARY_SIGNALS)}"
            raise ConfigError("drift.detectors.signal", rule, self.signal)
        self.build()

    @property
    def counts(self) -> Literal["up", "down", "both"]:
        """The direction, resolved: up, down or both."""
        rising = ("staleness", "recent_staleness", "log_loss", "excess_loss", "unseen", "stability")
        return self.direction or ("up" if self.signal.partition(":")[0] in rising else "both")

    @property
    def calibrated(self) -> bool:
        """Whether its threshold is left to calibration, which is there for PageHinkley."""
        return self.detector == "PageHinkley" and "threshold" not in self.parameters

    def build(
        self, levels: Mapping[str, float] | None = None
    ) -> base.DriftDetector | base.BinaryDriftDetector:
        """A fresh detector, with the `levels` that calibration found.

        Raises `ConfigError` for a parameter that River does not know or allow.
        """
        kind = _DETECTORS[self.detector.removeprefix("binary.")]
        known = inspect.signature(kind).parameters
        for name, value in self.parameters.items():
            _known(f"parameters of {self.detector}", name, known)
            rule = _broken_rule(kind, name, known[name].default, value)
            if rule:
                raise ConfigError(f"drift.detectors.parameters.{name}", rule, value)
        seed = {"seed": 0} if "seed" in known else {}  # River's own default is not reproducible
        found = dict(levels or {})
        if (
            found and kind is drift.PageHinkley
        ):  # as it was calibrated: it forgets nothing, and looks where told
            found |= {"alpha": 1.0, "mode": self.counts}
        try:
            return kind(**(seed | found | self.parameters))
        except (ValueError, TypeError, OverflowError) as error:
            rule = f"River's {self.detector} refuses them ({error})"
            raise ConfigError("drift.detectors.parameters", rule, self.parameters) from error


def next_change(
    detector: base.DriftDetector | base.BinaryDriftDetector,
    tally: RunningSums,
    values_B: np.ndarray,
    start: int = 0,
) -> int | None:
    """Let it read `values_B` from `start` on until it notices a change: the index of that. None: it
    has read all. `tally` takes in what it reads."""
    if type(detector) is drift.PageHinkley:
        return (
            _next_of_page_hinkley(detector, tally, values_B, start)
            if start < len(values_B)
            else None
        )
    update = detector.update
    for index, value in enumerate(values_B[start:].tolist(), start):
        update(value)
        if detector.drift_detected:
            tally.add(values_B[start : index + 1])
            return index
    tally.add(values_B[start:])
    return None


def begin_with(detector: drift.PageHinkley, values_B: np.ndarray) -> None:
    """Tell it what the mean is, and no more."""
    mean = detector._x_mean
    mean.n, mean._mean = _mean(values_B, mean.n, mean._mean)


def _next_of_page_hinkley(
    detector: drift.PageHinkley, tally: RunningSums, values_B: np.ndarray, start: int
) -> int | None:
    if detector.drift_detected:
        detector._reset()
    mean, mode, threshold = detector._x_mean, detector.mode, detector.threshold
    up, down = (
        (math.inf if mode == "down" else threshold),
        (math.inf if mode == "up" else threshold),
    )
    sums = (mean.n, mean._mean, detector._sum_increase, detector._sum_decrease)
    extremes = (detector._min_increase, detector._max_decrease)
    rules = (up, down, detector.alpha, detector.delta, detector.min_instances)
    read = _page_hinkley(values_B, start, sums, extremes, rules, *tally.arrays)
    found, (mean.n, mean._mean, *sums), extremes = read
    detector._sum_increase, detector._sum_decrease = sums
    detector._min_increase, detector._max_decrease = extremes
    detector._drift_detected = found >= 0
    return found if found >= 0 else None


@kernel(
    types.Tuple((types.int64, types.UniTuple(types.float64, 4), types.UniTuple(types.float64, 2)))(
        types.float64[::1],
        types.int64,
        types.UniTuple(types.float64, 4),
        types.UniTuple(types.float64, 2),
        types.UniTuple(types.float64, 5),
        *(types.float64[::1],) * 3,
    ),
    brief=True,
)
def _page_hinkley(values_B, start, sums, extremes, rules, tally_3, recent, spans):
    """River's own `update`, value by value and bit for bit; then what was read is added to a
    `RunningSums`'s arrays."""
    events, mean, increase, decrease = sums
    lowest, highest = extremes
    up, down, alpha, delta, least = rules
    found = -1
    for index in range(start, len(values_B)):
        events += 1.0
        mean += 1.0 / events * (values_B[index] - mean)
        deviation = values_B[index] - mean
        increase = alpha * increase + deviation - delta
        decrease = alpha * decrease + deviation + delta
        lowest = min(lowest, increase)
        highest = max(highest, decrease)
        if (increase - lowest > up or highest - decrease > down) and events >= least:
            found = index
            break
    tally_add(
        values_B[start : found + 1] if found >= 0 else values_B[start:], tally_3, recent, spans
    )
    return found, (events, mean, increase, decrease), (lowest, highest)


@kernel("UniTuple(float64, 2)(float64[::1], float64, float64)", brief=True)
def _mean(values_B, events, mean):
    for value in values_B:
        events += 1.0
        mean += 1.0 / events * (value - mean)
    return events, mean


def _known(what: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        nearest = get_close_matches(name, known, 1, cutoff=0.4)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise ConfigError(
            f"drift.detectors.{what}", f"must be one of {', '.join(sorted(known))}{hint}", name
        )
    return known[name]


def _broken_rule(kind: type, name: str, default: object, value: object) -> str | None:
    """The rule that a parameter breaks. River checks few; a detector with a bad one is silent, or
    crashes late."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "must be true or false"
    if isinstance(default, str):
        return None if isinstance(value, str) else "must be a string"
    if value is None:
        return None if default is None else "must have a value"
    if isinstance(value, bool | str) or not math.isfinite(value):
        return "must be a number"
    if not isinstance(
        default, float
    ):  # None stands for an integer that may be absent: a seed, a window
        least = 1 if default else 0
        return (
            None
            if isinstance(value, int) and least <= value < 2**31
            else f"must be an integer >= {least}"
        )
    if default < 1 and (kind, name) != (
        drift.PageHinkley,
        "delta",
    ):  # a probability, a share, a fading factor
        return None if 0 < value < 1 else "must be above 0 and below 1"
    return None if value > 0 else "must be above 0"
