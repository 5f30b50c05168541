"""From Kafka records to batches: poll, decode, dead-letter, cut into batches, and say where the stream stands after
each.

In: records of the partitions that are ours. Out: `Received` batches of exactly `batch_events` events, or fewer when
the first has waited long enough. Positions travel with their batch, so that whoever learns it can save both as one.
It commits nothing.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from model.features import EventBatch
from stream.broker import DeadLetters, EventSource
from stream.events import EventDecoder, Reject
from stream.snapshot import Positions

_POLL_S = 0.1


class Received(NamedTuple):
    """One batch, and how far the stream has been read with it."""

    batch: EventBatch
    positions: Positions


class Intake:
    """Cuts the events of one source into batches."""

    def __init__(
        self,
        source: EventSource,
        decoder: EventDecoder,
        dead_letters: DeadLetters,
        *,
        batch_events: int,
        max_batch_age_s: float,
        on_reject: Callable[[Reject], None] = lambda reject: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._source, self._decoder, self._dead_letters, self._on_reject = source, decoder, dead_letters, on_reject
        self._batch_events, self._max_batch_age_s, self._clock = batch_events, max_batch_age_s, clock
        self._events: EventBatch | None = None
        self._after_B4 = np.empty((0, 4), np.int64)  # of each event that waits, see `_after`
        self._since_s = 0.0
        self._positions = Positions()
        self._polled: dict[int, int] = {}
        self.rejected_events = 0
        """Events dead-lettered so far."""

    def resume(self, positions: Positions) -> None:
        """Begin at `positions`; partitions that it does not name begin where the source's configuration says."""
        if positions.offsets:
            self._source.seek(positions.offsets)
        self._positions = positions

    @property
    def waiting(self) -> int:
        """Events polled that no batch has held yet."""
        return len(self._events) if self._events else 0

    def receive(self, last: bool = False) -> Received | None:
        """The next batch, after one poll at most; None if none is due. `last`: nothing more will come, so any batch
        is due."""
        if self.waiting < self._batch_events and not last:
            self._poll()
        waited_s = self._clock() - self._since_s
        if self.waiting >= self._batch_events or (self.waiting and (last or waited_s >= self._max_batch_age_s)):
            return self._cut()
        return None

    def _poll(self) -> None:
        records = self._source.poll(_POLL_S)
        if not records:
            return
        batch, message_B, rejects = self._decoder.decode([record.value for record in records])
        for reject in rejects:
            self._dead_letters.send(records[reject.index], reject.reason)
            self._on_reject(reject)
            self.rejected_events += reject.events
        self._polled |= {record.partition: record.offset + 1 for record in records}
        after_B4 = _after(np.array([(r.partition, r.offset) for r in records], np.int64)[message_B], message_B)
        new = np.flatnonzero(~self._learned(after_B4))
        if not len(new):
            return
        if len(new) < len(batch):  # the first poll after a restart in the middle of a message
            runs = np.split(new, np.flatnonzero(np.diff(new) > 1) + 1)
            batch = EventBatch.concat([batch.slice(int(run[0]), int(run[-1]) + 1) for run in runs])
            after_B4 = after_B4[new]
        if not self.waiting:
            self._since_s = self._clock()
        self._events = EventBatch.concat([self._events, batch]) if self.waiting else batch
        self._after_B4 = np.concatenate([self._after_B4, after_B4])

    def _learned(self, after_B4: np.ndarray) -> np.ndarray:
        """(B,) bool: events of a message that the positions stand in the middle of, and that come before them."""
        learned_B = np.zeros(len(after_B4), bool)
        for partition, skip in self._positions.skips.items():
            here = (after_B4[:, 0] == partition) & (after_B4[:, 3] == self._positions.offsets[partition])
            learned_B |= here & (np.cumsum(here) <= skip)
        return learned_B

    def _cut(self) -> Received:
        size = min(self._batch_events, self.waiting)
        offsets, skips = dict(self._positions.offsets), dict(self._positions.skips)
        taken_B4, self._after_B4 = self._after_B4[:size], self._after_B4[size:]
        for partition in np.unique(taken_B4[:, 0]).tolist():
            _, offsets[partition], skips[partition], _ = taken_B4[taken_B4[:, 0] == partition][-1].tolist()
        for partition in self._polled.keys() - set(self._after_B4[:, 0].tolist()):
            offsets[partition], skips[partition] = self._polled[partition], 0  # past dead letters at its end, too
        self._positions = Positions(offsets=offsets, skips={p: skip for p, skip in skips.items() if skip})
        batch, self._events = self._events.slice(0, size), self._events.slice(size, self.waiting)
        self._since_s = self._clock()
        return Received(batch, self._positions)


def _after(places_B2: np.ndarray, message_B: np.ndarray) -> np.ndarray:
    """(B, 4): partition, next offset, and events of that message to skip, once an event is learned; then its own
    offset.

    `places_B2`: partition and offset of each event's message. `message_B`: which message that is; equal ones are
    neighbours.
    """
    at_B = np.arange(len(message_B))
    first_B = np.diff(message_B, prepend=-1) != 0
    last_B = np.append(first_B[1:], True)[: len(message_B)]
    rank_B = at_B - np.maximum.accumulate(np.where(first_B, at_B, 0)) if len(at_B) else at_B
    partition_B, offset_B = places_B2[:, 0], places_B2[:, 1]
    return np.stack([partition_B, offset_B + last_B, np.where(last_B, 0, rank_B + 1), offset_B], 1)
