"""The overlap of a topic with a recording that has been learned before it: the events that both
hold are left out of the topic, so that none is learned twice.

In: the events of the recording, then those of the topic, with their positions. Out: which ones of
the topic have been learned. The rule, by event time in whole microseconds:

    before the recording's last minute    left out: the recording is taken to be complete up to it
    in that minute, its end included      left out if the recording has an equal event, of the same
                                          time and with equal columns; once for each of those
    after the recording's end             learned

For a recording of a topic that goes on does not end everywhere at the same time: each partition was
read up to a moment of its own. Of each event that was left out in the last minute the place is
kept: after a restart the same one is left out, in whatever order the partitions are then read.

Shapes: B events.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b

import msgspec
import numpy as np

from niwaki.model.features.schema import EventBatch

log = logging.getLogger("niwaki.kafka")

LAST_US = 60 * 10**6
"""Length of the end of a recording in which events are told apart, microseconds."""
_TELL_EVERY_S = 30.0


class OverlapState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An overlap as a snapshot holds it."""

    end_us: int
    """Last event time of the recording, microseconds since the epoch."""
    last: bytes = b""
    """int64 fingerprints of the events of its last minute, without those that the topic had."""
    places: bytes = b""
    """int64 (places, 3): the places in the topic of those that it had."""


class Overlap:
    """The end of a recording, and the events that a topic has of it."""

    def __init__(self, state: OverlapState, *, clock: Callable[[], float] = time.monotonic):
        self.end_us = state.end_us
        """Last event time of the recording, microseconds since the epoch."""
        self.left_out = 0
        """Events of the topic that were left out, since this object was made."""
        self._last = Counter(np.frombuffer(state.last, np.int64).tolist())
        places = np.frombuffer(state.places, np.int64).reshape(-1, 3).tolist()
        self._places = set(map(tuple, places))
        self._clock = clock
        self._told = self._seen = 0
        self._told_s = clock()

    @property
    def state(self) -> OverlapState:
        """The state for a snapshot."""
        last, places = sorted(self._last.elements()), sorted(self._places)
        return OverlapState(
            end_us=self.end_us,
            last=np.array(last, np.int64).tobytes(),
            places=np.array(places, np.int64).tobytes(),
        )

    def record(self, batch: EventBatch) -> None:
        """Take in events of the recording."""
        last = np.flatnonzero(microseconds(batch) >= self.end_us - LAST_US)
        self._last.update(_fingerprints(batch, last))

    def learned(self, batch: EventBatch, after_B4: np.ndarray, new_B: np.ndarray) -> np.ndarray:
        """bool (B,): True for events of the topic that were learned from the recording. `after_B4`:
        see `PolledBatch`. `new_B`: bool (B,), the events that are asked about."""
        times_us_B = microseconds(batch)
        learned_B: np.ndarray = (times_us_B < self.end_us - LAST_US) & new_B
        in_last_B = (times_us_B >= self.end_us - LAST_US) & (times_us_B <= self.end_us)
        last = np.flatnonzero(in_last_B & new_B)
        if len(last):
            # What follows an event is its place: no other event has the same.
            places = map(tuple, after_B4[last, :3].tolist())
            for at, place, print_ in zip(
                last.tolist(), places, _fingerprints(batch, last), strict=True
            ):
                learned_B[at] = place in self._places
                if not learned_B[at] and self._last[print_]:
                    self._last[print_] -= 1
                    self._places.add(place)
                    learned_B[at] = True
        self.left_out += int(learned_B.sum())
        return learned_B

    def tell(self, *, last: bool = False) -> None:
        """Log how many events were left out, once no more come, or half a minute after the line
        before. For a call about every second, and with `last` at the end."""
        more, settled = self.left_out > self._told, self.left_out == self._seen
        self._seen = self.left_out
        due = last or settled and self.left_out >= 2 * self._told
        if more and (due or self._clock() - self._told_s >= _TELL_EVERY_S):
            self._told, self._told_s = self.left_out, self._clock()
            log.info(
                "%s events of the topic were left out so far, since they were learned from the"
                " recording, which ends at %s; of its last minute, %s of %s events were met",
                f"{self.left_out:,}",
                shown_time(self.end_us),
                f"{len(self._places):,}",
                f"{len(self._places) + self._last.total():,}",
            )


def microseconds(batch: EventBatch) -> np.ndarray:
    """int64 (B,) event times, microseconds since the epoch: finer than any two forms of the same
    time differ."""
    times_us_B: np.ndarray = np.rint(batch.times_s_B * 1e6).astype(np.int64)
    return times_us_B


def shown_time(time_us: int) -> str:
    """A time as text: ISO 8601, UTC, to the millisecond."""
    return f"{np.datetime64(time_us, 'us').astype('datetime64[ms]')}Z"


def _fingerprints(batch: EventBatch, at: np.ndarray) -> list[int]:
    """A number for each of the events `at`: equal where the time and all columns are."""
    if not len(at):
        return []
    events = batch.take(at)
    columns = [microseconds(events).tolist(), events.labels_B.tolist()]
    columns += [column.to_pylist() for column in (*events.categorical, *events.lists)]
    columns += (events.numerics_BN.T + np.float32(0)).tolist()  # of two zeros, one is negative
    return [
        int.from_bytes(blake2b(repr(row).encode(), digest_size=8).digest(), "big", signed=True)
        for row in zip(*columns, strict=True)
    ]
