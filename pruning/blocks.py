"""Blocks of weights as units: a matrix is cut into a grid, and each cell of it lives or does not.

A single weight is a block of 1 x 1. The mask is on the weights, w * m, straight-through in the
backward pass, so the gradient in a block's mask is the sum of w * dL/d(w m) over its weights
(AutoPrune, Xiao et al., NeurIPS 2019; arXiv:2010.08655, section 3). Biases belong to no block.
Blocks at the edges are smaller, and cost less.

Shapes: O outputs, I inputs of a matrix; U units, row by row of the grid.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as fn

Block = tuple[int, int]
"""Rows (outputs) and columns (inputs) of a block, >= 1 each."""


class BlockGroup(NamedTuple):
    """The blocks of one matrix."""

    name: str
    parameter: str
    shape: tuple[int, int]
    block: Block

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    @property
    def size(self) -> int:
        """Units in the group."""
        return self.grid[0] * self.grid[1]

    @property
    def weights_U(self) -> torch.Tensor:
        """How many weights each block has, int64."""
        heights, widths = (
            torch.tensor([min(side, total - at) for at in range(0, total, side)])
            for side, total in zip(self.block, self.shape, strict=True)
        )
        return (heights[:, None] * widths).flatten()

    @property
    def alike(self) -> bool:
        """Whether each unit costs the same."""
        return self.shape[0] % self.block[0] == self.shape[1] % self.block[1] == 0

    @property
    def kinds(self) -> list[torch.Tensor]:
        """The units that cost the same, as bool (U,)."""
        weights_U = self.weights_U
        return [weights_U == weights for weights in weights_U.unique()]

    def amount(self, alive_U: torch.Tensor) -> int:
        """Weights of the units alive."""
        return int(self.weights_U[alive_U].sum())

    def amounts(self, order_U: torch.Tensor | None = None) -> np.ndarray:
        """(U + 1,): weights of the first 0, 1, 2, ... units; `order_U` may be left out where they
        are alike."""
        weights_U = self.weights_U if order_U is None else self.weights_U[order_U]
        return np.concatenate([[0], weights_U.cumsum(0).numpy()])

    def any_order(self, generator: torch.Generator) -> torch.Tensor:
        """Its units in the order in which a narrow network is to take them: at random."""
        return torch.randperm(self.size, generator=generator)

    def spread(self, units_U: torch.Tensor) -> torch.Tensor:
        """(O, I): each weight has what its unit has."""
        rows = units_U.view(self.grid).repeat_interleave(self.block[0], 0)[: self.shape[0]]
        return rows.repeat_interleave(self.block[1], 1)[:, : self.shape[1]]

    def sums(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """(U,): the sum over each unit's weights."""
        (rows, columns), (height, width) = self.grid, self.block
        beyond = (0, columns * width - self.shape[1], 0, rows * height - self.shape[0])
        return fn.pad(matrix_OI, beyond).view(rows, height, columns, width).sum((1, 3)).flatten()

    def within(self, kept: torch.Tensor) -> torch.Tensor:
        """(O, I) bool: the weights of the units `kept`."""
        return self.spread(torch.zeros(self.size, dtype=torch.bool).index_fill(0, kept, True))


class BlockCost:
    """Multiply-adds of one prediction, as `pruning.units.Cost`; what is alive is counted in
    weights."""

    def __init__(self, groups: Sequence[BlockGroup], whole: Mapping[str, int], fixed: int = 0):
        """`whole`: weights that there are, by group. `fixed`: what no unit can save."""
        self._groups, self._whole, self._fixed = tuple(groups), dict(whole), fixed

    def total(self, alive: Mapping[str, int]) -> int:
        """Multiply-adds with `alive[group]` weights in each group; a group that is not named is
        whole."""
        return self._fixed + sum(alive.get(name, whole) for name, whole in self._whole.items())

    def marginal(self, alive: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """(U,) float32 by group: multiply-adds that each unit costs, whatever else is alive."""
        return {group.name: group.weights_U.float() for group in self._groups}
