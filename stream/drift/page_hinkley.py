"""Page-Hinkley: the test of a rise or fall of a signal's mean, as a detector of River.

In: values of one signal, one by one or an array at a time. Out: the value at which the mean has
changed. The results equal those of River's `drift.PageHinkley` bit for bit; beyond that class, this
one reads arrays in compiled code, accepts thresholds and a known mean while it runs, and gives and
takes back its state. It does not choose its thresholds (`niwaki.stream.drift.calibrated` does).
"""

import math
from typing import Literal, get_args

import numpy as np
from river import base

from niwaki.model.jit import kernel, structs, types

Direction = Literal["up", "down", "both"]
"""The changes of a mean that count: rises, falls, or both."""


_SUMS = np.dtype(
    [
        ("events", np.float64),
        ("mean", np.float64),
        ("increase", np.float64),  # cumulative sum of deviations from the mean, less delta each
        ("decrease", np.float64),  # likewise, plus delta each
        ("lowest_increase", np.float64),
        ("highest_decrease", np.float64),
    ]
)
"""Everything that the test remembers of the values."""
_FRESH = (0.0, 0.0, 0.0, 0.0, np.inf, -1.0)
_RULES = np.dtype(
    [
        ("rise", np.float64),  # threshold for rises; infinite where they do not count
        ("fall", np.float64),
        ("alpha", np.float64),
        ("delta", np.float64),
        ("least_events", np.float64),
    ]
)
"""The parameters, as the kernel reads them."""


class PageHinkley(base.DriftDetector):
    """The Page-Hinkley test (Page, Continuous inspection schemes, Biometrika 41, 1954).

    Two cumulative sums of deviations from the running mean are kept; a change is detected when one
    of them has moved further than `threshold` from its lowest or highest value. The value after a
    detection begins a new test.

    >>> detector = PageHinkley()
    >>> detector.read(np.repeat([0.0, 5.0], 1_000))
    1010
    """

    def __init__(
        self,
        min_instances: int = 30,
        delta: float = 0.005,
        threshold: float = 50.0,
        alpha: float = 1 - 0.0001,
        mode: Direction = "both",
    ):
        """The names, the defaults and the meaning of the parameters are River's.

        `min_instances`: events before the first detection. `delta`: deviation that is tolerated at
        each event, in units of the signal; larger values ignore larger changes. `threshold`: height
        of a cumulative sum at which a change is detected; larger values give fewer false alarms and
        later detections. `alpha`: factor by which the cumulative sums fade at each event. `mode`:
        changes of the mean that are looked for. Raises `ValueError` for any other mode.
        """
        super().__init__()
        if mode not in get_args(Direction):
            raise ValueError(f"Invalid 'mode'. Valid values are: {list(get_args(Direction))}")
        self.min_instances = min_instances
        self.delta = delta
        self.threshold = threshold
        self.alpha = alpha
        self.mode = mode
        self._sums = np.array([_FRESH], _SUMS)
        self._rules = np.zeros(1, _RULES)
        self.set_thresholds(delta, threshold)
        self._detected = False

    def reset(self) -> None:
        """Begin a new test, with the thresholds of now."""
        self._sums[0] = _FRESH
        self._detected = False

    @property
    def drift_detected(self) -> bool:
        """True if the last value that was read completed a change."""
        return self._detected

    @property
    def mean(self) -> float:
        """Mean of the values since the test began."""
        return float(self._sums["mean"][0])

    def update(self, x: int | float) -> None:
        """Read one value."""
        self.read(np.array([x], np.float64))

    def read(self, values_B: np.ndarray, start: int = 0) -> int | None:
        """Read float64 values (B,), contiguous, from index `start` until a change is detected.

        Returns the index of the value that completed the change; None once all are read.
        """
        if start >= len(values_B):
            return None
        if self._detected:
            self.reset()
        found = _read(values_B, start, self._sums, self._rules)
        self._detected = found >= 0
        return found if self._detected else None

    def begin_with(self, values_B: np.ndarray) -> None:
        """Take float64 values (B,) into the running mean, and compare none of them with it."""
        _add_to_mean(values_B, self._sums)

    def set_thresholds(self, delta: float, threshold: float) -> None:
        """Go on from the present sums with other values of `delta` and `threshold`."""
        self.delta = delta
        self.threshold = threshold
        rise = math.inf if self.mode == "down" else threshold
        fall = math.inf if self.mode == "up" else threshold
        self._rules[0] = (rise, fall, self.alpha, delta, self.min_instances)

    def rose(self, events: int, total: float) -> bool | None:
        """True for `mode` up, False for down, None for both; the arguments are not used."""
        return None if self.mode == "both" else self.mode == "up"

    def state(self) -> dict[str, float | bool]:
        """Everything that later detections depend on, but the parameters; numbers by name."""
        sums = zip(_SUMS.fields or (), self._sums[0].tolist(), strict=True)
        return {**dict(sums), "detected": self._detected}

    def restore(self, state: dict[str, float | bool]) -> None:
        """Continue where `state` of a detector with equal parameters was taken."""
        for name in _SUMS.fields or ():
            self._sums[name] = state[name]
        self._detected = bool(state["detected"])


@kernel(
    types.int64(types.float64[::1], types.int64, structs(_SUMS), structs(_RULES)),
    brief=True,
)
def _read(values_B: np.ndarray, start: int, sums: np.ndarray, rules: np.ndarray) -> int:
    """Index of the value that completes a change, or -1; `sums` go on to there. Operations and
    their order are River's."""
    rule = rules[0]
    before = sums[0]
    events = before.events
    mean = before.mean
    increase = before.increase
    decrease = before.decrease
    lowest = before.lowest_increase
    highest = before.highest_decrease
    found = -1
    for index in range(start, len(values_B)):
        events += 1.0
        mean += 1.0 / events * (values_B[index] - mean)
        deviation = values_B[index] - mean
        increase = rule.alpha * increase + deviation - rule.delta
        decrease = rule.alpha * decrease + deviation + rule.delta
        if increase < lowest:
            lowest = increase
        if decrease > highest:
            highest = decrease
        changed = increase - lowest > rule.rise or highest - decrease > rule.fall
        if changed and events >= rule.least_events:
            found = index
            break
    before.events = events
    before.mean = mean
    before.increase = increase
    before.decrease = decrease
    before.lowest_increase = lowest
    before.highest_decrease = highest
    return found


@kernel(types.void(types.float64[::1], structs(_SUMS)), brief=True)
def _add_to_mean(values_B: np.ndarray, sums: np.ndarray) -> None:
    """Take the values into the mean alone."""
    for value in values_B:
        sums[0].events += 1.0
        sums[0].mean += 1.0 / sums[0].events * (value - sums[0].mean)
