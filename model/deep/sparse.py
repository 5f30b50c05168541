"""Layers of which only some weights are there: what is left of a network that was pruned in blocks.

Nothing of a matrix's full size is held or touched, forward or backward. Blocks of any shape are one
code: which weights there are is kept row by row (CSR) and, for the way back, column by column.
Events are columns, so that a weight works on many of them with each instruction; four weights of a
row share one pass over their sum.

Shapes: B events, I inputs and O outputs of a matrix, N weights left in it, U its blocks; X columns
of a buffer, of which the first B are in use.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.jit import kernel
from niwaki.pruning.blocks import BlockGroup


class _Index(NamedTuple):
    """Where weights lie, row by row."""

    start: np.ndarray
    """Of each row, its first weight; then how many there are."""
    column_N: np.ndarray

    @classmethod
    def of(cls, row_N: np.ndarray, column_N: np.ndarray, rows: int) -> "_Index":
        start = np.zeros(rows + 1, np.int64)
        np.cumsum(np.bincount(row_N, minlength=rows), out=start[1:])
        return cls(start, column_N.astype(np.int32))


class Pattern:
    """Which weights of one matrix there are. Their values are somebody else's, (N,), row by row."""

    def __init__(self, group: BlockGroup, kept_U: torch.Tensor):
        """`kept_U`: the blocks that are there."""
        self._shape = group.shape
        row_N, column_N = np.nonzero(group.within(kept_U).numpy())
        self._place_N = torch.from_numpy(row_N * group.shape[1] + column_N)
        self._index = _Index.of(row_N, column_N, group.shape[0])
        self._turn_N = np.argsort(column_N, kind="stable")
        self._turned = _Index.of(column_N[self._turn_N], row_N[self._turn_N], group.shape[1])
        self._no_bias_I = np.zeros(group.shape[1], np.float32)

    def __len__(self) -> int:
        return len(self._place_N)

    def fill(self, values_N: torch.Tensor) -> torch.Tensor:
        """(O, I): the whole matrix, zero where there is no weight; differentiable."""
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
        x_IX: np.ndarray,
        events: int,
        rectify: bool,
        out_OX: np.ndarray,
    ) -> None:
        """Weights times inputs, plus bias; `rectify`: and no less than 0."""
        product(*self._index, values_N, bias_O, 0, len(out_OX), x_IX, events, rectify, out_OX)

    def product_back(
        self, values_N: np.ndarray, errors_OB: np.ndarray, inputs: slice, out_IB: np.ndarray
    ) -> None:
        """From the gradient in the outputs to that in some of the inputs."""
        turned_N, events = values_N[self._turn_N], errors_OB.shape[1]
        product(
            *self._turned,
            turned_N,
            self._no_bias_I,
            inputs.start,
            inputs.stop,
            errors_OB,
            events,
            False,
            out_IB,
        )

    def gradient(self, errors_OB: np.ndarray, x_IB: np.ndarray, out_N: np.ndarray) -> None:
        """In each weight, summed over events."""
        weight_gradient(*self._index, errors_OB, x_IB, out_N)


