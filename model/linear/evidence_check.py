"""The check of old evidence after a drift: a paired test between two time scales of the linear
expert.

In: the logits of all time scales for one batch after another, before it is learned. Out: at most
one verdict for each drift. A detector also fires for a burst of strange events, after which the old
evidence is as good as ever. So evidence is discounted only where the second scale, which has
discounted more of it, predicts better than the first one by three standard errors on the events
since the drift; the test is repeated with each batch. A gain that a constant shift of each scale's
logits would also give (Rao's score statistic) does not count: a new base rate, or items that are
new to the model, say nothing against the evidence about all others.
"""

import math

import msgspec
import numpy as np

from niwaki.model.evaluation import log_losses
from niwaki.model.features.outcomes import Outcomes

_LEAST_EVENTS = 500
_STANDARD_ERRORS = 3.0


class Discount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shares that are kept, (0, 1], once old evidence is found to mislead."""

    evidence_ratio: float = 1.0
    """Of the linear expert's evidence."""
    gradients_ratio: float = 1.0
    """Of the embedding tables' accumulated squared gradients."""


class EvidenceCheckState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The state of a check; part of a snapshot."""

    events_left: float = 0.0
    """Events that are still to be checked; 0 or less: no check is under way."""
    events: float = 0.0
    """Events checked since the drift."""
    gain_sum: float = 0.0
    """Sum of the first scale's log losses less those of the second, nats."""
    gain_squares: float = 0.0
    """Sum of the squares of these differences."""
    errors: tuple[float, float] = (0.0, 0.0)
    """Sum of prediction less label, weighted, of each of the two scales."""
    curvatures: tuple[float, float] = (0.0, 0.0)
    """Sum of p (1 - p), weighted, for predictions p, of each of the two scales."""


class EvidenceCheck:
    """Checks for a number of events after a drift; `state` may be saved, and set to continue."""

    def __init__(self) -> None:
        self.state = EvidenceCheckState()

    def begin(self, events: int) -> None:
        """Check the next `events` events, since a drift was detected."""
        self.state = EvidenceCheckState(events_left=events)

    def confirmed(self, logits_BK: np.ndarray, outcomes: Outcomes) -> bool:
        """True once it is clear that the first scale's evidence misleads; the check is then
        over."""
        state = self.state
        if state.events_left <= 0 or logits_BK.shape[1] < 2:
            return False
        labels_B, weights_B, offsets_B = outcomes.arrays
        logits_B2 = logits_BK[:, :2] + offsets_B[:, None]
        losses = (log_losses(logits_B2[:, scale], labels_B) for scale in range(2))
        gain_B = weights_B * (next(losses) - next(losses))
        p_B2 = 1 / (1 + np.exp(-logits_B2.astype(np.float64)))
        weights_B1 = weights_B[:, None].astype(np.float64)
        errors_2 = np.array(state.errors) + (weights_B1 * (p_B2 - labels_B[:, None])).sum(0)
        curvatures_2 = np.array(state.curvatures) + (weights_B1 * (p_B2 * (1 - p_B2))).sum(0)
        state = EvidenceCheckState(
            events_left=state.events_left - len(gain_B),
            events=state.events + len(gain_B),
            gain_sum=state.gain_sum + float(gain_B.sum()),
            gain_squares=state.gain_squares + float(np.square(gain_B).sum()),
            errors=(float(errors_2[0]), float(errors_2[1])),
            curvatures=(float(curvatures_2[0]), float(curvatures_2[1])),
        )
        shifts_2 = errors_2**2 / (2 * np.maximum(curvatures_2, 1e-9))
        gain = state.gain_sum - float(shifts_2[0] - shifts_2[1])
        error = math.sqrt(max(state.gain_squares - state.gain_sum**2 / state.events, 0.0))
        clear = state.events >= _LEAST_EVENTS and gain > _STANDARD_ERRORS * error
        self.state = msgspec.structs.replace(state, events_left=0.0) if clear else state
        return clear
