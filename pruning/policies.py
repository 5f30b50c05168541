"""What a user would compare with: a small network, gradual magnitude pruning, RigL; and every
policy by its name.

They share the unit groups, the compaction, the publication and the evaluation with the adaptive
policies, so that a comparison is one of *when* and *what* is pruned and nothing else. All of them
give each layer the same share of units (the largest that fits the budget): how much each layer
keeps is not learned.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from niwaki.pruning.blocks import BlockCost, BlockGroup
from niwaki.pruning.policy import (
    ALONE,
    Adaptive,
    AdaptiveLive,
    Comparison,
    Move,
    Periodic,
    Phase,
    Policy,
    PolicyState,
    PruningConfig,
    Static,
)
from niwaki.pruning.units import Cost, Group, MaskGradient, uniform_widths


class Small(Policy):
    """A small network from the start: the sceptic's question, why not simply train that."""

    narrow_from_the_start = True


class Magnitude(Static):
    """Gradual magnitude pruning (Zhu & Gupta, arXiv:1710.01878), the same ratio in each layer, then
    frozen."""

    masks = "magnitude"


class Rigl(Policy):
    """A fixed budget from the start; at intervals the weakest units of each layer give way to those
    with the largest gradients (Evci et al., RigL, arXiv:1911.11134). That is the original where
    units are single weights."""

    narrow_from_the_start = True

    def decide(self, events: int, drifted: bool, comparison: Comparison = ALONE) -> Move:
        if events - self.state.since_event < self.config.period_events / 10:
            return Move.STAY
        return self._enter(Phase.SPARSE, events, Move.REWIRE)

    def exchange_ratio(self, events: int) -> float:
        """Share of units to exchange after `events`: a cosine down to a tenth, since a stream has
        no end at which to stop."""
        done = min(events / (20 * self.config.period_events), 1.0)
        return self.config.exchange_ratio * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


POLICIES: dict[str, type[Policy]] = {
    "dense": Policy,
    "small": Small,
    "static": Static,
    "magnitude": Magnitude,
    "rigl": Rigl,
    "periodic": Periodic,
    "adaptive": Adaptive,
    "adaptive-live": AdaptiveLive,
}
"""Every policy by the name that `PruningConfig.policy` gives it."""


def policy_for(config: PruningConfig, state: PolicyState | None = None) -> Policy:
    """The policy that `config` names."""
    return POLICIES[config.policy](config, state)


class MagnitudeMasks:
    """The units with the largest weights live, the same share in each layer. A drop-in for
    `AuxiliaryMasks`; a unit once gone stays gone."""

    kind = "magnitude"

    def __init__(self, groups: Sequence[Group], cost: Cost | BlockCost):
        self.groups, self.cost = tuple(groups), cost
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
        weights: Mapping[str, torch.Tensor],
    ) -> None:
        """Let multiply-adds fall to `target_ratio` of dense (0..1], by the size of `weights`;
        `gradients` are not read."""
        self.steps += 1
        sizes = {
            g.name: magnitudes(g, weights).masked_fill(~self.alive[g.name], -1.0)
            for g in self.groups
        }
        widths = uniform_widths(self.groups, self.cost, target_ratio, self.given, sizes)
        for group in self.groups:
            if widths[group.name] < int(self.alive[group.name].sum()):
                self.alive[group.name] = torch.zeros_like(self.alive[group.name]).index_fill(
                    0, sizes[group.name].topk(widths[group.name]).indices, True
                )

    def kept(self) -> dict[str, torch.Tensor]:
        """Sorted indices of the units alive, by group."""
        return {name: alive.nonzero().squeeze(1) for name, alive in self.alive.items()}

    def state(self) -> dict[str, torch.Tensor]:
        """Liveness by group, for a snapshot."""
        return {f"alive.{name}": tensor for name, tensor in self.alive.items()}

    def restore(self, tensors: dict[str, torch.Tensor], steps: int) -> None:
        """Undo `state`."""
        self.steps = steps
        self.alive = {group.name: tensors[f"alive.{group.name}"].clone() for group in self.groups}


def magnitudes(group: Group, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(size,): the norm of a block; of a neuron, that of its incoming weights times that of its
    outgoing ones."""
    if isinstance(group, BlockGroup):
        return group.sums(weights[group.parameter].square()).sqrt()
    product = torch.ones(group.size)
    for s in group.slices:
        tensor = weights[s.parameter]
        if tensor.dim() == 2:
            product *= tensor.narrow(s.dim, s.offset, group.size).norm(dim=1 - s.dim)
    return product


def exchange(
    group: Group,
    kept: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    gradients: Mapping[str, torch.Tensor],
    ratio: float,
) -> torch.Tensor:
    """The units of `group` that live from now on: as many as in `kept`, but `ratio` of them, the
    weakest by magnitude, have given way to those outside, of the same cost, with the largest
    gradient. What is dropped and what is grown is disjoint."""
    alive = torch.zeros(group.size, dtype=torch.bool).index_fill(0, kept, True)
    weight_U, gradient_U, found = (
        magnitudes(group, weights),
        magnitudes_of_gradient(group, gradients),
        [],
    )
    for kind in group.kinds:
        inside, outside = ((kind & side).nonzero().squeeze(1) for side in (alive, ~alive))
        count = min(int(ratio * len(inside)), len(outside))
        stay = inside[weight_U[inside].argsort(stable=True)[count:]]
        found += [stay, outside[gradient_U[outside].topk(count).indices]]
    return torch.cat(found).sort().values


def magnitudes_of_gradient(group: Group, gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(size,): the norm of the gradient in each unit's weights."""
    if isinstance(group, BlockGroup):
        return magnitudes(group, gradients)
    squares = torch.zeros(group.size)
    for s in group.slices:
        tensor = gradients[s.parameter]
        if tensor.dim() == 2:
            squares += tensor.narrow(s.dim, s.offset, group.size).square().sum(1 - s.dim)
    return squares.sqrt()
