"""Chunks of events, those of several files as one stream in the order of event time, and batches
of them.

Each file is taken to be in order itself; an event that is earlier than one before it in its file
stays behind that one. A file is opened when the stream has come to its beginning, so files that
follow one another are read one after the other, and memory holds one chunk of each file that is
open.

Shapes: B events.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from niwaki.model.features.schema import EventBatch
from niwaki.model.features.values import Odd
from niwaki.stream.events.rejects import Reject


class Chunk(NamedTuple):
    """Some of the events of a recording, in order."""

    batch: EventBatch
    rejects: list[Reject]
    """The rows that were left out between these events and those before them."""
    odd: list[Odd]


P = TypeVar("P")


class _OpenFile:
    """A file that is being read."""

    def __init__(self, chunks: Iterator[Chunk]):
        self._chunks = chunks
        self._latest_s = -np.inf
        self.batch: EventBatch | None = None
        """Events that were read and not passed on; None at the end of the file."""
        self.latest_s_B = np.empty(0)
        """For each of them, the latest event time up to it, seconds."""

    def refill(self) -> Iterator[Chunk]:
        """Read on until there are events, or the file ends; yields what was left out."""
        self.batch = None
        for chunk in self._chunks:
            if chunk.rejects or chunk.odd:
                yield chunk._replace(batch=chunk.batch.slice(0, 0))
            if len(chunk.batch):
                self.batch = chunk.batch
                times_s_B = np.maximum(chunk.batch.times_s_B, self._latest_s)
                self.latest_s_B = np.maximum.accumulate(times_s_B)
                self._latest_s = float(self.latest_s_B[-1])
                return

    def take(self, until_s: float) -> tuple[EventBatch, np.ndarray]:
        """The events up to a time, with the latest time up to each of them."""
        assert self.batch is not None
        count = int(np.searchsorted(self.latest_s_B, until_s, "right"))
        taken = self.batch.slice(0, count), self.latest_s_B[:count]
        self.batch = self.batch.slice(count, len(self.batch))
        self.latest_s_B = self.latest_s_B[count:]
        return taken


def in_order_of_time(
    begins: Sequence[tuple[float, P]], open_part: Callable[[P], Iterator[Chunk]]
) -> Iterator[Chunk]:
    """The chunks of all parts as one stream. `begins`: each part with its first event time,
    seconds."""
    closed = sorted(begins, key=lambda begin: begin[0])
    opened: list[_OpenFile] = []
    while closed or opened:
        until_s = min((float(one.latest_s_B[-1]) for one in opened), default=np.inf)
        if closed and (not opened or closed[0][0] <= until_s):
            opened.append(_OpenFile(open_part(closed.pop(0)[1])))
        else:
            batches, latest_s = zip(*(one.take(until_s) for one in opened), strict=True)
            order_B = np.argsort(np.concatenate(latest_s), kind="stable")
            yield Chunk(EventBatch.concat(batches).take(order_B), [], [])
        for one in opened:
            if one.batch is None or not len(one.batch):
                yield from one.refill()
        opened = [one for one in opened if one.batch is not None]


def rebatch(
    chunks: Iterable[EventBatch], batch_events: int, limit_events: int | None = None
) -> Iterator[EventBatch]:
    """Events of `chunks` in batches of exactly `batch_events`, except for the last one;
    `limit_events` in all."""
    left = None
    remaining = limit_events
    for chunk in chunks:
        if remaining is not None:
            chunk = chunk.slice(0, min(len(chunk), remaining))
            remaining -= len(chunk)
        events = EventBatch.concat([left, chunk]) if left is not None and len(left) else chunk
        whole = len(events) - len(events) % batch_events
        for start in range(0, whole, batch_events):
            yield events.slice(start, start + batch_events)
        left = events.slice(whole, len(events))
        if remaining == 0:
            break
    if left is not None and len(left):
        yield left
