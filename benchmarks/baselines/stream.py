"""A whole recording in memory, in the forms that systems read, and the interface of a system.

Lists are a part of it: as words for models that read text, and as rows of tables with offsets for
networks. All forms are made once for all systems.

Shapes: B events, V values of a list column.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from niwaki.model.config import LearnerConfig
from niwaki.model.features.encoder import Encoder, HashedEvents
from niwaki.model.features.lists import flat_list
from niwaki.model.features.schema import EventBatch, Schema

_ENCODED_EVENTS = 8_192


class Words(NamedTuple):
    """The values of one list column, each different one once; a list that is missing has none."""

    distinct: list[str]
    indices_V: np.ndarray
    """int64, the place of each value in `distinct`, event by event."""
    weights_V: np.ndarray
    """float32, 1 in a list without weights."""
    offsets: np.ndarray
    """int64 (B + 1,)."""

    @classmethod
    def of(cls, column: pa.Array) -> "Words":
        """The values of a list column of a batch."""
        values, weights_V, offsets, _ = flat_list(column)
        encoded = values.dictionary_encode()
        indices_V = encoded.indices.to_numpy().astype(np.int64)
        return cls(encoded.dictionary.to_pylist(), indices_V, weights_V, offsets)

    def at(self, i: int) -> Iterator[tuple[int, float]]:
        """Of event i, the place in `distinct` and the weight of each value."""
        part = slice(self.offsets[i], self.offsets[i + 1])
        return zip(self.indices_V[part].tolist(), self.weights_V[part].tolist(), strict=True)


@dataclass(frozen=True)
class Stream:
    """Events to learn from, in order. The forms that systems read are made once."""

    name: str
    schema: Schema
    events: EventBatch

    @cached_property
    def categories(self) -> list[list[str | None]]:
        """By column of `schema.categorical`: the values."""
        return [column.to_pylist() for column in self.events.categorical]

    @cached_property
    def words(self) -> list[Words]:
        """By column of `schema.lists`: the values."""
        return [Words.of(column) for column in self.events.lists]

    @cached_property
    def hashed(self) -> HashedEvents:
        """The rows of fields and lists in niwaki's tables, and the numerics."""
        encoder = Encoder(self.schema, rows=LearnerConfig().table_rows)
        starts = range(0, len(self.events), _ENCODED_EVENTS)
        return HashedEvents.concat(
            [
                encoder.encode(self.events.slice(s, min(s + _ENCODED_EVENTS, len(self.events))))
                for s in starts
            ]
        )

    @cached_property
    def candidate(self) -> str | None:
        """The column that stands for what may be clicked: the one whose embeddings most lists
        share; where no list shares any, the one with most different values. None: no column."""
        shared = Counter(of for name, of in self.schema.shares.items() if name in self.schema.lists)
        if shared:
            return shared.most_common(1)[0][0]
        counts = [pc.count_distinct(column).as_py() for column in self.events.categorical]
        return self.schema.categorical[int(np.argmax(counts))] if counts else None

    def without_lists(self) -> "Stream":
        """This stream with no list columns."""
        batch = self.events
        events = EventBatch(batch.labels_B, batch.times_s_B, batch.categorical, batch.numerics_BN)
        return Stream(self.name, without_lists(self.schema), events)


class System(Protocol):
    """A click model under test."""

    def predict(self, start: int, stop: int) -> np.ndarray:
        """Logits of events `start` to `stop` (exclusive)."""

    def learn(self, start: int, stop: int) -> None:
        """Learn those events; called once for each, in order."""


def without_lists(schema: Schema) -> Schema:
    """A schema that ignores the list columns."""
    shares = {name: of for name, of in schema.shares.items() if name not in schema.lists}
    ignore = (*schema.ignore, *schema.lists)
    return msgspec.structs.replace(schema, lists=(), shares=shares, ignore=ignore)


def one_stream(
    name: str, schema: Schema, batches: list[EventBatch], limit_events: int | None
) -> Stream:
    """All of `batches` as a `Stream`, or the first `limit_events`."""
    events = EventBatch.concat(batches)
    events = events.slice(0, min(len(events), limit_events or len(events)))
    categorical, lists = (
        tuple(pa.concat_arrays([column]) for column in columns)
        for columns in (events.categorical, events.lists)
    )
    batch = EventBatch(events.labels_B, events.times_s_B, categorical, events.numerics_BN, lists)
    return Stream(name, schema, batch)
