"""Rows of large tables: made lazily, gathered and scattered, logged when they change, and sorted.

In: tables, and the numbers of the rows that a batch has changed. Out: copies of rows, and for each
reader the rows that have changed since it last asked, each once and in ascending order.

Shapes: R rows of a table, U different rows, X entries.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from niwaki.model.jit import inlined, kernel, prefetch_line

AHEAD_EVENTS = 8
"""Events whose rows are prefetched before they are computed."""
AHEAD_ROWS = 64
"""Rows that are prefetched before they are read by turns."""
_NEXT_ROWS = 24
"""Rows that are on their way into the cache while one is copied."""
CACHE_LINE_BYTES = 64
_DIGIT_BITS = 11
"""Bits of a row's number by which rows are sorted at a time."""


class DirtyRows:
    """A log of the rows of each table that were learned since its reader last cleared it."""

    def __init__(
        self,
        events: int,
        embeddings: int = 0,
        others: Iterable[str] = (),
        owners: Sequence[int] | None = None,
    ):
        """`events`: learned so far. `embeddings`: rows of the embedding tables; each is learned
        whenever the row of the same number in the linear expert's table is, or that of a field
        which shares it. `others`: names of the tables beside these two. `owners`: for each field,
        the field whose rows it shares; None: no field shares any."""
        self._owners_F = None if owners is None else np.array(owners, np.int64)
        self._events = events
        self._embeddings = embeddings
        self._rows_X = {table: np.empty(0, np.int64) for table in ("linear", *others)}
        self._count = dict.fromkeys(self._rows_X, 0)
        self._repeated: set[str] = set()

    def mark_dirty(
        self, table: str, rows_X: torch.Tensor, before_X: torch.Tensor | None = None
    ) -> None:
        """Log rows (int64) that have been learned. `before_X`: the number of events when each row
        was last learned, so that no row is logged twice; None: unknown."""
        if before_X is None:
            self._repeated.add(table)
            before_X = torch.full_like(rows_X, self._events)
        logged_X, count = self._rows_X[table], self._count[table]
        if count + len(rows_X) > len(logged_X):
            room_X = np.empty(count + 2 * len(rows_X), np.int64)
            logged_X = np.concatenate([logged_X[:count], room_X])
            self._rows_X[table] = logged_X
        stamps_X = before_X.numpy()
        self._count[table] = _log_rows(rows_X.numpy(), stamps_X, self._events, logged_X, count)

    def rows(self) -> dict[str, torch.Tensor]:
        """By table, the numbers of the rows logged, each once, in ascending order."""
        rows = {}
        for table, rows_X in self._rows_X.items():
            rows_U = rows_X[: self._count[table]]
            ordered_U = np.unique(rows_U) if table in self._repeated else ascending(rows_U)
            rows[table] = torch.from_numpy(ordered_U)
        linear_U = rows["linear"].numpy()
        embedded_U = linear_U[: np.searchsorted(linear_U, self._embeddings)]
        if self._owners_F is not None and len(embedded_U):
            size = self._embeddings // len(self._owners_F)
            fields_U, places_U = np.divmod(embedded_U, size)
            embedded_U = np.unique(self._owners_F[fields_U] * size + places_U)
        return rows | {"embedding": torch.from_numpy(embedded_U)}

    def clear(self, events: int) -> None:
        """Begin anew, after so many events."""
        self._events = events
        self._count = dict.fromkeys(self._rows_X, 0)
        self._repeated = set()


def ascending(rows_U: np.ndarray) -> np.ndarray:
    """Copies of row numbers (int64, >= 0) in ascending order."""
    ordered_U = np.empty_like(rows_U)
    _sort_rows(rows_U, ordered_U, np.empty_like(rows_U))
    return ordered_U


def gather(table: torch.Tensor, rows_U: torch.Tensor) -> torch.Tensor:
    """Copies of rows of a table of any shape."""
    if table.dtype != torch.float32 or not table[:1].numel():
        return table[rows_U]
    gathered = torch.empty(len(rows_U), *table.shape[1:])
    _gather_rows(table.flatten(1).numpy(), rows_U.numpy(), gathered.flatten(1).numpy())
    return gathered


def scatter(table: torch.Tensor, rows_U: torch.Tensor, values: torch.Tensor) -> None:
    """Set rows of a table of any shape."""
    if table.dtype != torch.float32 or not table[:1].numel():
        table[rows_U] = values
    else:
        flat_UX = values.contiguous().flatten(1).numpy()
        _scatter_rows(table.flatten(1).numpy(), rows_U.numpy(), flat_UX)


@kernel("void(boolean[::1], int64[::1])")
def mark(marks_R: np.ndarray, rows_U: np.ndarray) -> None:
    """Set the marks of some rows to True."""
    for u in range(min(_NEXT_ROWS, len(rows_U))):
        prefetch_line(marks_R.ctypes.data + rows_U[u])
    for u in range(len(rows_U)):
        if u + _NEXT_ROWS < len(rows_U):
            prefetch_line(marks_R.ctypes.data + rows_U[u + _NEXT_ROWS])
        marks_R[rows_U[u]] = True


