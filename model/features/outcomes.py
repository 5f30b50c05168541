"""The outcomes of events, as all that learns and measures reads them.

In: a batch with labels, and weights and sampling ratios where the schema has them. Out: `Outcomes`.

Shapes: B events.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from niwaki.model.features.schema import EventBatch
from niwaki.model.jit import types


class OutcomeArrays(NamedTuple):
    """The outcomes of B events as kernels read them; all float32."""

    labels_B: np.ndarray
    """0..1."""
    weights_B: np.ndarray
    """>= 0, factors on losses, gradients and evidence."""
    offsets_B: np.ndarray
    """>= 0: minus the logarithm of the sampling ratio. A prediction is one for the stream before
    sampling; with this added to its logit it is one for the events that were kept (King & Zeng,
    Political Analysis 2001, prior correction)."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Labels of B events, the weight of each, and its correction for sampling."""

    arrays: OutcomeArrays
    weighted: bool
    """False if all events weigh 1, since they have no column of weights."""
    sampled: bool
    """False if no event was left out, since there is no column of sampling ratios."""

    @classmethod
    def of(cls, batch: EventBatch) -> "Outcomes":
        """The outcomes of a batch."""
        return cls.made(batch.labels_B, batch.weights_B, batch.sampling_B)

    @classmethod
    def made(
        cls,
        labels_B: np.ndarray,
        weights_B: np.ndarray | None = None,
        sampling_B: np.ndarray | None = None,
    ) -> "Outcomes":
        """Outcomes from columns of float32. `weights_B`: None: all weigh 1. `sampling_B`: sampling
        ratios, (0, 1]; None: no event was left out."""
        ones_B = np.ones(len(labels_B), np.float32) if weights_B is None else weights_B
        offsets_B = np.zeros(len(labels_B), np.float32)
        if sampling_B is not None:
            offsets_B = -np.log(sampling_B)
        arrays = OutcomeArrays(labels_B, ones_B, offsets_B)
        return cls(arrays, weights_B is not None, sampling_B is not None)

    @property
    def labels_B(self) -> np.ndarray:
        """See `OutcomeArrays`, as the next two."""
        return self.arrays.labels_B

    @property
    def weights_B(self) -> np.ndarray:
        return self.arrays.weights_B

    @property
    def offsets_B(self) -> np.ndarray:
        return self.arrays.offsets_B

    @property
    def unweighted(self) -> "Outcomes":
        """The same events, all of weight 1."""
        ones_B = np.ones_like(self.labels_B)
        return replace(self, arrays=self.arrays._replace(weights_B=ones_B), weighted=False)

    @property
    def importance_B(self) -> np.ndarray:
        """float32: the weight of each event, times the number of events in the stream before
        sampling that it stands for: one for a click, and for all others the inverse of the
        sampling ratio."""
        if not self.sampled:
            return self.weights_B
        stands_for_B = self.labels_B + (1 - self.labels_B) * np.exp(self.offsets_B)
        importance_B: np.ndarray = self.weights_B * stands_for_B
        return importance_B

    @property
    def whole_B(self) -> np.ndarray:
        """float32: `importance_B` in events of the stream before sampling: without sampling, the
        mean is 1."""
        if not (self.weighted or self.sampled):
            return self.weights_B
        importance_B = self.importance_B
        mean = float(self.weights_B.mean(dtype=np.float64))
        whole_B: np.ndarray = importance_B * np.float32(1 / mean if mean else 0.0)
        return whole_B

    @property
    def effective_B(self) -> np.ndarray:
        """float32: `importance_B`, scaled so that the sum is the number of events of weight 1 that
        would say as much (Kish, Survey Sampling, 1965)."""
        if not (self.weighted or self.sampled):
            return self.weights_B
        importance_B = self.importance_B
        total = float(importance_B.sum(dtype=np.float64))
        squares = float(np.square(importance_B, dtype=np.float64).sum())
        effective_B: np.ndarray = importance_B * np.float32(total / squares if squares else 0.0)
        return effective_B

    def part(self, start: int, stop: int) -> "Outcomes":
        """Events `start` to `stop` (exclusive), as views."""
        views = OutcomeArrays(*(array[start:stop] for array in self.arrays))
        return Outcomes(views, self.weighted, self.sampled)

    @classmethod
    def concat(cls, parts: Sequence["Outcomes"]) -> "Outcomes":
        """The events of `parts`, one after the other."""
        columns = zip(*(part.arrays for part in parts), strict=True)
        arrays = OutcomeArrays(*map(np.concatenate, columns))
        weighted, sampled = (
            any(getattr(p, name) for p in parts) for name in ("weighted", "sampled")
        )
        return cls(arrays, weighted, sampled)


OUTCOMES = types.NamedUniTuple(types.float32[::1], 3, OutcomeArrays)
"""The type of `OutcomeArrays` for the signature of a kernel."""
