"""Events that were not learned, since the loss or a gradient of their step was not finite.

In: a batch, and the spans of it that the learner refused. Out: the events that were learned, and
the others with the reason. They change no weight, and count as passed: a restart does not read them
again. So many batches of them in a row that the model must be at fault stop the trainer.
"""

from typing import NamedTuple

import numpy as np

from niwaki.model.errors import LearnError
from niwaki.model.features.schema import EventBatch
from niwaki.model.step import Refused


class Quarantined(NamedTuple):
    """Events that were not learned."""

    events: EventBatch
    """As they came."""
    reason: str


class Quarantine:
    """Counts what is set aside."""

    def __init__(self, most_batches: int):
        """`most_batches`: in a row, >= 1, with which the trainer must stop."""
        self.events = 0
        """Events set aside."""
        self.batches_in_a_row = 0
        """Batches of which nothing was learned since the last event that was."""
        self._most_batches = most_batches

    def set_aside(
        self, batch: EventBatch, refused: list[Refused], came: EventBatch
    ) -> tuple[EventBatch, list[Quarantined]]:
        """The events of a batch that were learned, and the others, as they came."""
        if not refused:
            self.batches_in_a_row = 0
            return batch, []
        learned_B = np.ones(len(batch), bool)
        others = []
        for start, stop, reason in refused:
            learned_B[start:stop] = False
            others.append(Quarantined(came.slice(start, stop), reason))
        self.events += int(np.count_nonzero(~learned_B))
        self.batches_in_a_row = 0 if learned_B.any() else self.batches_in_a_row + 1
        return batch.take(np.flatnonzero(learned_B)), others

    @property
    def must_stop(self) -> bool:
        """True where so many batches in a row were set aside that the model, and not they, must be
        at fault."""
        return self.batches_in_a_row >= self._most_batches

    def check(self, event: int) -> None:
        """Raise `LearnError` where the trainer `must_stop`. `event`: events learned."""
        if self.must_stop:
            raise LearnError(
                f"{self.batches_in_a_row} batches in a row were quarantined"
                f" (training.max_quarantined_batches): stopped at event {event}, after which"
                " nothing was learned"
            )
