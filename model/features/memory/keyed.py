"""Rows by key in bounded memory: an index from keys to rows, and the row that goes first when all
are taken.

In: keys, as hashes of 64 bits. Out: the numbers of rows in a table of the caller's. A row begins
with its key, the time of its latest events, and a stamp that says when it was written last. Where
all rows are taken, the one written longest ago is given to the next new key. Index and rows are
plain tables, so they are published and restored row by row, as all tables are; a model that only
reads needs nothing else. The kernels are parts of those of histories and rates.

Shapes: R rows of W numbers of 64 bits, P places of the index.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.jit import inlined, kernel, types
from niwaki.model.rows import lazy_zeros

KEY, TIME, STAMP, FIRST = 0, 1, 2, 3
"""Places in a row: its key, the time of its latest events in seconds (float64), its stamp, and the
first number that is the owner's."""
_SPARE_PLACES = 2
"""The index has at least so many places for each row, so that few keys meet."""


class Order(NamedTuple):
    """The rows in the order in which they were written last, as a list linked in both ways; row 0
    is its end and beginning, and holds no key."""

    before_R: np.ndarray
    """int32, the row written before each."""
    after_R: np.ndarray
    """int32, the row written after each."""


class Written(NamedTuple):
    """The log of what a batch has changed."""

    rows_X: np.ndarray
    """int64, rows, each perhaps several times."""
    places_X: np.ndarray
    """int64, places of the index, likewise."""
    counts: np.ndarray
    """int64 (2,): how many of each, which may be more than there is room for."""


_I1, _I2, _N1 = types.int64[::1], types.int64[:, ::1], types.int32[::1]
ORDER = types.NamedUniTuple(_N1, 2, Order)
WRITTEN = types.NamedUniTuple(_I1, 3, Written)


