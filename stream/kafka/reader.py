"""Poll and decode: from the messages of a topic to columns of events with their positions.

First stage of the walk. In: records of the partitions that this trainer reads. Out: a `PolledBatch`
for each poll that brought any, or moved a position. `Reader` works in the calling process;
`reader_process` runs one beside the learner. A reader learns nothing, cuts no batches and commits
nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from niwaki.model.features.schema import EventBatch
from niwaki.model.features.values import Odd
from niwaki.stream.events.rejects import Reject
from niwaki.stream.kafka.registry import MessageDecoder
from niwaki.stream.kafka.source import EventSource, Record


class Positions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The place in the stream up to which events have been learned."""

    offsets: dict[int, int] = {}
    """By partition, the offset of the next message."""
    skips: dict[int, int] = {}
    """By partition, the number of events of that message that have been learned already (a message
    may carry many)."""


class PolledBatch(NamedTuple):
    """The decoded messages of one poll."""

    batch: EventBatch
    after_B4: np.ndarray
    """int64 (B, 4). For each event: its partition; the offset at which to continue once the event
    is learned; the number of events of that message to skip then; the offset of its own message."""
    rejects: list[tuple[Record, Reject]]
    """Records that could not be decoded, in order, each with the reason."""
    odd: list[Odd]
    """Text in numeric columns that is no number; it counts as missing."""
    polled: dict[int, int]
    """By partition whose position has moved, the offset at which the next poll goes on: after its
    last message, and after what no reader is given, such as markers of transactions."""
    messages: int
    size_bytes: int
    """Total size of the values."""


class EventReader(Protocol):
    """A source of decoded events, for a `Batcher`."""

    topic: str

    @property
    def ends(self) -> Mapping[int, int]:
        """By partition, the offset after its last message, as of the last fetch."""

    def start(self, offsets: Mapping[int, int]) -> None:
        """Begin at these offsets; see `EventSource.seek`. Without any, see `KafkaConfig.start`."""

    def read(self, timeout_s: float) -> PolledBatch | None:
        """The next events, in order within each partition, or positions that moved without any;
        None if neither came in time."""

    def close(self) -> None:
        """Disconnect."""


class Reader:
    """An `EventReader` that polls and decodes in the calling process."""

    def __init__(self, source: EventSource, decoder: MessageDecoder):
        self._source = source
        self._decoder = decoder
        self._told: dict[int, int] = {}
        self._held: list[Record] = []  # polled, and to be decoded before any other
        self.topic = source.topic

    @property
    def ends(self) -> Mapping[int, int]:
        return self._source.ends

    def start(self, offsets: Mapping[int, int]) -> None:
        self._held = []
        if offsets:
            self._source.seek(offsets)

    def read(self, timeout_s: float) -> PolledBatch | None:
        records = self._held or self._source.poll(timeout_s)
        positions = self._source.positions
        moved = {p: offset for p, offset in positions.items() if self._told.get(p) != offset}
        if not records and not moved:
            return None
        values = [record.value for record in records]
        decoded = self._decoder.decode(values)
        self._held = records if decoded is None else []
        if decoded is None:
            return None
        self._told = positions
        places = [(record.partition, record.offset) for record in records]
        places_M2 = np.array(places, np.int64).reshape(len(places), 2)
        return PolledBatch(
            decoded.batch,
            _after(places_M2[decoded.message_B], decoded.message_B),
            [(records[reject.position], reject) for reject in decoded.rejects],
            decoded.odd,
            moved,
            len(records),
            sum(len(value) for value in values if value),
        )

    def close(self) -> None:
        self._source.close()


def _after(places_B2: np.ndarray, message_B: np.ndarray) -> np.ndarray:
    """Positions after each event, as in `PolledBatch.after_B4`.

    `places_B2`: partition and offset of each event's message. `message_B`: number of each event's
    message; events of one message are neighbours.
    """
    at_B = np.arange(len(message_B))
    first_B = np.diff(message_B, prepend=-1) != 0
    last_B = np.append(first_B[1:], True)[: len(message_B)]
    rank_B = at_B - np.maximum.accumulate(np.where(first_B, at_B, 0)) if len(at_B) else at_B
    partition_B, offset_B = places_B2[:, 0], places_B2[:, 1]
    return np.stack([partition_B, offset_B + last_B, np.where(last_B, 0, rank_B + 1), offset_B], 1)
