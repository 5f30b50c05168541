"""The outcomes of events, as all that learns and measures reads them.

In: a batch with labels, and weights and sampling ratios where the schema has them. Out: `Outcomes`.

Shapes: B events.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from niwaki.model.features.schema import EventBatch
from niwaki.model.jit import types


class Outcomes(NamedTuple):
    """Labels of B events, the weight of each, and its correction for sampling; all float32."""

    labels_B: np.ndarray
    """0..1."""
    weights_B: np.ndarray
    """>= 0, factors on losses, gradients and evidence."""
    offsets_B: np.ndarray
    """>= 0: minus the logarithm of the sampling ratio. A prediction is one for the stream before
    sampling; with this added to its logit it is one for the events that were kept (King & Zeng,
    Political Analysis 2001, prior correction)."""

    @classmethod
    def of(cls, batch: EventBatch) -> "Outcomes":
        """The outcomes of a batch."""
        labels_B = batch.labels_B
        weights_B = np.ones_like(labels_B) if batch.weights_B is None else batch.weights_B
        if batch.sampling_B is None:
            return cls(labels_B, weights_B, np.zeros_like(labels_B))
        return cls(labels_B, weights_B, -np.log(batch.sampling_B))

    @classmethod
    def plain(cls, labels_B: np.ndarray) -> "Outcomes":
        """Labels of events that all weigh 1, and of which none was left out."""
        return cls(labels_B, np.ones_like(labels_B), np.zeros_like(labels_B))

    @property
    def weighted(self) -> bool:
        """True if an event has another weight than 1."""
        return bool((self.weights_B != 1).any())

    @property
    def is_plain(self) -> bool:
        """True if all events weigh 1, and none was left out by sampling."""
        return not (self.weighted or self.offsets_B.any())

    @property
    def unweighted(self) -> "Outcomes":
        """The same events, all of weight 1."""
        return self._replace(weights_B=np.ones_like(self.labels_B))

    @property
    def importance_B(self) -> np.ndarray:
        """float32: the weight of each event, times the number of events in the stream before
        sampling that it stands for: one for a click, and for all others the inverse of the
        sampling ratio."""
        if not self.offsets_B.any():
            return self.weights_B
        stands_for_B = self.labels_B + (1 - self.labels_B) * np.exp(self.offsets_B)
        importance_B: np.ndarray = self.weights_B * stands_for_B
        return importance_B

    @property
    def whole_B(self) -> np.ndarray:
        """float32: `importance_B` in events of the stream before sampling: without sampling, the
        mean is 1."""
        if self.is_plain:
            return self.weights_B
        importance_B = self.importance_B
        mean = float(self.weights_B.mean(dtype=np.float64))
        whole_B: np.ndarray = importance_B * np.float32(1 / mean if mean else 0.0)
        return whole_B

    @property
    def effective_B(self) -> np.ndarray:
        """float32: `importance_B`, scaled so that the sum is the number of events of weight 1 that
        would say as much (Kish, Survey Sampling, 1965)."""
        if self.is_plain:
            return self.weights_B
        importance_B = self.importance_B
        total = float(importance_B.sum(dtype=np.float64))
        squares = float(np.square(importance_B, dtype=np.float64).sum())
        effective_B: np.ndarray = importance_B * np.float32(total / squares if squares else 0.0)
        return effective_B

    def part(self, start: int, stop: int) -> "Outcomes":
        """Events `start` to `stop` (exclusive), as views."""
        return Outcomes(*(array[start:stop] for array in self))

    @classmethod
    def concat(cls, parts: Sequence["Outcomes"]) -> "Outcomes":
        """The events of `parts`, one after the other."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))


OUTCOMES = types.NamedUniTuple(types.float32[::1], 3, Outcomes)
"""The type of `Outcomes` for the signature of a kernel."""
