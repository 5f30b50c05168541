"""The worth of the network beside the other experts, and its rests.

In: the logits of all experts for events that were not yet learned, the mixture's, and outcomes.
Out: whether the network rests: it does not learn then, and corrects nothing, until its rest is over
or the stream has changed.

A second mixture, of all experts but the network, learns beside the one that predicts. The mean
difference of their losses has a confidence sequence, which holds at all times at once, so that the
test may be repeated with each batch (asymptotic confidence sequences: Waudby-Smith, Arbel, Sinha,
Kennedy & Ramdas, arXiv:2103.06476). Once its upper end is below the share of the loss that is asked
for, the network rests; each rest is twice as long as the one before.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch

from niwaki.model.evaluation import log_losses
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.mixture.mixture import Mixture, mix

_ERROR_RATE = 0.05
_USUAL_BATCHES = 1_000
"""Number of batches at which the confidence sequence is narrowest."""
_LEAST_BATCHES = 50
_FIRST_EVENTS = 10_000
"""Events in which a network that begins to learn is not judged."""
_LONGEST_STRETCH_EVENTS = 500_000
"""Events after which the judgement begins anew, so that it is one of today."""
_REST_EVENTS = 200_000
_LONGEST_REST = 3
"""Rests double this many times at the most."""
_SUMS = ("batches", "gain", "squares", "loss", "events", "left", "rests")


class NetworkMerit:
    """The gain of the network, and its rests."""

    def __init__(self, without: Mixture, least_ratio: float):
        """`without`: a mixture of all experts but the network, as it begins. `least_ratio`: share
        of the loss that the network has to save, >= 0."""
        self.without = without
        self._least_ratio = least_ratio
        self.batches = 0.0
        self.gain = 0.0
        """Sum over batches of the mean loss that the network saves, nats."""
        self.squares = 0.0
        self.loss = 0.0
        """Sum over batches of the mean loss without it, nats."""
        self.events = 0.0
        """Events since it last began to learn, or since the judgement began anew."""
        self.left = 0.0
        """Events that are left of a rest; 0: it learns."""
        self.rests = 0.0
        """Rests in a row."""

    @property
    def resting(self) -> bool:
        """True while the network rests."""
        return self.left > 0

    @property
    def gain_ratio(self) -> float:
        """Share of the loss that the network has saved since its judgement began; NaN: it has not
        begun."""
        return self.gain / self.loss if self.loss else math.nan

    def update(
        self, experts_BE: np.ndarray, logits_B: np.ndarray, outcomes: Outcomes, *, judged: bool
    ) -> None:
        """Count B events, predicted and not yet learned. `experts_BE`: the network's logits are the
        last column. `logits_B`: of the mixture of all. `judged`: False: the network may not rest
        now, whatever it is worth."""
        others_BE = experts_BE[:, :-1]
        without_B = mix(self.without.weights, others_BE)
        self.without.update(others_BE, outcomes)
        if self.resting:
            self.left = max(self.left - len(logits_B), 0.0)
            if not self.left:
                self._begin()
            return
        self.events += len(logits_B)
        if self.events <= _FIRST_EVENTS:
            return
        weights_B = outcomes.whole_B.astype(np.float64)
        total = max(float(weights_B.sum()), 1e-9)
        losses_B = log_losses(without_B, outcomes.labels_B)
        gain_B = losses_B - log_losses(logits_B, outcomes.labels_B)
        gain = float(weights_B @ gain_B) / total
        self.batches += 1
        self.gain += gain
        self.squares += gain * gain
        self.loss += float(weights_B @ losses_B) / total
        if judged and self._says_nothing():
            self.left = float(_REST_EVENTS * 2 ** min(self.rests, _LONGEST_REST))
            self.rests += 1
        elif self.events > _LONGEST_STRETCH_EVENTS:
            self._begin()
            self.events = float(_FIRST_EVENTS)
            self.rests = 0.0

    def wake(self) -> None:
        """Let the network learn, since the stream has changed, or since it is about to be pruned or
        grown."""
        if self.resting:
            self.left = self.rests = 0.0
            self._begin()

    def state(self) -> dict[str, torch.Tensor]:
        """Everything, for a snapshot."""
        sums = torch.tensor([getattr(self, name) for name in _SUMS], dtype=torch.float64)
        mixture = self.without.state().items()
        return {"sums": sums} | {f"without.{name}": torch.from_numpy(a) for name, a in mixture}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue where `state` was taken."""
        for name, value in zip(_SUMS, tensors["sums"].tolist(), strict=True):
            setattr(self, name, value)
        prefix = "without."
        self.without.restore(
            {n.removeprefix(prefix): t.numpy() for n, t in tensors.items() if n.startswith(prefix)}
        )

    def _begin(self) -> None:
        self.batches = self.gain = self.squares = self.loss = self.events = 0.0

    def _says_nothing(self) -> bool:
        """True once it is clear that the network saves less than it has to."""
        n = self.batches
        if n < _LEAST_BATCHES:
            return False
        mean = self.gain / n
        deviation = math.sqrt(max(self.squares / n - mean * mean, 1e-12))
        logarithm = -2 * math.log(_ERROR_RATE)
        scale = (logarithm + math.log(logarithm) + 1) / _USUAL_BATCHES
        grown = n * scale + 1
        bound = math.sqrt(2 * grown / (n * n * scale) * math.log(math.sqrt(grown) / _ERROR_RATE))
        return mean + deviation * bound < self._least_ratio * self.loss / n