class SparseMlp:
    """Rectified layers, and a linear one at the end; as the dense ones in `model.deep.passes`,
    whose interface it has."""

    mask_gradients: Mapping = {}

    def __init__(
        self,
        name: str,
        hidden: int,
        patterns: Mapping[str, Pattern],
        parameters: Mapping[str, torch.Tensor],
        gradients: Mapping[str, torch.Tensor],
    ):
        """`patterns`: by the names of weights."""
        layers = [f"{name}.{i}" for i in range(hidden + 1)]
        self._patterns = [patterns[f"{layer}.weight"] for layer in layers]
        self._weights, self._biases, self._weight_gradients, self._bias_gradients = (
            [tensors[f"{layer}.{part}"] for layer in layers]
            for tensors in (parameters, gradients)
            for part in ("weight", "bias")
        )
        self._x: list[torch.Tensor] = []

    def forward(self, x_BI: torch.Tensor, out_BO: torch.Tensor, masks: None = None) -> None:
        self._reserve(*x_BI.shape)
        self._x[0].copy_(x_BI.T)
        last = len(self._patterns) - 1
        for i, pattern in enumerate(self._patterns):
            values_N, bias_O = self._weights[i].numpy(), self._biases[i].numpy()
            pattern.product(
                values_N, bias_O, self._x[i].numpy(), len(x_BI), i < last, self._x[i + 1].numpy()
            )
        out_BO.copy_(self._x[-1].T)

    def backward(self, x_BI: torch.Tensor, errors_BO: torch.Tensor) -> None:
        """All gradients but that in the inputs. `x_BI`: as in the forward pass."""
        self._errors[-1].copy_(errors_BO.T)
        for i in reversed(range(len(self._patterns))):
            pattern, errors_OB, x_IB = self._patterns[i], self._errors[i + 1], self._x[i]
            pattern.gradient(errors_OB.numpy(), x_IB.numpy(), self._weight_gradients[i].numpy())
            torch.sum(errors_OB, 1, out=self._bias_gradients[i])
            if i:
                every = slice(0, len(x_IB))
                pattern.product_back(
                    self._weights[i].numpy(), errors_OB.numpy(), every, self._errors[i].numpy()
                )
                rectify_back(self._errors[i].numpy(), x_IB.numpy())

    def input_gradient(self, inputs: slice, out_BX: torch.Tensor) -> torch.Tensor:
        """In some of the inputs, after a backward pass."""
        out_IB = self._errors[0]
        self._patterns[0].product_back(
            self._weights[0].numpy(), self._errors[1].numpy(), inputs, out_IB.numpy()
        )
        return out_BX.copy_(out_IB[inputs].T)

    def _reserve(self, events: int, inputs: int) -> None:
        """Inputs and outputs of each layer, and the gradients in them."""
        if not self._x or self._x[0].shape[1] != events:
            widths = [inputs, *map(len, self._biases)]
            self._x, self._errors = (
                [torch.empty(width, events) for width in widths] for _ in range(2)
            )


@kernel(
    "void(int64[::1], int32[::1], float32[::1], float32[::1], int64, int64, float32[:,::1], int64, boolean,"
    " float32[:,::1])"
)
def product(start, column_N, values_N, bias_O, first, stop, x_IX, events, rectify, out_OX):
    """Rows `first` to `stop` of the matrix times x, plus bias."""
    for o in range(first, stop):
        for b in range(events):
            out_OX[o, b] = bias_O[o]
        n, end = start[o], start[o + 1]
        while n + 4 <= end:
            v, w, y, z = values_N[n], values_N[n + 1], values_N[n + 2], values_N[n + 3]
            i, j, k, m = column_N[n], column_N[n + 1], column_N[n + 2], column_N[n + 3]
            for b in range(events):
                out_OX[o, b] += v * x_IX[i, b] + w * x_IX[j, b] + y * x_IX[k, b] + z * x_IX[m, b]
            n += 4
        while n < end:
            w, i = values_N[n], column_N[n]
            for b in range(events):
                out_OX[o, b] += w * x_IX[i, b]
            n += 1
        if rectify:
            for b in range(events):
                out_OX[o, b] = max(out_OX[o, b], np.float32(0))


@kernel("void(int64[::1], int32[::1], float32[:,::1], float32[:,::1], float32[::1])", reorder=True)
def weight_gradient(start, column_N, errors_OB, x_IB, out_N):
    """The product of each weight's error and its input, summed over events."""
    events = errors_OB.shape[1]
    for o in range(len(errors_OB)):
        n, end = start[o], start[o + 1]
        while n + 4 <= end:
            i, j, k, m = column_N[n], column_N[n + 1], column_N[n + 2], column_N[n + 3]
            v = w = y = z = np.float32(0)
            for b in range(events):
                error = errors_OB[o, b]
                v += error * x_IB[i, b]
                w += error * x_IB[j, b]
                y += error * x_IB[k, b]
                z += error * x_IB[m, b]
            out_N[n], out_N[n + 1], out_N[n + 2], out_N[n + 3] = v, w, y, z
            n += 4
        while n < end:
            i, w = column_N[n], np.float32(0)
            for b in range(events):
                w += errors_OB[o, b] * x_IB[i, b]
            out_N[n] = w
            n += 1


@kernel("void(float32[:,::1], float32[:,::1])")
def rectify_back(errors_HB, active_HB):
    """The gradient before the rectifier, in place, from that behind it and what came out of it."""
    for h in range(len(errors_HB)):
        for b in range(errors_HB.shape[1]):
            errors_HB[h, b] = errors_HB[h, b] if active_HB[h, b] > 0 else np.float32(0)
