"""Networks of any shape, their inputs, and the definition of the deep expert, for tests."""

import numpy as np
import torch
import torch.nn.functional as fn
from hypothesis import strategies as st

from niwaki.model.deep.branch import Branch
from niwaki.model.deep.embeddings import Embedded
from niwaki.model.deep.inference import DeepInference
from niwaki.model.deep.network import COLUMNS, Network, NetworkShape, Parameters
from niwaki.model.deep.passes import Passes


@st.composite
def shapes(draw):
    """Any network: with and without embeddings, fields, numerics, a bottom MLP, products of
    vectors, columns cut out."""
    dim, numerics = draw(st.sampled_from([0, 1, 4, 5, 40])), draw(st.sampled_from([0, 3]))
    fields = draw(st.integers(0, 4) | st.just(13))
    columns = draw(st.none() | st.sets(st.integers(0, fields * dim - 1))) if fields * dim else None
    return NetworkShape(
        fields=fields,
        numerics=numerics,
        slots=draw(st.integers(1, 7)),
        embedding_dim=dim,
        bottom=draw(st.sampled_from([(), (6,), (5, 7)])) if dim and numerics else (),
        top=draw(st.sampled_from([(9,), (8, 6), (3, 17, 2)])),
        interaction=draw(st.sampled_from(["cosine", "dot", "none"])),
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
    embedded = Embedded(np.arange(len(table_RD)).reshape(vectors_BFD.shape[:2]))
    return passes.forward(table_RD, embedded, *rest, masks).clone()


def predict(network: Network, parameters: Parameters, inputs: list[torch.Tensor]) -> torch.Tensor:
    """(B,): the corrections that learner and scorer predict with."""
    vectors_BFD, numerics_BM, contributions_BS = inputs
    if network.column_mask_FD is not None:
        vectors_BFD = vectors_BFD * network.column_mask_FD
    table_RD = vectors_BFD.detach().flatten(0, 1).contiguous().numpy()
    embedded = Embedded(np.arange(len(table_RD)).reshape(vectors_BFD.shape[:2]))
    deep, places = DeepInference(network, parameters), network.top_inputs
    x_BI = deep.inputs(len(vectors_BFD))
    x_BI[:, places.numerics], x_BI[:, places.contributions] = numerics_BM, contributions_BS
    return torch.from_numpy(deep.corrections(x_BI, table_RD, embedded))


def correction(
    network: Network,
    parameters: Parameters,
    vectors_BFD: torch.Tensor,
    numerics_BM: torch.Tensor,
    contributions_BS: torch.Tensor,
    masks: Parameters | None = None,
) -> torch.Tensor:
    """(B,): the definition of the deep expert, in operations that torch differentiates. `masks`: by
    group, factors on its units' outputs, or on the weights of its blocks; of columns, which may be
    left out, on the vectors of the fields."""
    shape = network.shape
    if shape.block:
        whole = network.whole(parameters)[1]
        factors = (
            {g.parameter: g.spread(masks[g.name]) for g in network.block_groups} if masks else {}
        )
        parameters = {name: tensor * factors.get(name, 1) for name, tensor in whole.items()}
        masks = None
    if masks is not None and COLUMNS in masks:
        vectors_BFD = vectors_BFD * masks[COLUMNS].view(-1, *vectors_BFD.shape[1:])
    if network.column_mask_FD is not None:
        vectors_BFD = vectors_BFD * network.column_mask_FD
    vectors_BVD = vectors_BFD
    if shape.bottom:
        dense_BD = _mlp(network.layer_names("bottom"), parameters, numerics_BM, masks)
        vectors_BVD = torch.cat([vectors_BFD, dense_BD.unsqueeze(1)], 1)
    inputs = [vectors_BVD.flatten(1)[:, network.read], numerics_BM, contributions_BS]
    if network.pair_count:
        above, right = torch.triu_indices(network.vectors, network.vectors, offset=1)
        products_BVV = vectors_BVD @ vectors_BVD.transpose(1, 2)
        if shape.interaction == "cosine":
            square_BV = vectors_BVD.square().sum(2) + 1e-3
            length_BVV = (square_BV.unsqueeze(1) * square_BV.unsqueeze(2)).sqrt()
            products_BVV = products_BVV / length_BVV * min(1, 10 / network.vectors) ** 2
        inputs.append(products_BVV[:, above, right])
    return _mlp(network.layer_names("top"), parameters, torch.cat(inputs, 1), masks).squeeze(1)


def _mlp(
    names: list[str], parameters: Parameters, x: torch.Tensor, masks: Parameters | None
) -> torch.Tensor:
    *hidden, last = names
    for name in hidden:
        x = fn.linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"]).relu()
        if masks is not None:
            x = x * masks[name]
    return fn.linear(x, parameters[f"{last}.weight"], parameters[f"{last}.bias"])
