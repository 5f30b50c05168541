"""Full <-> compact tensors: the surviving units are cut out, and later put back into their places.

In: any mapping from parameter name to tensor, so the same two functions serve weights and optimizer
state. Out: new tensors; inputs do not change. The caller decides which units survive.
"""

from collections.abc import Mapping, Sequence

import torch

from niwaki.pruning.units import Group, Survivors, Tensors

Kept = Mapping[str, torch.Tensor]
"""By group, the sorted int64 indices of the surviving units; a group that is not named is whole."""


def compact(tensors: Tensors, groups: Sequence[Group], kept: Kept) -> dict[str, torch.Tensor]:
    """Only the entries that belong to surviving units, in their order; new tensors throughout. A
    matrix that is pruned in blocks becomes the vector of its surviving weights, row by row."""
    survivors = _survivors(tensors, groups, kept)
    result = {}
    for name, tensor in tensors.items():
        for dim, index in enumerate(_places(survivors.by_dim[name])):
            tensor = tensor.index_select(dim, index)
        within = survivors.weights.get(name)
        result[name] = tensor.clone() if within is None else tensor[within]
    return result


def expand(
    compacted: Tensors, dormant: Tensors, groups: Sequence[Group], kept: Kept
) -> dict[str, torch.Tensor]:
    """`dormant` with the entries of surviving units replaced by those of `compacted`: the inverse
    of `compact`."""
    survivors = _survivors(dormant, groups, kept)
    result = {}
    for name, tensor in dormant.items():
        result[name] = tensor.clone()
        within = survivors.weights.get(name)
        if within is None:
            places = torch.meshgrid(*_places(survivors.by_dim[name]), indexing="ij")
            result[name][places] = compacted[name]
        else:
            result[name][within] = compacted[name]
    return result


def zero_outgoing(tensors: Tensors, groups: Sequence[Group], kept: Kept) -> None:
    """Set the outgoing weights of all units outside `kept` to zero, in place. Every group must be
    named in `kept`."""
    for group in groups:
        group.zero_outgoing(tensors, kept[group.name])


def _survivors(tensors: Tensors, groups: Sequence[Group], kept: Kept) -> Survivors:
    by_dim = {
        name: [torch.ones(size, dtype=torch.bool) for size in tensor.shape]
        for name, tensor in tensors.items()
    }
    survivors = Survivors(by_dim, {})
    for group in groups:
        if group.name in kept:
            group.mark(kept[group.name], survivors)
    return survivors


def _places(masks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The indices that survive, by dimension."""
    return [mask.nonzero().squeeze(1) for mask in masks]