class KeyedRows:
    """An index and its rows, for a learner; row 0 is never given to a key."""

    def __init__(self, name: str, max_keys: int, width: int):
        """`name`: of the table of rows; the index is NAME.index. `max_keys`: keys that are
        remembered at once, >= 1. `width`: W."""
        self.name = name
        self.rows = max_keys + 1
        places = 1 << (_SPARE_PLACES * self.rows - 1).bit_length()
        self.shapes = {name: (self.rows, width), f"{name}.index": (places, 1)}
        """Shape of each table."""
        self.tables = self.empty()
        self.order = Order(np.zeros(self.rows, np.int32), np.zeros(self.rows, np.int32))
        self.used = np.ones(2, np.int64)
        """Rows that were ever given to a key, row 0 included; and the last stamp."""

    def empty(self) -> dict[str, torch.Tensor]:
        """Tables of these shapes in which nothing is remembered."""
        return {name: lazy_zeros(*shape, dtype=np.int64) for name, shape in self.shapes.items()}

    def arrays(
        self, tables: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows (R, W) and index (P,), of `tables` or this object's own."""
        tables = self.tables if tables is None else tables
        return tables[self.name].numpy(), tables[f"{self.name}.index"].numpy()[:, 0]

    def log(self, events: int) -> Written:
        """A log with room for what so many events usually change."""
        places = 8 * events + 64
        return Written(
            np.empty(events, np.int64), np.empty(places, np.int64), np.zeros(2, np.int64)
        )

    def changed(self, log: Written) -> dict[str, torch.Tensor]:
        """The rows of each table that a batch has changed."""
        rows_X, places_X, (rows, places) = log
        changed_X = rows_X[:rows]
        if places <= len(places_X):
            found_X = np.unique(places_X[:places])
        else:
            found_X = np.arange(self.shapes[f"{self.name}.index"][0])
        found = {self.name: np.unique(changed_X), f"{self.name}.index": found_X}
        return {name: torch.from_numpy(array) for name, array in found.items()}

    def touched(self) -> dict[str, torch.Tensor]:
        """The rows of each table that are not empty."""
        index = f"{self.name}.index"
        places_X = self.tables[index][:, 0].nonzero().squeeze(1)
        return {self.name: torch.arange(1, int(self.used[0])), index: places_X}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from tables as a snapshot has them: NAME.rows and NAME.values of each."""
        for name, table in self.tables.items():
            table[tensors[f"{name}.rows"]] = tensors[f"{name}.values"]
        rows_RW = self.tables[self.name].numpy()
        taken_R = np.flatnonzero(rows_RW[:, KEY])
        ring = np.append(taken_R[np.argsort(rows_RW[taken_R, STAMP])], 0).astype(np.int32)
        self.order.after_R[np.append(np.int32(0), ring[:-1])] = ring
        self.order.before_R[ring] = np.append(np.int32(0), ring[:-1])
        self.used[:] = 1 + len(taken_R), max(1, int(rows_RW[:, STAMP].max()))


@inlined
def find(rows_RW: np.ndarray, index_P: np.ndarray, key: int) -> int:
    """The row of a key; 0: it has none. Numbers that no index should have lead nowhere."""
    mask = len(index_P) - 1
    place = key & mask
    row = index_P[place]
    for _ in range(len(index_P)):
        if row <= 0 or row >= len(rows_RW) or rows_RW[row, 0] == key:
            break
        place = (place + 1) & mask
        row = index_P[place]
    return row if 0 < row < len(rows_RW) and rows_RW[row, 0] == key else 0


@kernel(types.void(WRITTEN, types.int64))
def _log_place(written: Written, place: int) -> None:
    at = written.counts[1]
    if at < len(written.places_X):
        written.places_X[at] = place
    written.counts[1] = at + 1


@kernel(types.void(_I2, _I1, types.int64, WRITTEN))
def _forget(rows_RW: np.ndarray, index_P: np.ndarray, key: int, written: Written) -> None:
    """Take a key out of the index, and move those behind it up (Knuth, The Art of Computer
    Programming, volume 3, algorithm 6.4 R)."""
    mask = len(index_P) - 1
    place = key & mask
    while rows_RW[index_P[place], 0] != key:
        place = (place + 1) & mask
    gap = place
    while True:
        place = (place + 1) & mask
        row = index_P[place]
        if row == 0:
            break
        home = rows_RW[row, 0] & mask
        if (place - home) & mask >= (place - gap) & mask:
            index_P[gap] = row
            _log_place(written, gap)
            gap = place
    index_P[gap] = 0
    _log_place(written, gap)


@kernel(types.int64(_I2, _I1, ORDER, _I1, types.int64, WRITTEN))
def claim(
    rows_RW: np.ndarray,
    index_P: np.ndarray,
    order: Order,
    used: np.ndarray,
    key: int,
    written: Written,
) -> int:
    """The row of a key, its own or a new one, all zero but for the key; it is the last to be given
    away now. `used`: see `KeyedRows`."""
    row = find(rows_RW, index_P, key)
    before_R, after_R = order.before_R, order.after_R
    if row == 0:
        if used[0] < len(rows_RW):
            row = used[0]
            used[0] += 1
        else:
            row = int(after_R[0])
            _forget(rows_RW, index_P, rows_RW[row, 0], written)
        mask = len(index_P) - 1
        place = key & mask
        while index_P[place] != 0:
            place = (place + 1) & mask
        index_P[place] = row
        _log_place(written, place)
        if rows_RW[row, 0] != 0:
            after_R[before_R[row]] = after_R[row]
            before_R[after_R[row]] = before_R[row]
        rows_RW[row] = 0
        rows_RW[row, 0] = key
    else:
        after_R[before_R[row]] = after_R[row]
        before_R[after_R[row]] = before_R[row]
    last = before_R[0]
    after_R[last], before_R[row] = row, last
    after_R[row], before_R[0] = 0, row
    used[1] += 1
    rows_RW[row, 2] = used[1]
    at = written.counts[0]
    written.rows_X[at] = row
    written.counts[0] = at + 1
    return row