def lazy_zeros(*shape: int, dtype: type = np.float32) -> torch.Tensor:
    """Zeros that take memory, and time, only where they are touched (`torch.zeros` writes every
    page). They begin at a line of the processor's cache, so that a row of 32 or 64 bytes costs one
    line, not two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + CACHE_LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE_BYTES
    return torch.from_numpy(memory[start : start + size].view(dtype).reshape(shape))


@inlined
def prefetch_row(table_RX: np.ndarray, row: int) -> None:
    """Prefetch the first and the last number of a row of a float32 table of any shape, whose
    numbers lie side by side."""
    address = table_RX.ctypes.data + row * table_RX.strides[0]
    prefetch_line(address)
    prefetch_line(address + 4 * (table_RX[0].size - 1))


@kernel("void(float32[:,:,:], int64[:,::1], float32[:,::1])")
def prefetch(evidence_R2K: np.ndarray, rows_BS: np.ndarray, scratch_BS: np.ndarray) -> None:
    """Bring rows into the cache, first and last byte, before they are computed.

    This loop does so little for each row that the processor waits for dozens of rows at once; a
    loop that computes waits for a few. Measured: less than half the time. The values in
    `scratch_BS` have no meaning.
    """
    events, slots = rows_BS.shape
    last = evidence_R2K.shape[2] - 1
    for b in range(events):
        for s in range(slots):
            row = rows_BS[b, s]
            scratch_BS[b, s] = evidence_R2K[row, 0, 0] + evidence_R2K[row, 1, last]


@kernel("int64(int64[::1], int64[::1], int64, int64[::1], int64)", brief=True)
def _log_rows(
    rows_X: np.ndarray, stamps_X: np.ndarray, latest: int, logged_X: np.ndarray, count: int
) -> int:
    """Write the rows whose stamp is not above `latest` to `logged_X`, from place `count` on;
    returns the place after the last."""
    for x in range(len(rows_X)):
        if stamps_X[x] <= latest:
            logged_X[count] = rows_X[x]
            count += 1
    return count


@kernel("void(int64[::1], int64[::1], int64[::1])")
def _sort_rows(rows_U: np.ndarray, ordered_U: np.ndarray, scratch_U: np.ndarray) -> None:
    """Write the rows in ascending order to `ordered_U`: a radix sort, which takes a quarter of the
    time of `np.sort` for ten thousand rows of a table of some millions."""
    most, passes = 0, 0
    for u in range(len(rows_U)):
        most = max(most, rows_U[u])
    while passes == 0 or most >> (passes * _DIGIT_BITS):
        passes += 1
    places = np.empty(2**_DIGIT_BITS, np.int64)
    source = rows_U
    for done in range(passes):
        # The last pass writes to the result.
        target = ordered_U if (passes - done) % 2 else scratch_U
        shift = done * _DIGIT_BITS
        places[:] = 0
        for u in range(len(rows_U)):
            places[(source[u] >> shift) & (2**_DIGIT_BITS - 1)] += 1
        total = 0
        for digit in range(len(places)):
            count = places[digit]
            places[digit] = total
            total += count
        for u in range(len(rows_U)):
            digit = (source[u] >> shift) & (2**_DIGIT_BITS - 1)
            target[places[digit]] = source[u]
            places[digit] += 1
        source = target


@kernel("void(float32[:,:], int64[::1], float32[:,::1])")
def _gather_rows(table_RX: np.ndarray, rows_U: np.ndarray, out_UX: np.ndarray) -> None:
    """Copy rows, which are prefetched."""
    for u in range(min(_NEXT_ROWS, len(rows_U))):
        prefetch_row(table_RX, rows_U[u])
    for u in range(len(rows_U)):
        if u + _NEXT_ROWS < len(rows_U):
            prefetch_row(table_RX, rows_U[u + _NEXT_ROWS])
        for x in range(out_UX.shape[1]):
            out_UX[u, x] = table_RX[rows_U[u], x]


@kernel("void(float32[:,:], int64[::1], float32[:,::1])")
def _scatter_rows(table_RX: np.ndarray, rows_U: np.ndarray, values_UX: np.ndarray) -> None:
    """Write rows, which are prefetched."""
    for u in range(min(_NEXT_ROWS, len(rows_U))):
        prefetch_row(table_RX, rows_U[u])
    for u in range(len(rows_U)):
        if u + _NEXT_ROWS < len(rows_U):
            prefetch_row(table_RX, rows_U[u + _NEXT_ROWS])
        for x in range(values_UX.shape[1]):
            table_RX[rows_U[u], x] = values_UX[u, x]
