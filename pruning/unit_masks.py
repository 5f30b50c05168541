"""The masks of a network's units while they are being learned: the interface, and masks by
magnitude.

In: gradients in the masks, weights, and the share of multiply-adds allowed. Out: the units that
live. How important a unit is for the loss is learned in `pruning.auxiliary`, the other kind of
masks.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch

from niwaki.pruning.units import Amounts, Cost, Group, MaskGradient, Tensors, uniform_widths


class UnitMasks(ABC):
    """One 0/1 mask for each group of units. All units live at first."""

    def __init__(self, groups: Sequence[Group], cost: Cost):
        self.groups = tuple(groups)
        self.cost = cost
        self.alive = {group.name: torch.ones(group.size, dtype=torch.bool) for group in self.groups}
        self.fixed: dict[str, int] = {}
        """Amounts alive in groups that are not chosen here."""
        self.steps = 0
        """Updates so far."""

    @abstractmethod
    def update(
        self, gradients: Mapping[str, MaskGradient], target_ratio: float, weights: Tensors
    ) -> None:
        """Learn from a batch's gradients in the masks and from the present weights, by group and by
        parameter; then let multiply-adds fall to `target_ratio` of the dense network's, (0, 1]."""

    def masks(self) -> dict[str, torch.Tensor]:
        """By group, 0 or 1 as float32 (U,)."""
        return {name: alive.float() for name, alive in self.alive.items()}

    def kept(self) -> dict[str, torch.Tensor]:
        """By group, the sorted indices of the units alive."""
        return {name: alive.nonzero().squeeze(1) for name, alive in self.alive.items()}

    def ratio(self) -> float:
        """Multiply-adds under the masks, as a share of the dense network's."""
        return self.cost.total(self._amounts()) / self.cost.total({})

    def state(self) -> dict[str, torch.Tensor]:
        """All tensors, for a snapshot."""
        return {f"alive.{name}": tensor for name, tensor in self.alive.items()}

    def restore(self, tensors: Tensors, steps: int) -> None:
        """Continue where `state` was taken, after `steps` updates."""
        self.steps = steps
        self.alive = {group.name: tensors[f"alive.{group.name}"].clone() for group in self.groups}

    def _amounts(self) -> Amounts:
        return {
            group.name: group.amount(self.alive[group.name]) for group in self.groups
        } | self.fixed

    def _keep_highest(self, group: Group, scores_U: torch.Tensor, units: int) -> None:
        """Let the `units` units of `group` with the highest scores live, and no others."""
        chosen = torch.zeros(group.size, dtype=torch.bool)
        self.alive[group.name] = chosen.index_fill(0, scores_U.topk(units).indices, True)


class MagnitudeMasks(UnitMasks):
    """The units with the largest weights live, the same share in each layer; a pruned unit stays
    pruned (Zhu & Gupta, arXiv:1710.01878)."""

    def update(
        self, gradients: Mapping[str, MaskGradient], target_ratio: float, weights: Tensors
    ) -> None:
        """Let multiply-adds fall to `target_ratio` of dense, (0, 1], by the size of `weights`;
        `gradients` are not read."""
        self.steps += 1
        scores = {
            group.name: group.magnitudes(weights).masked_fill(~self.alive[group.name], -1.0)
            for group in self.groups
        }
        widths = uniform_widths(self.groups, self.cost, target_ratio, self.fixed, scores)
        for group in self.groups:
            if widths[group.name] < int(self.alive[group.name].sum()):
                self._keep_highest(group, scores[group.name], widths[group.name])
