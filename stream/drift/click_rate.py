"""Steps of the click rate alone: drifts that the experts repair by themselves, within some thousand
events, and that need no regrowing.

In: the last observations, and a change. Out: whether a step of the click rate explains all of it,
or, where staleness was noticed, whether anything has changed at all. A score test (Rao, 1948) looks
for anything beyond such a step: whether a faster expert knows better than a slower one *which*
events are clicked, when the click rate is right. It decides nothing.

Shapes: B events, E experts, R events that are remembered.
"""

from collections import deque
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from niwaki.stream.drift.observations import Observations

_EVENTS = 4_096  # as far back as a drift may have begun
_BLOCK_EVENTS = 512
_SCALES = 3
_BEYOND = 2.5
"""Standard errors by which a faster expert must know better for the change to be of more than the
click rate."""
_AT_ALL = 2.0
"""Likewise, for staleness to be more than a fluctuation, where the click rate has not changed."""
_STEP = 5.0
"""Standard errors by which the slowest expert must miss the number of clicks for the click rate to
have changed, where a signal other than the label was noticed."""
_NEWTON_STEPS = 12
_LABELS = ("label", "adjusted_label")
"""Signals whose change is one of the click rate."""
_STALENESS = ("staleness", "recent_staleness")
"""Signals that fluctuate for long, so that their change must show in the test, too."""
Changed = Literal["nothing", "click rate", "more"]
"""The verdict on a change. nothing: a fluctuation; click rate: a step of that alone; more: of
anything beside it."""


class _Part(NamedTuple):
    """Consecutive events."""

    labels_R: np.ndarray
    logits_R: np.ndarray
    experts_RE: np.ndarray


class ClickRate:
    """The last events, with the test of what has changed in them."""

    def __init__(self) -> None:
        self._parts: deque[_Part] = deque()
        self._events = 0

    def add(self, observed: Observations) -> None:
        """Take in the next events."""
        experts_BE = observed.experts_BE[:, :_SCALES]
        if self._parts and experts_BE.shape[1] != self._parts[-1].experts_RE.shape[1]:
            self._parts.clear()
            self._events = 0
        self._parts.append(_Part(observed.labels_B, observed.logits_B, experts_BE))
        self._events += len(experts_BE)
        while self._events - len(self._parts[0].labels_R) >= _EVENTS:
            self._events -= len(self._parts.popleft().labels_R)

    def changed(self, events: int, signal: str) -> Changed:
        """The verdict on the last `events` events, after a change of `signal` was noticed."""
        if not self._parts or self._parts[-1].experts_RE.shape[1] < 2:
            return "more"
        last = (array.astype(np.float64) for array in self._last(events))
        labels_R, logits_R, experts_RE = last
        slow_R = _probabilities(experts_RE[:, 0])
        spread = np.sqrt((slow_R * (1 - slow_R)).sum())
        stepped = signal in _LABELS or abs((labels_R - slow_R).sum()) >= _STEP * spread
        if not stepped and signal not in _STALENESS:
            return "more"
        pairs = range(experts_RE.shape[1] - 1)
        differences = (experts_RE[:, slow] - experts_RE[:, slow + 1] for slow in pairs)
        beyond = max(_beyond(labels_R, logits_R, one_R) for one_R in differences)
        if stepped:
            return "click rate" if beyond < _BEYOND else "more"
        return "nothing" if beyond < _AT_ALL else "more"

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays by name, for a snapshot."""
        if not self._parts:
            return {}
        arrays = self._last(_EVENTS)._asdict()
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue where `state` was taken; a snapshot without these events begins anew."""
        self._parts.clear()
        self._events = 0
        if arrays:
            self._parts.append(_Part(**{name: array.copy() for name, array in arrays.items()}))
            self._events = len(self._parts[0].labels_R)

    def _last(self, events: int) -> _Part:
        """The last events, at most as many as are kept for sure."""
        events = min(events, _EVENTS)
        return _Part(
            *(np.concatenate(arrays)[-events:] for arrays in zip(*self._parts, strict=True))
        )


def _probabilities(logits: np.ndarray) -> np.ndarray:
    values: np.ndarray = 1 / (1 + np.exp(-logits))
    return values


def _beyond(labels_R: np.ndarray, logits_R: np.ndarray, differences_R: np.ndarray) -> float:
    """Score statistic of the difference between two experts as a predictor of the errors, in
    standard errors: that of a slope, with an intercept of each block of events as a nuisance, since
    the experts follow a step of the click rate meanwhile."""
    score = variance = 0.0
    blocks = max(len(labels_R) // _BLOCK_EVENTS, 1)
    parts = (np.array_split(array, blocks) for array in (labels_R, logits_R, differences_R))
    for labels, logits, differences in zip(*parts, strict=True):
        if not 0 < labels.sum() < len(labels):
            continue
        intercept = 0.0
        for _ in range(_NEWTON_STEPS):
            predicted = _probabilities(logits + intercept)
            slope = float((predicted * (1 - predicted)).sum())
            miss = float((predicted - labels).sum()) / max(slope, 1e-9)
            intercept -= min(max(miss, -1.0), 1.0)
        predicted = _probabilities(logits + intercept)
        weights = predicted * (1 - predicted)
        apart = differences - (weights * differences).sum() / weights.sum()
        score += float(((predicted - labels) * apart).sum())
        variance += float((weights * apart**2).sum())
    return score / np.sqrt(variance) if variance else 0.0
