"""Matrices with only some of their weights, and products with them, for networks pruned in blocks.

In: the blocks of one matrix that are left; then values, inputs and gradients. Out: places of the
weights, and products. No buffer has the size of the whole matrix, and no loop touches a weight that
was pruned. Blocks of any shape share one code, which knows single weights only: their places are
indexed row by row (CSR), and column by column for the backward pass. Events are columns, so that
one instruction multiplies a weight with many of them; four weights of a row share one pass over
their sums.

Shapes: B events, I inputs and O outputs of a matrix, N weights left in it, U blocks of the matrix.
"""

from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.jit import kernel
from niwaki.pruning.blocks import BlockGroup


class _Index(NamedTuple):
    """Places of weights in a matrix of O rows, row by row (CSR)."""

    start_O: np.ndarray
    """int64 (O + 1,): number of the first weight of each row, and N."""
    column_N: np.ndarray
    """int32."""

    @classmethod
    def of(cls, row_N: np.ndarray, column_N: np.ndarray, rows: int) -> "_Index":
        """`row_N`: ascending."""
        start_O = np.zeros(rows + 1, np.int64)
        np.cumsum(np.bincount(row_N, minlength=rows), out=start_O[1:])
        return cls(start_O, column_N.astype(np.int32))


class Pattern:
    """Places of the weights that are left in one matrix, and products with them.

    Values are the caller's: float32 (N,), row by row.
    """

    def __init__(self, group: BlockGroup, kept_U: torch.Tensor):
        """`kept_U`: int64, the blocks that are left."""
        self._shape = group.shape
        outputs, inputs = group.shape
        row_N, column_N = np.nonzero(group.within(kept_U).numpy())
        self._place_N = torch.from_numpy(row_N * inputs + column_N)
        self._index = _Index.of(row_N, column_N, outputs)
        self._turn_N = np.argsort(column_N, kind="stable")
        """Numbers of the weights, column by column."""
        self._turned = _Index.of(column_N[self._turn_N], row_N[self._turn_N], inputs)
        self._no_bias_I = np.zeros(inputs, np.float32)

    def __len__(self) -> int:
        return len(self._place_N)

    def fill(self, values_N: torch.Tensor) -> torch.Tensor:
        """(O, I): the whole matrix, zero where no weight is left; differentiable in `values_N`."""
        return (
            values_N.new_zeros(self._shape)
            .flatten()
            .index_put((self._place_N,), values_N)
            .view(self._shape)
        )

    def product(
        self,
        values_N: np.ndarray,
        bias_O: np.ndarray,
        x_IB: np.ndarray,
        rectify: bool,
        out_OB: np.ndarray,
    ) -> None:
        """Write W x + b; where `rectify`, at least 0."""
        start_O, column_N = self._index
        multiply(start_O, column_N, values_N, bias_O, 0, len(out_OB), x_IB, rectify, out_OB)

    def product_back(
        self, values_N: np.ndarray, errors_OB: np.ndarray, inputs: slice, out_IB: np.ndarray
    ) -> None:
        """Write the gradient in the inputs from `inputs.start` to `inputs.stop` to their rows."""
        start_I, row_N = self._turned
        turned_N, bias_I = values_N[self._turn_N], self._no_bias_I
        multiply(
            start_I, row_N, turned_N, bias_I, inputs.start, inputs.stop, errors_OB, False, out_IB
        )

    def gradient(self, errors_OB: np.ndarray, x_IB: np.ndarray, out_N: np.ndarray) -> None:
        """Write the gradient in each weight, summed over events."""
        start_O, column_N = self._index
        sum_weight_gradients(start_O, column_N, errors_OB, x_IB, out_N)


@kernel(
    "void(int64[::1], int32[::1], float32[::1], float32[::1], int64, int64, float32[:,::1],"
    " boolean, float32[:,::1])"
)
def multiply(
    start_O: np.ndarray,
    column_N: np.ndarray,
    values_N: np.ndarray,
    bias_O: np.ndarray,
    first: int,
    stop: int,
    x_IB: np.ndarray,
    rectify: bool,
    out_OB: np.ndarray,
) -> None:
    """Write rows `first` to `stop` of W x + b; where `rectify`, at least 0."""
    events = x_IB.shape[1]
    for o in range(first, stop):
        for b in range(events):
            out_OB[o, b] = bias_O[o]
        n = start_O[o]
        end = start_O[o + 1]
        while n + 4 <= end:
            v, w = values_N[n], values_N[n + 1]
            y, z = values_N[n + 2], values_N[n + 3]
            i, j = column_N[n], column_N[n + 1]
            k, m = column_N[n + 2], column_N[n + 3]
            for b in range(events):
                out_OB[o, b] += v * x_IB[i, b] + w * x_IB[j, b] + y * x_IB[k, b] + z * x_IB[m, b]
            n += 4
        while n < end:
            w, i = values_N[n], column_N[n]
            for b in range(events):
                out_OB[o, b] += w * x_IB[i, b]
            n += 1
        if rectify:
            for b in range(events):
                out_OB[o, b] = max(out_OB[o, b], np.float32(0))


@kernel("void(int64[::1], int32[::1], float32[:,::1], float32[:,::1], float32[::1])", reorder=True)
def sum_weight_gradients(
    start_O: np.ndarray,
    column_N: np.ndarray,
    errors_OB: np.ndarray,
    x_IB: np.ndarray,
    out_N: np.ndarray,
) -> None:
    """Write the gradient in each weight: its error times its input, summed over events."""
    events = errors_OB.shape[1]
    for o in range(len(errors_OB)):
        n = start_O[o]
        end = start_O[o + 1]
        while n + 4 <= end:
            i, j = column_N[n], column_N[n + 1]
            k, m = column_N[n + 2], column_N[n + 3]
            v = w = y = z = np.float32(0)
            for b in range(events):
                error = errors_OB[o, b]
                v += error * x_IB[i, b]
                w += error * x_IB[j, b]
                y += error * x_IB[k, b]
                z += error * x_IB[m, b]
            out_N[n], out_N[n + 1] = v, w
            out_N[n + 2], out_N[n + 3] = y, z
            n += 4
        while n < end:
            i, w = column_N[n], np.float32(0)
            for b in range(events):
                w += errors_OB[o, b] * x_IB[i, b]
            out_N[n] = w
            n += 1
