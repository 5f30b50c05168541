"""Auxiliary-mask pruning: which units live is learned from the stream, across layers, within one budget.

Every unit j has an auxiliary parameter a_j and a hard mask m_j = 1[a_j > 0] on its activation, straight-through in
the backward pass: dL/da_j is dL/dm_j, the first-order importance of the unit's outgoing weights (AutoPrune, Xiao et
al., NeurIPS 2019; arXiv:2010.08655, section 3). a_j falls by lambda * cost_j, and lambda is solved at each step so
that the multiply-adds under the masks follow a schedule down to the budget: nothing to tune, and no per-layer ratio
anywhere.
"""

from collections.abc import Sequence

import msgspec
import torch

from pruning.units import Cost, UnitGroup


class AuxiliaryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the auxiliary parameters learn."""

    horizon_steps: float = 100.0
    """Steps over which a unit's importance is averaged, >= 1."""
    curvature: float = 0.5
    """Weight of the second-order term, the unit's Fisher information, beside the first-order one, >= 0."""
    min_units: int = 4
    """Units that stay alive in every group whatever their importance, >= 1, so that no layer dies."""


class AuxiliaryMasks:
    """The auxiliary parameters of all groups, and the masks that follow from them."""

    kind = "auxiliary"

    def __init__(self, groups: Sequence[UnitGroup], cost: Cost, config: AuxiliaryConfig | None = None):
        self.groups, self.cost, self.config = tuple(groups), cost, config or AuxiliaryConfig()
        self._dense = cost.total({})
        self._importance = {group.name: torch.zeros(group.size) for group in self.groups}
        self.alive = {group.name: torch.ones(group.size, dtype=torch.bool) for group in self.groups}
        self.steps = 0

    def masks(self, events: int) -> dict[str, torch.Tensor]:
        """Masks for a forward pass over B = `events`: 0/1, (B, size) by group, leaves whose gradient `update` reads.

        One row an event, so that the backward pass leaves each event's own dL/dm_j: their mean is the first-order
        importance, their mean square the Fisher information.
        """
        return {name: alive.float().expand(events, -1).clone().requires_grad_() for name, alive in self.alive.items()}

    def update(
        self, masks: dict[str, torch.Tensor], target_ratio: float, weights: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Learn from the gradients of a mean loss in `masks`, then let multiply-adds fall to `target_ratio` of dense
        (0..1]. `weights` are not read: importance is a matter of gradients here."""
        self.steps += 1
        rate = max(1 / self.config.horizon_steps, 1 / self.steps)
        for name, mask in masks.items():
            gradients_BU = mask.grad * len(mask)
            # L(without) - L(with), to second order around the mask as it stands; curvature: the Fisher information
            curvature = self.config.curvature * gradients_BU.square().mean(0)
            worth = -gradients_BU.mean(0) + torch.where(self.alive[name], curvature, -curvature)
            self._importance[name].lerp_(worth, rate)
        self._solve(target_ratio)

    def kept(self) -> dict[str, torch.Tensor]:
        """Sorted indices of the units alive, by group."""
        return {name: alive.nonzero().squeeze(1) for name, alive in self.alive.items()}

    def ratio(self) -> float:
        """Multiply-adds under the masks, as a share of dense."""
        return self.cost.total(self._counts(self.alive)) / self._dense

    def state(self) -> dict[str, torch.Tensor]:
        """Importance and liveness by group, for a snapshot."""
        importance = {f"importance.{name}": tensor for name, tensor in self._importance.items()}
        return importance | {f"alive.{name}": tensor for name, tensor in self.alive.items()}

    def restore(self, tensors: dict[str, torch.Tensor], steps: int) -> None:
        """Undo `state`."""
        self.steps = steps
        for group in self.groups:
            self._importance[group.name] = tensors[f"importance.{group.name}"].clone()
            self.alive[group.name] = tensors[f"alive.{group.name}"].clone()

    def _solve(self, target_ratio: float) -> None:
        """Bisect lambda: the smallest price of a multiply-add at which the units worth it fit the target."""
        prices = self.cost.marginal(self._counts(self.alive))
        value = {name: worth / prices[name] for name, worth in self._importance.items()}
        floors = {name: v.topk(min(self.config.min_units, len(v))).indices for name, v in value.items()}
        every = torch.cat(list(value.values())).sort().values
        low, high = -1, len(every)  # keep all .. keep none
        alive = self._above(value, floors, float("-inf"))
        if self.cost.total(self._counts(alive)) > target_ratio * self._dense:
            while high - low > 1:
                middle = (low + high) // 2
                alive = self._above(value, floors, every[middle].item())
                fits = self.cost.total(self._counts(alive)) <= target_ratio * self._dense
                low, high = (low, middle) if fits else (middle, high)
            alive = self._above(value, floors, every[high].item() if high < len(every) else float("inf"))
        self.alive = alive

    @staticmethod
    def _above(value: dict, floors: dict, price: float) -> dict[str, torch.Tensor]:
        return {name: (v > price).index_fill(0, floors[name], True) for name, v in value.items()}

    @staticmethod
    def _counts(alive: dict[str, torch.Tensor]) -> dict[str, int]:
        return {name: int(mask.sum()) for name, mask in alive.items()}
