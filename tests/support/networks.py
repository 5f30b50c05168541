"""Networks of any shape, their inputs, and a forward pass, for tests of the deep expert."""

import numpy as np
import torch
from hypothesis import strategies as st

from niwaki.model.deep.branch import Branch
from niwaki.model.deep.network import Network, NetworkShape
from niwaki.model.deep.passes import Passes


@st.composite
def shapes(draw):
    """Any network: with and without embeddings, fields, numerics, a bottom MLP, dot products,
    columns cut out."""
    dim, numerics = draw(st.sampled_from([0, 1, 4, 5, 40])), draw(st.sampled_from([0, 3]))
    fields = draw(st.integers(0, 4))
    columns = draw(st.none() | st.sets(st.integers(0, fields * dim - 1))) if fields * dim else None
    return NetworkShape(
        fields=fields,
        numerics=numerics,
        slots=draw(st.integers(1, 7)),
        embedding_dim=dim,
        bottom=draw(st.sampled_from([(), (6,), (5, 7)])) if dim and numerics else (),
        top=draw(st.sampled_from([(9,), (8, 6), (3, 17, 2)])),
        interaction=draw(st.sampled_from(["dot", "none"])),
        columns=None if columns is None else tuple(sorted(columns)),
    )


def branch_of(shape: NetworkShape, generator: torch.Generator) -> Branch:
    network = Network(shape)
    return Branch(
        network, {name: torch.randn(s, generator=generator) for name, s in network.shapes.items()}
    )


def inputs_of(shape: NetworkShape, events: int, generator: torch.Generator) -> list[torch.Tensor]:
    widths = [(shape.fields, shape.embedding_dim), (shape.numerics,), (shape.slots,)]
    return [torch.randn(events, *width, generator=generator) for width in widths]


def forward(
    passes: Passes, inputs: list[torch.Tensor], masks: dict[str, torch.Tensor] | None = None
) -> torch.Tensor:
    vectors_BFD, *rest = inputs
    table_RD = vectors_BFD.detach().flatten(0, 1).contiguous().numpy()
    rows_BF = np.arange(len(table_RD)).reshape(vectors_BFD.shape[:2])
    return passes.forward(table_RD, rows_BF, *rest, masks).clone()
