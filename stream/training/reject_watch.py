"""Watch over the events that a trainer could not learn from.

In: polls. Out: lines of the log, at the first rejected event and then ever more rarely, and the end
of the trainer once most events are rejected: then the schema is wrong, and dead letters of a whole
topic help nobody.
"""

import logging
from collections import deque

from niwaki.stream.errors import TooManyRejects
from niwaki.stream.events.rejects import Tally
from niwaki.stream.kafka.reader import PolledBatch
from niwaki.stream.training.observers import Observer

log = logging.getLogger("niwaki")

WINDOW_EVENTS = 10_000
"""Events whose share of rejects is watched."""
_GROWTH = 10


class RejectWatch(Observer):
    """Logs rejects, and says when they are too many."""

    def __init__(self, topic: str, max_rejected_ratio: float):
        self._topic = topic
        self._limit = max_rejected_ratio
        self._tally = Tally()
        self._told_events = 0
        self._polls: deque[tuple[int, int]] = deque()
        self._events = self._rejected = 0
        self.too_many = False
        """True once the share of rejects in the last 10,000 events is above the limit."""

    def polled(self, polled: PolledBatch) -> None:
        """Count the events of a poll, and log rejects if that is due."""
        rejects = [reject._replace(place=record.place) for record, reject in polled.rejects]
        self._tally.add(len(polled.batch), rejects, polled.odd)
        rejected = sum(reject.events for reject in rejects)
        self._polls.append((len(polled.batch) + rejected, rejected))
        self._events += len(polled.batch) + rejected
        self._rejected += rejected
        while self._events - self._polls[0][0] >= WINDOW_EVENTS:
            oldest = self._polls.popleft()
            self._events -= oldest[0]
            self._rejected -= oldest[1]
        full = self._events >= WINDOW_EVENTS
        self.too_many |= full and self._rejected > self._limit * self._events
        found = self._tally.rejected + self._tally.odd_values
        if found and found >= _GROWTH * self._told_events:
            self._told_events = found
            for line in self._tally.lines():
                log.warning("%s", line)

    def check(self) -> None:
        """Raise `TooManyRejects` if rejects are too many."""
        if not self.too_many:
            return
        account = " ".join(line.strip() for line in self._tally.lines())
        raise TooManyRejects(
            f"{self._rejected:,} of the last {self._events:,} events of {self._topic} were"
            f" rejected, more than kafka.max_rejected_ratio = {self._limit:g}: is the schema"
            f" right? {account} `niwaki check --topic {self._topic}` shows the columns. All are"
            " dead letters; what was learned is saved"
        )
