"""Whether old evidence misleads: asked after a drift, answered by what the time scales of the
linear expert predict.

In: the logits of all scales for one batch after another, before it is learned. Out: one verdict at
most for each drift. A detector fires for a burst of strange events, too, after which the old
evidence is as good as ever. So it is given up only where the second scale, which has forgotten more
of it, predicts better than the first one by three standard errors: a paired test on the events
since the drift, repeated with each batch. What a constant shift of each scale's logits would mend
(Rao's score statistic) does not count: a new base rate, or items that nobody knows yet, say nothing
against what has been learned of all others.
"""

import numpy as np

from niwaki.model.evaluation import log_losses

_LEAST_EVENTS = 500
_STANDARD_ERRORS = 3.0


class EvidenceCheck:
    """Watches for a number of events after a drift."""

    def __init__(self) -> None:
        self.counts = np.zeros(8)
        """Events left to watch; of those watched their number, and the sums of differences in loss
        and of squares; for each of the two scales the sums of errors and of curvatures."""

    def begin(self, events: int) -> None:
        """A drift was noticed: watch the next `events` events."""
        self.counts[:] = 0
        self.counts[0] = events

    def confirmed(self, logits_BK: np.ndarray, labels_B: np.ndarray) -> bool:
        """Whether it is clear by now that the first scale's evidence misleads; the watch is then
        over."""
        left = self.counts[0]
        if left <= 0 or logits_BK.shape[1] < 2:
            return False
        gain_B = log_losses(logits_BK[:, 0], labels_B) - log_losses(logits_BK[:, 1], labels_B)
        p_B2 = 1 / (1 + np.exp(-logits_BK[:, :2].astype(np.float64)))
        errors_2, curvatures_2 = (p_B2 - labels_B[:, None]).sum(0), (p_B2 * (1 - p_B2)).sum(0)
        self.counts += (
            -len(gain_B),
            len(gain_B),
            gain_B.sum(),
            np.square(gain_B).sum(),
            *errors_2,
            *curvatures_2,
        )
        _, events, total, squares = self.counts[:4]
        shifts_2 = self.counts[4:6] ** 2 / (2 * np.maximum(self.counts[6:], 1e-9))
        error = np.sqrt(max(squares - total**2 / events, 0.0))
        clear = (
            events >= _LEAST_EVENTS
            and total - (shifts_2[0] - shifts_2[1]) > _STANDARD_ERRORS * error
        )
        if clear:
            self.counts[0] = 0
        return bool(clear)
