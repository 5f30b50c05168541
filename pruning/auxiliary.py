"""Auxiliary-mask pruning: the living units are learned from the stream, across layers, within one
budget.

Every unit j has an auxiliary parameter a_j and a hard mask m_j = 1[a_j > 0] on its activation or on
its weights, straight-through in the backward pass: dL/da_j is dL/dm_j, the first-order importance
of the unit's outgoing weights (AutoPrune, Xiao et al., NeurIPS 2019; arXiv:2010.08655, section 3).
a_j falls by lambda * cost_j, and lambda is solved at each step so that the multiply-adds under the
masks follow a schedule down to the budget: there is nothing to tune, and no ratio of a single layer
anywhere.
"""

import bisect
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
import numpy as np
import torch

from niwaki.pruning.unit_masks import UnitMasks
from niwaki.pruning.units import Cost, Group, MaskGradient, Tensors, amounts_by, uniform_widths

_NO_TENSORS: Tensors = MappingProxyType({})


class AuxiliaryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the auxiliary parameters' learning."""

    horizon_steps: float = 100.0
    """Steps over which a unit's importance is averaged, >= 1."""
    curvature: float = 0.5
    """Weight of the second-order term, the unit's Fisher information, beside the first-order one,
    >= 0. Blocks of weights have the second-order term alone."""
    uniform: bool = False
    """True: every layer keeps the same share of its units, the most important ones. False: the
    share that each layer keeps is learned, too."""
    min_units: int = 4
    """Units that stay alive in every group whatever their importance, >= 1, so that no layer
    dies."""


class AuxiliaryMasks(UnitMasks):
    """The auxiliary parameters of all groups, and the masks that follow from them."""

    def __init__(self, groups: Sequence[Group], cost: Cost, config: AuxiliaryConfig | None = None):
        super().__init__(groups, cost)
        self.config = config or AuxiliaryConfig()
        self._dense = cost.total({})
        self._importance = {group.name: torch.zeros(group.size) for group in self.groups}

    def update(
        self,
        gradients: Mapping[str, MaskGradient],
        target_ratio: float,
        weights: Tensors = _NO_TENSORS,
    ) -> None:
        """Learn from the gradients in the masks, then let multiply-adds fall to `target_ratio` of
        dense, (0, 1]. `weights` are not read."""
        self.steps += 1
        for group in self.groups:
            name = group.name
            worth_U = group.importance(gradients[name], self.alive[name], self.config.curvature)
            average_importance(self._importance[name], worth_U, self.steps, self.config)
        if self.config.uniform:
            self._keep_uniform(target_ratio)
        else:
            self._solve(target_ratio)

    def state(self) -> dict[str, torch.Tensor]:
        """Importance and liveness by group, for a snapshot."""
        importance = {f"importance.{name}": tensor for name, tensor in self._importance.items()}
        return importance | super().state()

    def restore(self, tensors: Tensors, steps: int) -> None:
        """Continue where `state` was taken, after `steps` updates."""
        super().restore(tensors, steps)
        for group in self.groups:
            self._importance[group.name] = tensors[f"importance.{group.name}"].clone()

    def _keep_uniform(self, target_ratio: float) -> None:
        scores = self._importance
        widths = uniform_widths(self.groups, self.cost, target_ratio, self.fixed, scores)
        for group in self.groups:
            self._keep_highest(group, scores[group.name], widths[group.name])

    def _solve(self, target_ratio: float) -> None:
        """Bisect lambda: the smallest price of a multiply-add at which the units worth that price
        fit the target."""
        prices = self.cost.marginal(self._amounts())
        value = {name: worth / prices[name] for name, worth in self._importance.items()}
        ordered = {name: np.sort(v.numpy()) for name, v in value.items()}
        amounts = {group.name: amounts_by(group, value[group.name]) for group in self.groups}
        least = {
            name: v.topk(min(self.config.min_units, len(v))).indices for name, v in value.items()
        }
        none = {name: torch.zeros(len(v), dtype=torch.bool) for name, v in value.items()}
        floor = {
            group.name: group.amount(none[group.name].index_fill(0, least[group.name], True))
            for group in self.groups
        }

        def fits(price: float) -> bool:
            dearer = {
                name: len(v) - int(np.searchsorted(v, np.float32(price), "right"))
                for name, v in ordered.items()
            }
            alive = {
                name: int(amounts[name][count]) if count > len(least[name]) else floor[name]
                for name, count in dearer.items()
            }
            return self.cost.total(alive | self.fixed) <= target_ratio * self._dense

        price = float("-inf")
        if not fits(price):
            # A stable sort is fast on sorted runs.
            every = np.sort(np.concatenate(list(ordered.values())), kind="stable")
            place = bisect.bisect_left(every, True, key=fits)  # the dearer, the fewer
            price = float(every[place]) if place < len(every) else float("inf")
        for name, v in value.items():
            self.alive[name] = (v > price).index_fill(0, least[name], True)


def average_importance(
    importance_U: torch.Tensor, worth_U: torch.Tensor, steps: int, config: AuxiliaryConfig
) -> None:
    """Move the running importance of units, in place, towards their worth in step number `steps`
    (from 1)."""
    importance_U.lerp_(worth_U, max(1 / config.horizon_steps, 1 / steps))
