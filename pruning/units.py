"""The units of pruning: groups of things that a mask can remove, and the cost of each.

A unit is whatever disappears as one. This module has the interface of a group, and the groups whose
units are neurons: a neuron is a row of its own layer (weight and bias) and a column of the next
one. Blocks of weights are the other kind (`pruning.blocks`). A group names the parts of the tensors
that belong to its units, so masks, compaction and cost never need to know the network.

Shapes: U units of a group.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

Shapes = Mapping[str, tuple[int, ...]]
Tensors = Mapping[str, torch.Tensor]
Amounts = Mapping[str, int]
"""By group, the size of its living part: a number of neurons, or a number of weights for blocks."""


class MaskGradient(NamedTuple):
    """The gradients of a batch's events in the masks of a group's units."""

    mean_U: torch.Tensor
    """Mean over events."""
    square_U: torch.Tensor
    """Mean of the squares over events."""


class Survivors(NamedTuple):
    """The entries of named tensors that belong to surviving units, filled in group by group."""

    by_dim: dict[str, list[torch.Tensor]]
    """For each tensor and dimension, bool: the indices that survive."""
    weights: dict[str, torch.Tensor]
    """For matrices that are pruned in blocks, bool of the matrix's shape: the weights that
    survive."""


class Group(Protocol):
    """Units that are pruned by one rule, such as the neurons of a layer or the blocks of a
    matrix."""

    @property
    def name(self) -> str:
        """The group's name, unique in its network."""

    @property
    def size(self) -> int:
        """Number of units U."""

    @property
    def alike(self) -> bool:
        """True where all units cost the same."""

    @property
    def kinds(self) -> list[torch.Tensor]:
        """The sets of units that cost the same, each as bool (U,)."""

    def amount(self, alive_U: torch.Tensor) -> int:
        """The amount (see `Amounts`) of the units alive."""

    def amounts(self, order_U: torch.Tensor | None = None) -> np.ndarray:
        """(U + 1,): the amounts of the first 0, 1, 2, ... units. `order_U` may be left out where
        units are alike."""

    def initial_order(self, generator: torch.Generator) -> torch.Tensor:
        """The units in the order in which a narrow, untrained network takes them."""

    def magnitudes(self, weights: Tensors) -> torch.Tensor:
        """(U,): the magnitude of each unit's weights."""

    def gradient_norms(self, gradients: Tensors) -> torch.Tensor:
        """(U,): the norm of the gradient in each unit's weights."""

    def importance(
        self, gradient: MaskGradient, alive_U: torch.Tensor, curvature: float
    ) -> torch.Tensor:
        """(U,): the loss that each unit saves, estimated from one batch. `curvature`: weight of the
        second-order term."""

    def mark(self, kept: torch.Tensor, survivors: Survivors) -> None:
        """Remove the entries of all units outside `kept` (sorted indices) from `survivors`."""

    def zero_outgoing(self, tensors: Tensors, kept: torch.Tensor) -> None:
        """Set the outgoing weights of all units outside `kept` to zero, in place."""


class Cost(Protocol):
    """Multiply-adds of one prediction as a function of the amounts alive."""

    def total(self, alive: Amounts) -> int:
        """Multiply-adds with `alive[group]` in each group; a group that is not named is whole."""

    def marginal(self, alive: Amounts) -> Mapping[str, int | torch.Tensor]:
        """By group, the multiply-adds that one more unit costs (one number, or (U,) float32 for
        each unit), the others as in `alive`."""


class Slice(NamedTuple):
    """Unit j of a group owns index `offset + j` of dimension `dim` of the tensor `parameter`."""

    parameter: str
    dim: int
    offset: int = 0


