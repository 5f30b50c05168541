"""Full <-> compact tensors: the surviving units are cut out, and later put back into their places.

Works on any mapping from parameter name to tensor, so the same two functions serve weights and
optimizer state. They do not change their inputs. They decide nothing: which units survive is the
caller's.
"""

from collections.abc import Mapping, Sequence

import torch

from niwaki.pruning.blocks import BlockGroup
from niwaki.pruning.units import Group, UnitGroup

Tensors = Mapping[str, torch.Tensor]
Kept = Mapping[str, torch.Tensor]
"""Sorted int64 indices of the surviving units, by group name."""


def compact(tensors: Tensors, groups: Sequence[Group], kept: Kept) -> dict[str, torch.Tensor]:
    """Only the entries that belong to surviving units, in their order; new tensors throughout. Of a
    matrix in blocks, the weights that are left, (n,), row by row."""
    within = _within(groups, kept)
    places = _places({name: tuple(tensor.shape) for name, tensor in tensors.items()}, groups, kept)
    result = {}
    for name, tensor in tensors.items():
        for dim, index in enumerate(places[name]):
            tensor = tensor.index_select(dim, index)
        result[name] = tensor[within[name]] if name in within else tensor.clone()
    return result


def expand(
    compacted: Tensors, dormant: Tensors, groups: Sequence[Group], kept: Kept
) -> dict[str, torch.Tensor]:
    """`dormant` with the entries of surviving units replaced by those of `compacted`: `compact`
    undone."""
    within = _within(groups, kept)
    places = _places({name: tuple(tensor.shape) for name, tensor in dormant.items()}, groups, kept)
    result = {}
    for name, tensor in dormant.items():
        result[name] = tensor.clone()
        here = within[name] if name in within else torch.meshgrid(*places[name], indexing="ij")
        result[name][here] = compacted[name]
    return result


def zero_outgoing(tensors: Tensors, groups: Sequence[Group], kept: Kept) -> None:
    """Set the outgoing weights of all units outside `kept` to zero, in place: of a block, all there
    are."""
    for name, here in _within(groups, kept).items():
        tensors[name].masked_fill_(~here, 0.0)
    for group in groups:
        if isinstance(group, BlockGroup):
            continue
        outgoing = group.slices[-1]
        gone = (
            torch.ones(group.size, dtype=torch.bool)
            .index_fill(0, kept[group.name], False)
            .nonzero()
            .squeeze(1)
        )
        tensors[outgoing.parameter].index_fill_(outgoing.dim, gone + outgoing.offset, 0.0)


def _within(groups: Sequence[Group], kept: Kept) -> dict[str, torch.Tensor]:
    """For each matrix in blocks, the weights that survive, bool."""
    return {
        g.parameter: g.within(kept[g.name])
        for g in groups
        if isinstance(g, BlockGroup) and g.name in kept
    }


def _places(
    shapes: Mapping[str, tuple[int, ...]], groups: Sequence[Group], kept: Kept
) -> dict[str, list[torch.Tensor]]:
    """For each tensor and dimension, the indices that survive."""
    alive = {
        name: [torch.ones(size, dtype=torch.bool) for size in shape]
        for name, shape in shapes.items()
    }
    for group in groups:
        if group.name not in kept or not isinstance(group, UnitGroup):
            continue
        unit_alive = torch.zeros(group.size, dtype=torch.bool)
        unit_alive[kept[group.name]] = True
        for s in group.slices:
            alive[s.parameter][s.dim][s.offset : s.offset + group.size] = unit_alive
    return {name: [mask.nonzero().squeeze(1) for mask in masks] for name, masks in alive.items()}
