"""Page-Hinkley: the test of a rise or fall of a signal's mean, as a detector of River.

In: values of one signal, one by one or an array at a time. Out: the value at which the mean has
changed. The results equal those of River's `drift.PageHinkley` bit for bit; beyond that class, this
one reads arrays in compiled code, accepts thresholds and a known mean while it runs, and gives and
takes back its state. It does not choose its thresholds (`niwaki.stream.drift.calibrated` does).
"""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
from river import base

from niwaki.model.jit import kernel, types

Direction = Literal["up", "down", "both"]
"""The changes of a mean that count: rises, falls, or both."""


class _Sums(NamedTuple):
    """Everything that the test remembers of the values."""

    events: float = 0.0
    mean: float = 0.0
    increase: float = 0.0
    """Cumulative sum of deviations from the mean, each less `delta`."""
    decrease: float = 0.0
    """Cumulative sum of deviations from the mean, each plus `delta`."""
    lowest_increase: float = math.inf
    highest_decrease: float = -1.0  # as in River, where the sum begins below any that can alarm


class _Rules(NamedTuple):
    """Parameters of the test, with the thresholds of the two sides."""

    rise: float
    fall: float
    alpha: float
    delta: float
    least_events: float


_SUMS_TYPE = types.NamedUniTuple(types.float64, len(_Sums._fields), _Sums)
_RULES_TYPE = types.NamedUniTuple(types.float64, len(_Rules._fields), _Rules)


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
        self.reset()

    def reset(self) -> None:
        """Begin a new test, with the thresholds of now."""
        self._sums = _Sums()
        self._detected = False

    @property
    def drift_detected(self) -> bool:
        """True if the last value that was read completed a change."""
        return self._detected

    @property
    def mean(self) -> float:
        """Mean of the values since the test began."""
        return self._sums.mean

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
        rules = _Rules(
            rise=math.inf if self.mode == "down" else float(self.threshold),
            fall=math.inf if self.mode == "up" else float(self.threshold),
            alpha=float(self.alpha),
            delta=float(self.delta),
            least_events=float(self.min_instances),
        )
        found, self._sums = _read(values_B, start, self._sums, rules)
        self._detected = found >= 0
        return found if self._detected else None

    def begin_with(self, values_B: np.ndarray) -> None:
        """Take float64 values (B,) into the running mean, and compare none of them with it."""
        self._sums = _add_to_mean(values_B, self._sums)

    def set_thresholds(self, delta: float, threshold: float) -> None:
        """Go on from the present sums with other values of `delta` and `threshold`."""
        self.delta = delta
        self.threshold = threshold

    def rose(self, events: int, total: float) -> bool | None:
        """True for `mode` up, False for down, None for both; the arguments are not used."""
        return None if self.mode == "both" else self.mode == "up"

    def state(self) -> dict[str, float | bool]:
        """Everything that later detections depend on, but the parameters; numbers by name."""
        return {**self._sums._asdict(), "detected": self._detected}

    def restore(self, state: dict[str, float | bool]) -> None:
        """Undo `state`, in a detector with equal parameters."""
        self._sums = _Sums(**{name: float(state[name]) for name in _Sums._fields})
        self._detected = bool(state["detected"])


@kernel(
    types.Tuple((types.int64, _SUMS_TYPE))(
        types.float64[::1], types.int64, _SUMS_TYPE, _RULES_TYPE
    ),
    brief=True,
)
def _read(values_B: np.ndarray, start: int, sums: _Sums, rules: _Rules) -> tuple[int, _Sums]:
    """Index of the value that completes a change, or -1, and the sums up to there. Operations and
    their order are River's."""
    events = sums.events
    mean = sums.mean
    increase = sums.increase
    decrease = sums.decrease
    lowest = sums.lowest_increase
    highest = sums.highest_decrease
    found = -1
    for index in range(start, len(values_B)):
        events += 1.0
        mean += 1.0 / events * (values_B[index] - mean)
        deviation = values_B[index] - mean
        increase = rules.alpha * increase + deviation - rules.delta
        decrease = rules.alpha * decrease + deviation + rules.delta
        if increase < lowest:
            lowest = increase
        if decrease > highest:
            highest = decrease
        changed = increase - lowest > rules.rise or highest - decrease > rules.fall
        if changed and events >= rules.least_events:
            found = index
            break
    return found, _Sums(events, mean, increase, decrease, lowest, highest)


@kernel(_SUMS_TYPE(types.float64[::1], _SUMS_TYPE), brief=True)
def _add_to_mean(values_B: np.ndarray, sums: _Sums) -> _Sums:
    """The sums with these values in the mean alone."""
    events = sums.events
    mean = sums.mean
    for value in values_B:
        events += 1.0
        mean += 1.0 / events * (value - mean)
    return _Sums(
        events,
        mean,
        sums.increase,
        sums.decrease,
        sums.lowest_increase,
        sums.highest_decrease,
    )
