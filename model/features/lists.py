"""Lists of values on their way to the model: flat rows of tables, with offsets as in Arrow.

In: a list column of a batch, hashed by `niwaki.model.features.encoder`. Out: `ListRows` for the
experts, and `ListSlots` of all lists for the linear expert. Nothing is padded. A list that is
missing, and one that is empty, each have one value, which stands for that, so that every list has a
mean.

Shapes: B events, L lists of each event, V values of one list column, X values of all of them.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from niwaki.model.features.hashing import mix_bits
from niwaki.model.jit import kernel

_NONE = np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64)


class ListRows(NamedTuple):
    """The values of one list column for B events."""

    rows_V: np.ndarray
    """int64, rows of the values in the linear expert's table, event by event."""
    embedded_V: np.ndarray
    """int64, their rows in the embedding tables; the same, unless the list shares a column's."""
    shares_V: np.ndarray
    """float32, the share of each value in the mean of its list; they sum to 1."""
    offsets: np.ndarray
    """int64 (B + 1,): the values of event b are those from `offsets[b]` to `offsets[b + 1]`."""

    @property
    def pooled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`embedded_V`, `shares_V` and `offsets`, by which vectors are made."""
        return self.embedded_V, self.shares_V, self.offsets

    def part(self, start: int, stop: int) -> "ListRows":
        """Events `start` to `stop` (exclusive), as views."""
        return self._replace(offsets=self.offsets[start : stop + 1])

    def repeat(self, events: int) -> "ListRows":
        """So many events that all have the list of the one event here."""
        flat = (np.tile(part, events) for part in self[:3])
        return ListRows._make([*flat, len(self.rows_V) * np.arange(events + 1)])

    @classmethod
    def concat(cls, parts: Sequence["ListRows"]) -> "ListRows":
        """The events of `parts`, one after the other."""
        spans = [slice(part.offsets[0], part.offsets[-1]) for part in parts]
        counts = np.concatenate([np.diff(part.offsets) for part in parts])

        def flat(column: int) -> np.ndarray:
            return np.concatenate([p[column][span] for p, span in zip(parts, spans, strict=True)])

        return cls(flat(0), flat(1), flat(2), np.concatenate([[0], np.cumsum(counts)]))


class ListSlots(NamedTuple):
    """The values of all lists of B events as the linear expert reads them, event by event."""

    rows_X: np.ndarray
    """int64, rows of its table."""
    values_X: np.ndarray
    """float32, the share of each value in the mean of its list."""
    slots_X: np.ndarray
    """int64, the slot of each value's list."""
    offsets: np.ndarray
    """int64 (B + 1,)."""

    @classmethod
    def of(
        cls,
        lists: Sequence[ListRows],
        first_slot: int,
        hashes_BF: np.ndarray,
        crossed: "Crossed",
    ) -> "ListSlots":
        """The slots of `lists`, the first of which has the slot `first_slot`; after them those of
        the pairs of lists with fields. `hashes_BF`: see `HashedEvents`."""
        events = len(hashes_BF)
        if not lists:
            return no_lists(events)
        pairs = crossed.fields_Q2.tolist()
        counts_B = np.zeros(events, np.int64)
        for rows in (*lists, *(lists[place] for _, place in pairs)):
            counts_B += np.diff(rows.offsets)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts_B)])
        size = int(offsets[-1])
        slots = cls(
            np.empty(size, np.int64), np.empty(size, np.float32), np.empty(size, np.int64), offsets
        )
        cursor_B = offsets[:-1].copy()
        for place, rows in enumerate(lists):
            flat = rows.rows_V, rows.shares_V, rows.offsets
            _scatter_list(*flat, first_slot + place, cursor_B, *slots[:3])
        for place, (field, of) in enumerate(pairs):
            _scatter_pair(
                lists[of].rows_V,
                lists[of].shares_V,
                lists[of].offsets,
                hashes_BF,
                field,
                crossed.seeds_Q[place],
                crossed.first_row,
                crossed.rows,
                crossed.field_rows,
                first_slot + len(lists) + place,
                cursor_B,
                *slots[:3],
            )
        return slots

    def part(self, start: int, stop: int) -> "ListSlots":
        """Events `start` to `stop` (exclusive), as views."""
        return self._replace(offsets=self.offsets[start : stop + 1])


class Crossed(NamedTuple):
    """Pairs of a field with one value and a list: the list's values, each hashed together with the
    field's."""

    fields_Q2: np.ndarray
    """int64, the field, and the place of the list."""
    seeds_Q: np.ndarray
    """uint64, the seed of each pair."""
    first_row: int
    """The first row of pairs in the linear expert's table."""
    rows: int
    """Rows of pairs, > 0."""
    field_rows: int
    """Rows of each field's table."""


