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
        self._marks = {table: np.zeros(count // 64 + 1, np.uint64) for table, count in rows.items()}

    def mark(self, table: str, rows_X: torch.Tensor) -> None:
        """These rows, int64, have been learned; some perhaps more than once."""
        kernels.mark(rows_X.numpy(), self._marks[table])

    def sorted(self) -> dict[str, torch.Tensor]:
        """Sorted ids of the rows, by table."""
        return {table: torch.from_numpy(kernels.marked(marks_W)) for table, marks_W in self._marks.items()}

    def clear(self) -> None:
        """Begin anew."""
        for marks_W in self._marks.values():
            marks_W[:] = 0
