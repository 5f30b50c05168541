"""Blocks of weights as units: a matrix is cut into a grid, and each cell of the grid lives or does
not.

A single weight is a block of 1 x 1. The mask acts on the weights, w * m, straight-through in the
backward pass, so the gradient in a block's mask is the sum of w * dL/d(w m) over its weights
(AutoPrune, Xiao et al., NeurIPS 2019; arXiv:2010.08655, section 3). Biases belong to no block.
Blocks at the edges of a matrix are smaller, and cost less.

Shapes: O outputs, I inputs of a matrix; U units, row by row of the grid.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as fn

from niwaki.pruning.units import Amounts, MaskGradient, Survivors, Tensors

Block = tuple[int, int]
"""Rows (outputs) and columns (inputs) of a block, >= 1 each."""


class BlockGroup(NamedTuple):
    """A `Group` of the blocks of one matrix."""

    name: str
    parameter: str
    """Name of the matrix."""
    shape: tuple[int, int]
    """Outputs and inputs of the matrix."""
    block: Block

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    @property
    def size(self) -> int:
        """Number of units U."""
        return self.grid[0] * self.grid[1]

    @property
    def weights_U(self) -> torch.Tensor:
        """int64, the number of weights of each block."""
        heights, widths = (
            torch.tensor([min(side, total - at) for at in range(0, total, side)])
            for side, total in zip(self.block, self.shape, strict=True)
        )
        return (heights[:, None] * widths).flatten()

    @property
    def alike(self) -> bool:
        """True where the grid fits the matrix, so that all units cost the same."""
        return self.shape[0] % self.block[0] == self.shape[1] % self.block[1] == 0

    @property
    def kinds(self) -> list[torch.Tensor]:
        """The sets of units that cost the same, each as bool (U,)."""
        weights_U = self.weights_U
        return [weights_U == weights for weights in np.unique(weights_U.numpy())]

    def amount(self, alive_U: torch.Tensor) -> int:
        """The number of weights of the units alive."""
        return int(self.weights_U[alive_U].sum())

    def amounts(self, order_U: torch.Tensor | None = None) -> np.ndarray:
        """(U + 1,): the weights of the first 0, 1, 2, ... units. `order_U` may be left out where
        units are alike."""
        weights_U = self.weights_U if order_U is None else self.weights_U[order_U]
        return np.concatenate([[0], weights_U.cumsum(0).numpy()])

    def initial_order(self, generator: torch.Generator) -> torch.Tensor:
        """The units in random order, so that a narrow network's weights are spread over the
        matrix."""
        return torch.randperm(self.size, generator=generator)

    def magnitudes(self, weights: Tensors) -> torch.Tensor:
        """(U,): the norm of each block."""
        return self.sums(weights[self.parameter].square()).sqrt()

    def gradient_norms(self, gradients: Tensors) -> torch.Tensor:
        """(U,): the norm of the gradient in each block."""
        return self.magnitudes(gradients)

    def importance(
        self, gradient: MaskGradient, alive_U: torch.Tensor, curvature: float
    ) -> torch.Tensor:
        """(U,): the Fisher information of each block, alive or not (Theis et al.,
        arXiv:1801.05787).

        The first-order change of the loss is mostly noise for so few weights. Measured: pruning by
        it removes so many paths that no signal is left.
        """
        return gradient.square_U

    def mark(self, kept: torch.Tensor, survivors: Survivors) -> None:
        """Name the weights of the units in `kept` as the matrix's survivors."""
        survivors.weights[self.parameter] = self.within(kept)

    def zero_outgoing(self, tensors: Tensors, kept: torch.Tensor) -> None:
        """Set all weights of the units outside `kept` to zero, in place."""
        tensors[self.parameter].masked_fill_(~self.within(kept), 0.0)

    def spread(self, units_U: torch.Tensor) -> torch.Tensor:
        """(O, I): the value of each weight's unit."""
        rows = units_U.view(self.grid).repeat_interleave(self.block[0], 0)[: self.shape[0]]
        return rows.repeat_interleave(self.block[1], 1)[:, : self.shape[1]]

    def sums(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """(U,): the sum over each unit's weights."""
        rows, columns = self.grid
        height, width = self.block
        beyond = (0, columns * width - self.shape[1], 0, rows * height - self.shape[0])
        return fn.pad(matrix_OI, beyond).view(rows, height, columns, width).sum((1, 3)).flatten()

    def within(self, kept: torch.Tensor) -> torch.Tensor:
        """(O, I) bool: the weights of the units `kept`."""
        return self.spread(torch.zeros(self.size, dtype=torch.bool).index_fill(0, kept, True))


class BlockCost:
    """The `Cost` of a network whose units are blocks; amounts are counted in weights."""

    def __init__(self, groups: Sequence[BlockGroup], whole: Mapping[str, int], fixed: int = 0):
        """`whole`: the number of weights of each group's matrix. `fixed`: multiply-adds that no
        unit can save."""
        self._groups = tuple(groups)
        self._whole = dict(whole)
        self._fixed = fixed

    def total(self, alive: Amounts) -> int:
        """Multiply-adds with `alive[group]` weights in each group; a group that is not named is
        whole."""
        return self._fixed + sum(alive.get(name, whole) for name, whole in self._whole.items())

    def marginal(self, alive: Amounts) -> dict[str, int | torch.Tensor]:
        """By group (U,) float32: the multiply-adds that each unit costs, whatever else is alive."""
        return {group.name: group.weights_U.float() for group in self._groups}