@lru_cache
def no_lists(events: int) -> ListSlots:
    """The slots of events without lists, read only."""
    return ListSlots(*_NONE, np.zeros(events + 1, np.int64))


def flat_list(column: pa.Array) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]:
    """A list column of a batch: its values, their weights (float32), offsets into both (int64,
    (B + 1,)), and true where a list is not missing (bool, (B,))."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    start, stop = int(offsets[0]), int(offsets[-1])
    values = column.keys.slice(start, stop - start)
    weights_V = column.items.slice(start, stop - start).to_numpy(zero_copy_only=False)
    known_B = column.is_valid().to_numpy(zero_copy_only=False)
    return values, weights_V.astype(np.float32, copy=False), offsets - start, known_B


@kernel("void(Array(float32, 1, 'C', readonly=True), int64[::1], boolean[::1], int64[::1])")
def count_values(
    weights_V: np.ndarray, offsets: np.ndarray, known_B: np.ndarray, out_offsets: np.ndarray
) -> None:
    """Write offsets for lists in which a missing or empty one, or one without any weight, takes
    one place."""
    out_offsets[0] = 0
    for b in range(len(known_B)):
        total = np.float32(0)
        if known_B[b]:
            for v in range(offsets[b], offsets[b + 1]):
                total += weights_V[v]
        count = offsets[b + 1] - offsets[b] if total > 0 else 1
        out_offsets[b + 1] = out_offsets[b] + count


@kernel(
    "void(uint64[::1], Array(float32, 1, 'C', readonly=True), int64[::1], boolean[::1], int64,"
    " int64, int64[::1], int64[::1], float32[::1])"
)
def locate_values(
    hashes_V: np.ndarray,
    weights_V: np.ndarray,
    offsets: np.ndarray,
    known_B: np.ndarray,
    empty: int,
    rows: int,
    out_offsets: np.ndarray,
    out_rows: np.ndarray,
    out_shares: np.ndarray,
) -> None:
    """Write the row of each value within its field's table of `rows`, and its share of its list.
    `empty`: the row that stands for an empty list; row 0 stands for a missing one."""
    for b in range(len(known_B)):
        start, stop, at = offsets[b], offsets[b + 1], out_offsets[b]
        total = np.float32(0)
        if known_B[b]:
            for v in range(start, stop):
                total += weights_V[v]
        if total > 0:
            for v in range(start, stop):
                h = hashes_V[v]
                out_rows[at + v - start] = np.int64(np.uint64(1) + h % np.uint64(rows - 1))
                out_shares[at + v - start] = weights_V[v] / total
        else:
            out_rows[at], out_shares[at] = empty if known_B[b] else 0, 1


@kernel(
    "void(int64[::1], float32[::1], int64[::1], int64, int64[::1], int64[::1], float32[::1],"
    " int64[::1])"
)
def _scatter_list(
    rows_V: np.ndarray,
    shares_V: np.ndarray,
    offsets: np.ndarray,
    slot: int,
    cursor_B: np.ndarray,
    out_rows: np.ndarray,
    out_values: np.ndarray,
    out_slots: np.ndarray,
) -> None:
    """Write the values of one list column to their places among those of all, from `cursor_B` on,
    which moves behind them."""
    for b in range(len(cursor_B)):
        at = cursor_B[b]
        for v in range(offsets[b], offsets[b + 1]):
            out_rows[at], out_values[at], out_slots[at] = rows_V[v], shares_V[v], slot
            at += 1
        cursor_B[b] = at


@kernel(
    "void(int64[::1], float32[::1], int64[::1], int64[:,::1], int64, uint64, int64, int64, int64,"
    " int64, int64[::1], int64[::1], float32[::1], int64[::1])"
)
def _scatter_pair(
    rows_V: np.ndarray,
    shares_V: np.ndarray,
    offsets: np.ndarray,
    hashes_BF: np.ndarray,
    field: int,
    seed: np.uint64,
    first_row: int,
    pair_rows: int,
    field_rows: int,
    slot: int,
    cursor_B: np.ndarray,
    out_rows: np.ndarray,
    out_values: np.ndarray,
    out_slots: np.ndarray,
) -> None:
    """As `_scatter_list`, with the rows of a pair: see `Crossed`. A value is told by its row within
    the field's table, which it has wherever the field stands."""
    for b in range(len(cursor_B)):
        at = cursor_B[b]
        mixed = mix_bits(np.uint64(hashes_BF[b, field]) ^ seed)
        for v in range(offsets[b], offsets[b + 1]):
            value = np.uint64(rows_V[v] % field_rows)
            row = np.int64(mix_bits(mixed ^ value) % np.uint64(pair_rows))
            out_rows[at], out_values[at], out_slots[at] = first_row + row, shares_V[v], slot
            at += 1
        cursor_B[b] = at
