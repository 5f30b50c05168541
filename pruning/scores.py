"""Which units: how one set of living units gives way to another by scores of its units.

The scores themselves (magnitude, gradient norm, importance) are methods of a group
(`pruning.units.Group`), since they depend on what a unit is made of.
"""

import torch

from niwaki.pruning.units import Group, Tensors


def exchange(
    group: Group, kept: torch.Tensor, weights: Tensors, gradients: Tensors, ratio: float
) -> torch.Tensor:
    """The units of `group` that live after an exchange, as sorted indices.

    They are as many as in `kept`: `ratio` of them (0..1), the weakest by magnitude, give way to
    those outside, of the same cost, with the largest gradient. The dropped and the grown units are
    disjoint (Evci et al., RigL, arXiv:1911.11134).
    """
    alive = torch.zeros(group.size, dtype=torch.bool).index_fill(0, kept, True)
    weight_U = group.magnitudes(weights)
    gradient_U = group.gradient_norms(gradients)
    found = []
    for kind in group.kinds:
        inside = (kind & alive).nonzero().squeeze(1)
        outside = (kind & ~alive).nonzero().squeeze(1)
        count = min(int(ratio * len(inside)), len(outside))
        stay = inside[weight_U[inside].argsort(stable=True)[count:]]
        found += [stay, outside[gradient_U[outside].topk(count).indices]]
    return torch.cat(found).sort().values
