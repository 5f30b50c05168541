"""What a learner hands to those who predict with it: everything, or what has changed since they last had it.

In: the rows that each batch taught something. Out: their sorted numbers, once for each reader, and the tensors that go
with them.
"""

from typing import NamedTuple

import numpy as np
import torch

from model import kernels
from model.network import NetworkShape


class Export(NamedTuple):
    """What a scorer needs: everything, or the rows changed since an earlier export."""

    shape: NetworkShape
    tensors: dict[str, torch.Tensor]


class Changes:
    """Which rows of which table were learned since its reader last said that it has them."""

    def __init__(self, rows: dict[str, int]):
        """`rows`: of each table."""
        self._marks = {table: _Marks(count) for table, count in rows.items()}

    def mark(self, table: str, rows_X: torch.Tensor) -> None:
        """These rows, int64, have been learned; some perhaps more than once."""
        self._marks[table].add(rows_X.numpy())

    def sorted(self) -> dict[str, torch.Tensor]:
        """Sorted ids of the rows, by table."""
        return {table: torch.from_numpy(marks.rows()) for table, marks in self._marks.items()}

    def clear(self) -> None:
        """Begin anew."""
        for marks in self._marks.values():
            marks.clear()


class _Marks:
    """A bit for each row of a table. A bit for each 64 of those says where to look: what is marked is found, and
    forgotten, in time that hardly depends on the size of the table."""

    def __init__(self, rows: int):
        self._bits_W = np.zeros(rows // 64 + 1, np.uint64)
        self._used_V = np.zeros(len(self._bits_W) // 64 + 1, np.uint64)

    def add(self, rows_X: np.ndarray) -> None:
        kernels.mark(rows_X, self._bits_W, self._used_V)

    def rows(self) -> np.ndarray:
        return kernels.set_bits(self._bits_W, self._words())

    def clear(self) -> None:
        self._bits_W[self._words()] = 0
        self._used_V[:] = 0

    def _words(self) -> np.ndarray:
        return kernels.set_bits(self._used_V, np.arange(len(self._used_V)))
