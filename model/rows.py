"""What a learner hands to those who predict with it: everything, or what has changed since they
last had it.

In: the rows that each batch taught something. Out: their numbers, once for each reader, and the
tensors that go with them. What can wait until the learner is busy with the next batch, such as
sorting, is apart (`ascending`).

Shapes: R rows of a table, U different rows.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from niwaki.model.jit import kernel

AHEAD_EVENTS = 8
AHEAD_ROWS = 64
CACHE_LINE_BYTES = 64


class DirtyRows:
    """Which rows of which table were learned since its reader last said that it has them."""

    def __init__(self, events: int, embeddings: int = 0, others: Iterable[str] = ()):
        """`events`: learned so far. `embeddings`: rows of the embedding table; each is learned
        whenever the row of the same number in the linear expert's is. `others`: tables beside these
        two."""
        self._events, self._embeddings = events, embeddings
        self._rows_X = {table: np.empty(0, np.int64) for table in ("linear", *others)}
        self._count = dict.fromkeys(self._rows_X, 0)
        self._repeat: set[str] = set()

    def mark(self, table: str, rows_X: torch.Tensor, before_X: torch.Tensor | None = None) -> None:
        """These rows, int64, have been learned. `before_X`: events that had been learned when each
        was last, so that none is noted twice; None: not known."""
        if before_X is None:
            self._repeat.add(table)
            before_X = torch.full_like(rows_X, self._events)
        noted_X, count = self._rows_X[table], self._count[table]
        if count + len(rows_X) > len(noted_X):
            noted_X = np.concatenate([noted_X[:count], np.empty(count + 2 * len(rows_X), np.int64)])
            self._rows_X[table] = noted_X
        self._count[table] = note_rows(
            rows_X.numpy(), before_X.numpy(), self._events, noted_X, count
        )

    def rows(self) -> dict[str, torch.Tensor]:
        """Ids of the rows, by table; each once, in no order that means anything."""
        rows = {
            table: torch.from_numpy(rows_X[: self._count[table]])
            for table, rows_X in self._rows_X.items()
        }
        rows = {
            table: rows_U.unique() if table in self._repeat else rows_U.clone()
            for table, rows_U in rows.items()
        }
        return rows | {"embedding": rows["linear"][rows["linear"] < self._embeddings]}

    def clear(self, events: int) -> None:
        """Begin anew, after so many events."""
        self._events, self._count, self._repeat = events, dict.fromkeys(self._rows_X, 0), set()


def ascending(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of an export with each table's rows in ascending order, as a checkpoint has
    them."""
    ordered = dict(tensors)
    for name in [name for name in tensors if name.endswith(".rows")]:
        values, (rows_U, order_U) = (
            f"{name.removesuffix('rows')}values",
            _sorted(tensors[name].numpy()),
        )
        ordered |= {
            name: torch.from_numpy(rows_U),
            values: gather(tensors[values], torch.from_numpy(order_U)),
        }
    return ordered


def _sorted(rows_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different rows in ascending order, and where each of them was. To sort numbers of which the
    lower bits say where takes less time than `np.argsort`."""
    bits = len(rows_U).bit_length()
    if len(rows_U) and int(rows_U.max()) >= 2 ** (63 - bits):
        order_U = np.argsort(rows_U)
        return rows_U[order_U], order_U
    keys_U = np.sort((rows_U << bits) | np.arange(len(rows_U)))
    return keys_U >> bits, keys_U & (2**bits - 1)


def gather(table: torch.Tensor, rows_U: torch.Tensor) -> torch.Tensor:
    """Copies of rows of a table of any shape."""
    if table.dtype != torch.float32 or not table[:1].numel():
        return table[rows_U]
    taken = torch.empty(len(rows_U), *table.shape[1:])
    take_rows(table.flatten(1).numpy(), rows_U.numpy(), taken.flatten(1).numpy())
    return taken


def scatter(table: torch.Tensor, rows_U: torch.Tensor, values: torch.Tensor) -> None:
    """Set rows of a table of any shape."""
    if table.dtype != torch.float32 or not table[:1].numel():
        table[rows_U] = values
    else:
        put_rows(table.flatten(1).numpy(), rows_U.numpy(), values.contiguous().flatten(1).numpy())


def lazy_zeros(*shape: int, dtype: type = np.float32) -> torch.Tensor:
    """Zeros that take memory, and time, only where they are touched (`torch.zeros` writes every
    page). They begin where a line of the processor's cache does, so that a row of 32 or 64 bytes
    costs one line, not two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + CACHE_LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE_BYTES
    return torch.from_numpy(memory[start : start + size].view(dtype).reshape(shape))


@kernel("void(float32[:,:,:], int64[:,::1], float32[:,::1])")
def prefetch(evidence_R2K, rows_BS, scratch_BS):
    """Bring rows into the cache, first and last byte, before they are worked on.

    This loop does so little for each row that the processor waits for dozens of them at once, and
    not, as one that computes, for a few: measured, less than half the time. What lands in
    `scratch_BS` means nothing.
    """
    events, slots = rows_BS.shape
    last = evidence_R2K.shape[2] - 1
    for b in range(events):
        for s in range(slots):
            row = rows_BS[b, s]
            scratch_BS[b, s] = evidence_R2K[row, 0, 0] + evidence_R2K[row, 1, last]


@kernel("int64(int64[::1], int64[::1], int64, int64[::1], int64)")
def note_rows(rows_X, stamps_X, latest, noted_X, count):
    """Write the rows whose stamp is not above `latest` to `noted_X`, from place `count` on; the
    place after the last."""
    for x in range(len(rows_X)):
        if stamps_X[x] <= latest:
            noted_X[count] = rows_X[x]
            count += 1
    return count


@kernel("void(float32[:,:], int64[::1], float32[:,::1])")
def take_rows(table_RX, rows_U, out_UX):
    """Copies of rows, brought into the cache some dozens at a time, as `prefetch` does."""
    last = out_UX.shape[1] - 1
    for start in range(0, len(rows_U), AHEAD_ROWS):
        stop = min(start + AHEAD_ROWS, len(rows_U))
        for u in range(start, stop):
            out_UX[u, 0] = table_RX[rows_U[u], 0] + table_RX[rows_U[u], last]
        for u in range(start, stop):
            for x in range(last + 1):
                out_UX[u, x] = table_RX[rows_U[u], x]


@kernel("float32(float32[:,:], int64[::1], float32[:,::1])")
def put_rows(table_RX, rows_U, values_UX):
    """Write rows, fetched in the same way. What is returned means nothing."""
    last, nothing = values_UX.shape[1] - 1, np.float32(0)
    for start in range(0, len(rows_U), AHEAD_ROWS):
        stop = min(start + AHEAD_ROWS, len(rows_U))
        for u in range(start, stop):
            nothing += table_RX[rows_U[u], 0] + table_RX[rows_U[u], last]
        for u in range(start, stop):
            for x in range(last + 1):
                table_RX[rows_U[u], x] = values_UX[u, x]
    return nothing
