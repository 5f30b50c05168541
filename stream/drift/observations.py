"""The record that signals are computed from, and the interface of a signal's computation.

In: events as the model read them, and the predictions made before it learned from them. Out:
`Observations`, one row an event, and prediction errors. Nothing here knows a particular signal.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from niwaki.model.evaluation import log_losses
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import EventBatch
from niwaki.model.jit import kernel

_NO_COLUMNS = np.empty((0, 0))


class Observations(NamedTuple):
    """Events, and the predictions made before the model learned from them. Where negatives were
    left out of the stream, predictions and losses are those for the events that were kept, so that
    errors have a mean of zero; each event counts once, whatever its weight."""

    labels_B: np.ndarray
    times_s_B: np.ndarray
    experts_BE: np.ndarray
    """Logits of the experts; `logits_B` is their mixture."""
    logits_B: np.ndarray
    losses_B: np.ndarray
    """Log losses, nats."""
    rows_BF: np.ndarray = _NO_COLUMNS
    """Table rows of the categorical fields, as in `model.features.encoder.Features`; empty where no
    signal reads columns."""
    numerics_BN: np.ndarray = _NO_COLUMNS
    """Numeric values, likewise."""

    @classmethod
    def of(
        cls,
        batch: EventBatch,
        outcomes: Outcomes,
        experts_BE: np.ndarray,
        logits_B: np.ndarray,
        losses_B: np.ndarray,
        *columns: np.ndarray,
    ) -> "Observations":
        """The record of a batch, from predictions for the stream before sampling. `columns`:
        `rows_BF` and `numerics_BN`, or none."""
        if outcomes.sampled:
            offsets_B = outcomes.offsets_B
            experts_BE, logits_B = experts_BE + offsets_B[:, None], logits_B + offsets_B
            losses_B = log_losses(logits_B, outcomes.labels_B)
        seen = outcomes.labels_B, batch.times_s_B
        return cls(*seen, experts_BE, logits_B, losses_B, *columns)

    @classmethod
    def concat(cls, parts: "Sequence[Observations]") -> "Observations":
        """The events of `parts`, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are not empty, by name."""
        return {name: array for name, array in self._asdict().items() if array.size}

    def errors(self) -> np.ndarray:
        """Predicted probabilities less labels, float64 (B,)."""
        return _errors(self.logits_B, self.labels_B.astype(np.float64))

    def predictions(self) -> np.ndarray:
        """Predicted probabilities, float64 (B,)."""
        return _errors(self.logits_B, np.zeros(len(self.logits_B)))


class Computation(Protocol):
    """One signal's way from observations to values, with its memory."""

    begun: bool
    """True if the values of the last `update` are made in another way than those before, so that
    their mean may be another."""

    def update(self, observed: Observations, errors_B: np.ndarray) -> np.ndarray | None:
        """Values of the signal, float64 (B,), or None if it is not defined yet; called in the order
        of events. `errors_B`: `observed.errors()`, computed once for all signals."""

    def reset(self) -> None:
        """A drift's turmoil is over; scales that were measured in it are to be measured anew."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything that later values depend on, for a snapshot. A name continues the signal's:
        "" or ":PART"."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue where `state` was taken."""


@kernel("float64[::1](float32[:], float64[::1])", brief=True)
def _errors(logits_B: np.ndarray, labels_B: np.ndarray) -> np.ndarray:
    """Predicted probabilities less labels."""
    errors_B = np.empty(len(labels_B))
    for b in range(len(labels_B)):
        errors_B[b] = 1 / (1 + math.exp(-np.float64(logits_B[b]))) - labels_B[b]
    return errors_B
