"""Histories made in the stream: the latest values of a column for each value of another one.

In: events in the order of the stream. Out: for each event the values that its key has had, oldest
first, strictly from the past: events of one time do not see each other. So a row has the values of
earlier times, and beside them, not visible yet, those of its latest time. An event that comes late
sees the values of earlier times, and what it adds counts as of the latest time; more than 30 days
late, it is one of a stream that has begun anew, and a row's latest time is its own.

Shapes: B events, V values of all their histories, N values of one history at most, R rows of W
numbers, P places of the index.
"""

from collections.abc import Mapping

import numpy as np
import torch

from niwaki.model.features.event_clock import BEHIND_S
from niwaki.model.features.memory.keyed import (
    FIRST,
    ORDER,
    TIME,
    WRITTEN,
    KeyedRows,
    Order,
    Written,
    claim,
    find,
)
from niwaki.model.jit import inlined, kernel, types

_I1, _I2 = types.int64[::1], types.int64[:, ::1]
_N1, _D1, _B1 = types.int32[::1], types.float64[::1], types.boolean[::1]
_SETTLED, _WAITING, _VALUES = FIRST * 2, FIRST * 2 + 1, FIRST * 2 + 2
"""Places in a row of numbers of 32 bits: how many values are of earlier times, and how many of the
latest; then the values, N of each."""


class Histories:
    """The histories of one column by another."""

    def __init__(self, name: str, last: int, max_keys: int):
        """`last`: values of a history, N >= 1. `max_keys`: keys that have one at once."""
        self.last = last
        self.keyed = KeyedRows(name, max_keys, FIRST + 1 + last)

    def names_rows_of(self, rows_UW: np.ndarray, size: int) -> bool:
        """True where every value in these rows (int64) is a row of a table of `size`."""
        values = np.ascontiguousarray(rows_UW).view(np.int32)[:, _VALUES:]
        return not values.size or bool(0 <= values.min() <= values.max() < size)

    def read(
        self,
        keys_B: np.ndarray,
        times_s_B: np.ndarray,
        tables: Mapping[str, torch.Tensor] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The values of each event's history (int32 (V,)), and offsets (int64 (B + 1,)); nothing is
        remembered. `keys_B`: int64, 0 = missing. `times_s_B`: 0 = after all that is known.
        `tables`: those to read; None: this object's own."""
        values_V = np.empty(len(keys_B) * self.last, np.int32)
        offsets = np.zeros(len(keys_B) + 1, np.int64)
        _read(*self.keyed.arrays(tables), keys_B, times_s_B, self.last, values_V, offsets)
        return values_V[: offsets[-1]], offsets

    def learn(
        self, keys_B: np.ndarray, values_B: np.ndarray, times_s_B: np.ndarray, counts_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[str, torch.Tensor]]:
        """As `read`, event by event, and each event is remembered after it was read; also the rows
        of each table that have changed. `values_B`: int32. `counts_B`: bool, False where a value is
        not to be remembered. How a stream is cut into batches makes no difference."""
        keyed = self.keyed
        out_V = np.empty(len(keys_B) * self.last, np.int32)
        offsets = np.zeros(len(keys_B) + 1, np.int64)
        log = keyed.log(len(keys_B))
        state = *keyed.arrays(), keyed.order, keyed.used
        events = keys_B, values_B, times_s_B, counts_B
        _learn(*state, *events, self.last, out_V, offsets, log)
        return out_V[: offsets[-1]], offsets, keyed.changed(log)


@inlined
def _write(
    rows_RW: np.ndarray,
    index_P: np.ndarray,
    key: int,
    time_s: float,
    last: int,
    out_V: np.ndarray,
    at: int,
) -> int:
    """Write what a key's event at a time sees, from place `at` on; returns the place after it."""
    row = find(rows_RW, index_P, key) if key != 0 else 0
    if row != 0:
        numbers = rows_RW[row].view(np.int32)
        settled = min(max(numbers[_SETTLED], 0), last)
        waiting = min(max(numbers[_WAITING], 0), last)
        latest_s = rows_RW[row].view(np.float64)[TIME]
        if time_s != 0 and latest_s - BEHIND_S <= time_s <= latest_s:
            waiting = 0
        skipped = max(settled + waiting - last, 0)
        for i in range(skipped, settled):
            out_V[at] = numbers[_VALUES + i]
            at += 1
        for i in range(waiting):
            out_V[at] = numbers[_VALUES + last + i]
            at += 1
    return at


@kernel(types.void(_I2, _I1, _I1, _D1, types.int64, _N1, _I1))
def _read(
    rows_RW: np.ndarray,
    index_P: np.ndarray,
    keys_B: np.ndarray,
    times_s_B: np.ndarray,
    last: int,
    out_V: np.ndarray,
    out_offsets: np.ndarray,
) -> None:
    at = 0
    for b in range(len(keys_B)):
        at = _write(rows_RW, index_P, keys_B[b], times_s_B[b], last, out_V, at)
        out_offsets[b + 1] = at


@kernel(types.void(_I2, _I1, ORDER, _I1, _I1, _N1, _D1, _B1, types.int64, _N1, _I1, WRITTEN))
def _learn(
    rows_RW: np.ndarray,
    index_P: np.ndarray,
    order: Order,
    used: np.ndarray,
    keys_B: np.ndarray,
    values_B: np.ndarray,
    times_s_B: np.ndarray,
    counts_B: np.ndarray,
    last: int,
    out_V: np.ndarray,
    out_offsets: np.ndarray,
    written: Written,
) -> None:
    at = 0
    for b in range(len(keys_B)):
        key, time_s = keys_B[b], times_s_B[b]
        at = _write(rows_RW, index_P, key, time_s, last, out_V, at)
        out_offsets[b + 1] = at
        if key == 0 or not counts_B[b]:
            continue
        row = claim(rows_RW, index_P, order, used, key, written)
        numbers, times = rows_RW[row].view(np.int32), rows_RW[row].view(np.float64)
        settled, waiting = numbers[_SETTLED], numbers[_WAITING]
        anew = time_s != 0 and time_s < times[TIME] - BEHIND_S
        if waiting == 0 or time_s > times[TIME] or anew:
            over = max(settled + waiting - last, 0)
            for i in range(settled - over):
                numbers[_VALUES + i] = numbers[_VALUES + over + i]
            settled -= over
            for i in range(waiting):
                numbers[_VALUES + settled + i] = numbers[_VALUES + last + i]
            numbers[_SETTLED] = settled + waiting
            waiting = 0
            times[TIME] = time_s
        if waiting == last:
            for i in range(last - 1):
                numbers[_VALUES + last + i] = numbers[_VALUES + last + i + 1]
            waiting -= 1
        numbers[_VALUES + last + waiting] = values_B[b]
        numbers[_WAITING] = waiting + 1
