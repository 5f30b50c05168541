"""What a mask can remove: groups of units, and what each unit costs.

A unit is whatever disappears as one: a neuron is a row of its own layer (weight and bias) and a
column of the next. Blocks of weights are the other kind, with the same interface: see
`pruning.blocks`. A `UnitGroup` names those slices, so that masks, compaction and cost never need to
know the network. Cost is counted in multiply-adds of one prediction, from the shapes of the
matrices alone.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from niwaki.pruning.blocks import BlockCost, BlockGroup

Shapes = Mapping[str, tuple[int, ...]]
Alive = Mapping[str, int]


class Slice(NamedTuple):
    """Unit j of a group owns index `offset + j` of dimension `dim` of the tensor `parameter`."""

    parameter: str
    dim: int
    offset: int = 0


class UnitGroup(NamedTuple):
    """`size` units that are alike, such as the neurons of one layer."""

    name: str
    size: int
    slices: tuple[Slice, ...]

    @property
    def alike(self) -> bool:
        """Whether each unit costs the same."""
        return True

    @property
    def kinds(self) -> list[torch.Tensor]:
        """The units that cost the same, as bool (size,)."""
        return [torch.ones(self.size, dtype=torch.bool)]

    def amount(self, alive_U: torch.Tensor) -> int:
        """What `Cost` counts of the units alive: how many they are."""
        return int(alive_U.sum())

    def amounts(self, order_U: torch.Tensor | None = None) -> np.ndarray:
        """(size + 1,): the same of the first 0, 1, 2, ... units, in whatever order."""
        return np.arange(self.size + 1)

    def any_order(self, generator: torch.Generator) -> torch.Tensor:
        """Its units in the order in which a narrow network is to take them: none is like another
        before it learns."""
        return torch.arange(self.size)


Group = UnitGroup | BlockGroup


class MaskGradient(NamedTuple):
    """What a batch says of the masks of a group's units: of each event's own gradient in them,
    (size,)."""

    mean_U: torch.Tensor
    square_U: torch.Tensor
    """Mean of the squares."""


class Cost:
    """Multiply-adds of one prediction as a function of how many units of each group are alive."""

    def __init__(self, shapes: Shapes, groups: Sequence[UnitGroup], fixed: int = 0):
        """`shapes`: of every dense parameter; matrices cost one multiply-add an entry. `fixed`:
        what no unit can save."""
        self._matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
        self._groups, self._fixed = tuple(groups), fixed

    def total(self, alive: Alive) -> int:
        """Multiply-adds with `alive[group]` units in each group; a group that is not named is
        whole."""
        widths = self._widths(alive)
        return self._fixed + sum(widths[name, 0] * widths[name, 1] for name in self._matrices)

    def marginal(self, alive: Alive) -> dict[str, int]:
        """Multiply-adds that one more unit of each group costs, the others as in `alive`."""
        widths = self._widths(alive)
        return {
            group.name: sum(
                widths[s.parameter, 1 - s.dim]
                for s in group.slices
                if s.parameter in self._matrices
            )
            for group in self._groups
        }

    def _widths(self, alive: Alive) -> dict[tuple[str, int], int]:
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
    cost: Cost | BlockCost,
    ratio: float,
    given: Alive | None = None,
    scores: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, int]:
    """How many units of each group fit `ratio` of the dense multiply-adds, the same share of each,
    at least one. `given`: units alive in other groups; one that is not named is whole. `scores`:
    the highest come first; None: in the units' own order."""
    amounts = {
        group.name: amounts_by(group, scores[group.name] if scores else None) for group in groups
    }

    def widths(share: float) -> dict[str, int]:
        return {group.name: max(1, int(group.size * share + 1e-9)) for group in groups}

    def total(share: float) -> int:
        alive = {name: int(amounts[name][width]) for name, width in widths(share).items()}
        return cost.total({**alive, **(given or {})})

    shares = np.unique(
        np.concatenate([np.arange(1, group.size + 1) / group.size for group in groups])
    )
    low, high = 0, len(shares)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if total(shares[middle]) <= ratio * cost.total({}) else (low, middle)
        )
    return widths(shares[low])


def amounts_by(group: Group, scores: torch.Tensor | None) -> np.ndarray:
    """(size + 1,): what `Cost` counts of the 0, 1, 2, ... units with the highest scores."""
    return group.amounts(None if scores is None or group.alike else scores.argsort(descending=True))
