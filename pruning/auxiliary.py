"""Auxiliary-mask pruning: which units live is learned from the stream, across layers, within one
budget.

Every unit j has an auxiliary parameter a_j and a hard mask m_j = 1[a_j > 0] on its activation or on
its weights, straight-through in the backward pass: dL/da_j is dL/dm_j, the first-order importance
of the unit's outgoing weights (AutoPrune, Xiao et al., NeurIPS 2019; arXiv:2010.08655, section 3).
a_j falls by lambda * cost_j, and lambda is solved at each step so that the multiply-adds under the
masks follow a schedule down to the budget: nothing to tune, and no per-layer ratio anywhere.
"""

import bisect
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import torch

from niwaki.pruning.blocks import BlockCost, BlockGroup
from niwaki.pruning.units import Cost, Group, MaskGradient, amounts_by, uniform_widths


class AuxiliaryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the auxiliary parameters learn."""

    horizon_steps: float = 100.0
    """Steps over which a unit's importance is averaged, >= 1."""
    curvature: float = 0.5
    """Weight of the second-order term, the unit's Fisher information, beside the first-order one,
    >= 0. Blocks of weights have the second-order term alone."""
    uniform: bool = False
    """Every layer keeps the same share of its units, the most important ones. False: how much each
    layer keeps is learned, too."""
    min_units: int = 4
    """Units that stay alive in every group whatever their importance, >= 1, so that no layer
    dies."""


class AuxiliaryMasks:
    """The auxiliary parameters of all groups, and the masks that follow from them."""

    kind = "auxiliary"

    def __init__(
        self, groups: Sequence[Group], cost: Cost | BlockCost, config: AuxiliaryConfig | None = None
    ):
        self.groups, self.cost, self.config = tuple(groups), cost, config or AuxiliaryConfig()
        self._dense = cost.total({})
        self._importance = {group.name: torch.zeros(group.size) for group in self.groups}
        self.alive = {group.name: torch.ones(group.size, dtype=torch.bool) for group in self.groups}
        self.given: dict[str, int] = {}
        """Units alive in groups that somebody else decides about."""
        self.steps = 0

    def masks(self) -> dict[str, torch.Tensor]:
        """0/1 as float32, (size,) by group."""
        return {name: alive.float() for name, alive in self.alive.items()}

    def update(
        self,
        gradients: Mapping[str, MaskGradient],
        target_ratio: float,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Learn from the gradients in the masks, then let multiply-adds fall to `target_ratio` of
        dense (0..1]. `weights` are not read: importance is a matter of gradients here."""
        self.steps += 1
        for group in self.groups:
            learn = learn_sensitivity if isinstance(group, BlockGroup) else learn_importance
            name = group.name
            learn(
                self._importance[name], self.alive[name], gradients[name], self.steps, self.config
            )
        self._solve(target_ratio)

    def kept(self) -> dict[str, torch.Tensor]:
        """Sorted indices of the units alive, by group."""
        return {name: alive.nonzero().squeeze(1) for name, alive in self.alive.items()}

    def ratio(self) -> float:
        """Multiply-adds under the masks, as a share of dense."""
        return self.cost.total(self._counts()) / self._dense

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
        """Bisect lambda: the smallest price of a multiply-add at which the units worth it fit the
        target."""
        if self.config.uniform:
            widths = uniform_widths(
                self.groups, self.cost, target_ratio, self.given, self._importance
            )
            for name, width in widths.items():
                worth = self._importance[name]
                self.alive[name] = torch.zeros(len(worth), dtype=torch.bool).index_fill(
                    0, worth.topk(width).indices, True
                )
            return
        prices = self.cost.marginal(self._counts())
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
            return self.cost.total(alive | self.given) <= target_ratio * self._dense

        price = float("-inf")
        if not fits(price):
            every = np.sort(
                np.concatenate(list(ordered.values())), kind="stable"
            )  # which is fast on sorted runs
            place = bisect.bisect_left(every, True, key=fits)  # the dearer, the fewer
            price = float(every[place]) if place < len(every) else float("inf")
        for name, v in value.items():
            self.alive[name] = (v > price).index_fill(0, least[name], True)

    def _counts(self) -> dict[str, int]:
        return {
            group.name: group.amount(self.alive[group.name]) for group in self.groups
        } | self.given


def learn_importance(
    importance_U: torch.Tensor,
    alive_U: torch.Tensor,
    gradient: MaskGradient,
    steps: int,
    config: AuxiliaryConfig,
) -> None:
    """Move the running importance of units, in place, towards what step number `steps` says of
    them: L(without) - L(with), to second order around the mask as it stands; curvature: the Fisher
    information."""
    curvature_U = config.curvature * gradient.square_U
    worth_U = torch.where(alive_U, curvature_U, -curvature_U) - gradient.mean_U
    importance_U.lerp_(worth_U, max(1 / config.horizon_steps, 1 / steps))


def learn_sensitivity(
    importance_U: torch.Tensor,
    alive_U: torch.Tensor,
    gradient: MaskGradient,
    steps: int,
    config: AuxiliaryConfig,
) -> None:
    """The same for blocks of weights: their Fisher information alone, alive or not (Theis et al.,
    arXiv:1801.05787).

    What one weight changes to first order is mostly noise: measured, it cuts so many paths that
    nothing is left to say.
    """
    importance_U.lerp_(gradient.square_U, max(1 / config.horizon_steps, 1 / steps))
