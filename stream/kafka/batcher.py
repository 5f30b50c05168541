"""Events that were polled, cut into batches to learn; rejected messages go to the dead letters.

In: a `PolledBatch` for each poll. Out: a `ReadyBatch` of exactly `batch_events` events, or of fewer
when the first of them has waited long enough. Events that a recording had are left out.
Equal events make equal batches, whichever way they were polled. Positions travel with their batch,
so that the learner can save both as one. A rejected message is dead-lettered once the positions
have passed it, so that a restart from them never finds it again. A batcher commits nothing.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from niwaki.model.features.schema import EventBatch
from niwaki.stream.events.rejects import Reject
from niwaki.stream.kafka.overlap import Overlap
from niwaki.stream.kafka.reader import EventReader, PolledBatch, Positions
from niwaki.stream.kafka.source import DeadLetters, Record

_READ_WAIT_S = 0.1


class ReadyBatch(NamedTuple):
    """One batch, and the positions that hold once it is learned."""

    batch: EventBatch
    positions: Positions


class Batcher:
    """Cuts polled events into batches, and dead-letters what could not be decoded."""

    def __init__(
        self,
        reader: EventReader,
        dead_letters: DeadLetters,
        *,
        batch_events: int,
        max_batch_age_s: float,
        on_polled: Callable[[PolledBatch], None] = lambda polled: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`on_polled` is called with each polled batch, before its events are cut."""
        self._reader = reader
        self._dead_letters = dead_letters
        self._on_polled = on_polled
        self._batch_events = batch_events
        self._max_batch_age_s = max_batch_age_s
        self._clock = clock
        self._waiting: list[tuple[EventBatch, np.ndarray]] = []  # each with its `after_B4`
        self._since_s = 0.0
        self._positions = Positions()
        self._overlap: Overlap | None = None
        self._polled: dict[int, int] = {}
        self._rejects: dict[int, deque[tuple[Record, Reject]]] = {}  # by partition, not passed yet
        self.waiting = 0
        """Events that are polled and in no batch yet."""
        self.rejected_events = 0
        """Events rejected so far."""

    def resume(self, positions: Positions, overlap: Overlap | None = None) -> None:
        """Begin at `positions`; a partition without a position begins where the source's
        configuration says. Events that are in the `overlap` with a recording are left out."""
        self._reader.start(positions.offsets)
        self._positions = positions
        self._overlap = overlap

    @property
    def positions(self) -> Positions:
        """The positions that hold now: in each partition, behind all that is in a batch or a dead
        letter, and before the first event that waits."""
        return self._positions

    def receive(self, last: bool = False) -> ReadyBatch | None:
        """The next batch, after a short wait at most; None if none is due. `last`: no more events
        will come, so a batch of any size is due."""
        wait_s = 0.0 if last else _READ_WAIT_S
        while (
            not last and self.waiting < self._batch_events and (polled := self._reader.read(wait_s))
        ):
            waiting = self.waiting
            self._take(polled)
            wait_s = 0.0  # more may be there already
            if self.waiting == waiting:  # a topic may hold nothing but rejects
                break
        waited_s = self._clock() - self._since_s
        if self.waiting >= self._batch_events or (
            self.waiting and (last or waited_s >= self._max_batch_age_s)
        ):
            return self._cut()
        return None

    def lag(self) -> dict[int, int]:
        """By partition, the number of messages that are in no batch yet, as of the last fetch;
        partitions with an unknown end are left out."""
        behind = self._reached()
        return {p: max(0, end - behind.get(p, end)) for p, end in self._reader.ends.items()}

    def _reached(self) -> dict[int, int]:
        """By partition, the offset of the first message with an event that waits; where none does,
        that of the next message to be polled."""
        reached = dict(self._polled)
        for _, after_B4 in reversed(self._waiting):
            backwards_B4 = after_B4[::-1]  # what is written last, the first event's, stays
            first_P = np.full(backwards_B4[:, 0].max() + 1, -1)
            first_P[backwards_B4[:, 0]] = backwards_B4[:, 3]
            reached |= {p: offset for p, offset in enumerate(first_P.tolist()) if offset >= 0}
        return reached

    def _take(self, polled: PolledBatch) -> None:
        self._on_polled(polled)
        for record, reject in polled.rejects:
            self._rejects.setdefault(record.partition, deque()).append((record, reject))
            self.rejected_events += reject.events
        self._polled |= polled.polled
        self._keep(polled)
        self._advance()

    def _keep(self, polled: PolledBatch) -> None:
        """Let the events that are not learned yet wait for their batch."""
        batch, after_B4 = polled.batch, polled.after_B4
        new_B = ~self._learned(after_B4)
        if self._overlap is not None:
            new_B &= ~self._overlap.learned(batch, after_B4, new_B)
        new = np.flatnonzero(new_B)
        if not len(new):
            return
        if len(new) < len(batch):  # a restart in the middle of a message, or an overlap
            runs = np.split(new, np.flatnonzero(np.diff(new) > 1) + 1)
            batch = EventBatch.concat([batch.slice(int(run[0]), int(run[-1]) + 1) for run in runs])
            after_B4 = after_B4[new]
        if not self.waiting:
            self._since_s = self._clock()
        self._waiting.append((batch, after_B4))
        self.waiting += len(batch)

    def _learned(self, after_B4: np.ndarray) -> np.ndarray:
        """bool (B,): True for events that were learned before a restart in the middle of their
        message."""
        learned_B = np.zeros(len(after_B4), bool)
        for partition, skip in self._positions.skips.items():
            here = (after_B4[:, 0] == partition) & (
                after_B4[:, 3] == self._positions.offsets[partition]
            )
            learned_B |= here & (np.cumsum(here) <= skip)
        return learned_B

    def _cut(self) -> ReadyBatch:
        size = min(self._batch_events, self.waiting)
        if len(self._waiting) > 1:
            batches, afters = zip(*self._waiting, strict=True)
            self._waiting = [(EventBatch.concat(batches), np.concatenate(afters))]
        ((events, after_B4),) = self._waiting
        taken_B4, left_B4 = after_B4[:size], after_B4[size:]
        offsets, skips = dict(self._positions.offsets), dict(self._positions.skips)
        for partition in np.unique(taken_B4[:, 0]).tolist():
            last_4 = taken_B4[taken_B4[:, 0] == partition][-1].tolist()
            offsets[partition], skips[partition] = last_4[1], last_4[2]
        self._positions = _positions(offsets, skips)
        self._waiting = [(events.slice(size, self.waiting), left_B4)] if len(left_B4) else []
        self.waiting -= size
        self._since_s = self._clock()
        self._advance()
        return ReadyBatch(events.slice(0, size), self._positions)

    def _advance(self) -> None:
        """Move the positions behind what is done, up to the first event that waits, and write the
        dead letters that they pass."""
        offsets, skips = dict(self._positions.offsets), dict(self._positions.skips)
        for partition, offset in self._reached().items():
            if offset != offsets.get(partition):  # else it may be in the middle of its message
                offsets[partition], skips[partition] = offset, 0
            rejects = self._rejects.get(partition)
            while rejects and rejects[0][0].offset < offset:
                self._dead_letters.send(*rejects.popleft())
        self._positions = _positions(offsets, skips)


def _positions(offsets: dict[int, int], skips: dict[int, int]) -> Positions:
    return Positions(offsets=offsets, skips={p: skip for p, skip in skips.items() if skip})