class UnitGroup(NamedTuple):
    """A `Group` of neurons, or of columns of the embedding tables."""

    name: str
    size: int
    slices: tuple[Slice, ...]
    """The entries of a unit, the outgoing weights last."""

    @property
    def alike(self) -> bool:
        """True: each neuron of a layer costs the same."""
        return True

    @property
    def kinds(self) -> list[torch.Tensor]:
        """All units, as bool (U,)."""
        return [torch.ones(self.size, dtype=torch.bool)]

    def amount(self, alive_U: torch.Tensor) -> int:
        """The number of units alive."""
        return int(alive_U.sum())

    def amounts(self, order_U: torch.Tensor | None = None) -> np.ndarray:
        """(U + 1,): 0, 1, 2, ..., U."""
        return np.arange(self.size + 1)

    def initial_order(self, generator: torch.Generator) -> torch.Tensor:
        """The units as they stand: untrained neurons do not differ."""
        return torch.arange(self.size)

    def magnitudes(self, weights: Tensors) -> torch.Tensor:
        """(U,): the norm of a neuron's incoming weights times that of its outgoing ones."""
        product = torch.ones(self.size)
        for s in self.slices:
            tensor = weights[s.parameter]
            if tensor.dim() == 2:
                product *= tensor.narrow(s.dim, s.offset, self.size).norm(dim=1 - s.dim)
        return product

    def gradient_norms(self, gradients: Tensors) -> torch.Tensor:
        """(U,): the norm of the gradient in a neuron's incoming and outgoing weights."""
        squares = torch.zeros(self.size)
        for s in self.slices:
            tensor = gradients[s.parameter]
            if tensor.dim() == 2:
                squares += tensor.narrow(s.dim, s.offset, self.size).square().sum(1 - s.dim)
        return squares.sqrt()

    def importance(
        self, gradient: MaskGradient, alive_U: torch.Tensor, curvature: float
    ) -> torch.Tensor:
        """(U,): L(without) - L(with), to second order around the mask as it stands; the curvature
        is the Fisher information."""
        curvature_U = curvature * gradient.square_U
        return torch.where(alive_U, curvature_U, -curvature_U) - gradient.mean_U

    def mark(self, kept: torch.Tensor, survivors: Survivors) -> None:
        """Remove the indices of all units outside `kept`, in every slice."""
        alive_U = torch.zeros(self.size, dtype=torch.bool)
        alive_U[kept] = True
        for s in self.slices:
            survivors.by_dim[s.parameter][s.dim][s.offset : s.offset + self.size] = alive_U

    def zero_outgoing(self, tensors: Tensors, kept: torch.Tensor) -> None:
        """Set the last slice of all units outside `kept` to zero, in place."""
        outgoing = self.slices[-1]
        gone_U = torch.ones(self.size, dtype=torch.bool).index_fill(0, kept, False)
        gone = gone_U.nonzero().squeeze(1) + outgoing.offset
        tensors[outgoing.parameter].index_fill_(outgoing.dim, gone, 0.0)


class UnitCost:
    """The `Cost` of a network whose units are neurons, from the shapes of its matrices alone."""

    def __init__(self, shapes: Shapes, groups: Sequence[UnitGroup], fixed: int = 0):
        """`shapes`: of every dense parameter; matrices cost one multiply-add an entry. `fixed`:
        multiply-adds that no unit can save."""
        self._matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
        self._groups = tuple(groups)
        self._fixed = fixed

    def total(self, alive: Amounts) -> int:
        """Multiply-adds with `alive[group]` units in each group; a group that is not named is
        whole."""
        widths = self._widths(alive)
        return self._fixed + sum(widths[name, 0] * widths[name, 1] for name in self._matrices)

    def marginal(self, alive: Amounts) -> dict[str, int | torch.Tensor]:
        """By group, the multiply-adds that one more unit costs, the others as in `alive`."""
        widths = self._widths(alive)
        return {
            group.name: sum(
                widths[s.parameter, 1 - s.dim]
                for s in group.slices
                if s.parameter in self._matrices
            )
            for group in self._groups
        }

    def _widths(self, alive: Amounts) -> dict[tuple[str, int], int]:
        widths = {
            (name, dim): size
            for name, shape in self._matrices.items()
            for dim, size in enumerate(shape)
        }
        for group in self._groups:
            removed = group.size - alive.get(group.name, group.size)
            for s in group.slices:
                if s.parameter in self._matrices:
                    widths[s.parameter, s.dim] -= removed
        return widths


def uniform_widths(
    groups: Sequence[Group],
    cost: Cost,
    ratio: float,
    fixed: Amounts | None = None,
    scores: Tensors | None = None,
) -> dict[str, int]:
    """By group, the number of units that fits `ratio` of the dense multiply-adds: the same share of
    each group, at least one unit.

    `fixed`: amounts alive in groups that are not chosen here. `scores`: by group (U,); the units
    with the highest scores come first. None: the units' own order.
    """
    amounts = {
        group.name: amounts_by(group, scores[group.name] if scores else None) for group in groups
    }

    def widths(share: float) -> dict[str, int]:
        return {group.name: max(1, int(group.size * share + 1e-9)) for group in groups}

    def total(share: float) -> int:
        alive = {name: int(amounts[name][width]) for name, width in widths(share).items()}
        return cost.total({**alive, **(fixed or {})})

    shares = np.unique(
        np.concatenate([np.arange(1, group.size + 1) / group.size for group in groups])
    )
    low, high = 0, len(shares)
    while high - low > 1:
        middle = (low + high) // 2
        fits = total(shares[middle]) <= ratio * cost.total({})
        low, high = (middle, high) if fits else (low, middle)
    return widths(shares[low])


def amounts_by(group: Group, scores_U: torch.Tensor | None) -> np.ndarray:
    """(U + 1,): the amounts of the 0, 1, 2, ... units with the highest scores."""
    if scores_U is None or group.alike:
        return group.amounts()
    return group.amounts(scores_U.argsort(descending=True))
