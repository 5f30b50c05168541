"""The tensors of a published model: every name, once.

A table of rows (embedding, linear, age) is two tensors, the numbers of its rows and their values.
Everything else is published whole. A further expert's tensors begin with `model.experts.PREFIX`. In
between the learner and the bytes of a checkpoint, the tensors travel as an `Export`.

Shapes: U rows of a table, S slots, K time scales, N numerics, Q knots.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from niwaki.model.deep.network import Network, NetworkShape, Parameters

Tensors = Mapping[str, torch.Tensor]

EMBEDDING = "embedding"
LINEAR = "linear"
AGE = "age"
LINEAR_PRIOR = "linear.prior"
"""(S, K): 1 / prior variance of each slot."""
LIVING_PAIRS = "linear.pairs"
"""(P + Q,) int64: see `model.linear.pairs.Candidates`."""
MOMENTS = "numerics.moments"
"""(2, N): see `model.features.numerics.Scale`."""
KNOTS = "numerics.knots"
"""(N, Q): see `model.features.numerics.Scale`."""
MIXTURE = "mixture"
"""(1 + E,) float64: weights of a constant and of the experts."""
_NETWORK = "network."
_BLOCKS = ".blocks"


class Export(NamedTuple):
    """The tensors that a scorer needs: all of them, or those that have changed since an earlier
    export; the rows of each table ascend."""

    shape: NetworkShape
    tensors: dict[str, torch.Tensor]


def rows_of(table: str) -> str:
    """Name of the tensor (U,) with the numbers of a table's rows."""
    return f"{table}.rows"


def values_of(table: str) -> str:
    """Name of the tensor (U, ...) with the values of a table's rows."""
    return f"{table}.values"


def is_rows(name: str) -> bool:
    """True for the numbers of a table's rows."""
    return name.endswith(".rows")


def is_blocks(name: str) -> bool:
    """True for the numbers of a matrix's blocks."""
    return name.endswith(_BLOCKS)


def blocks_of(group: str) -> str:
    """Name of the tensor with the sorted blocks that are left of a matrix, by the name of their
    group."""
    return f"{_NETWORK}{group}{_BLOCKS}"


def network_tensors(network: Network, parameters: Parameters) -> dict[str, torch.Tensor]:
    """The tensors of a network, copied: its parameters, and the blocks that are left of its
    matrices."""
    blocks = {blocks_of(group): kept for group, kept in network.kept.items()}
    return {f"{_NETWORK}{name}": tensor.clone() for name, tensor in parameters.items()} | blocks


def network_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a network, by the name of its tensor."""
    return {f"{_NETWORK}{name}": shape for name, shape in network.shapes.items()}


def parameters_in(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The network's parameters among `tensors`, by their own names."""
    return {
        name.removeprefix(_NETWORK): tensor
        for name, tensor in tensors.items()
        if name.startswith(_NETWORK) and not is_blocks(name)
    }


def blocks_in(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The blocks among `tensors`, by group; empty where all matrices are whole."""
    return {
        name.removeprefix(_NETWORK).removesuffix(_BLOCKS): tensor
        for name, tensor in tensors.items()
        if is_blocks(name)
    }
