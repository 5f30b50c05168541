"""Blocks of weights and single weights as units: what must hold of any network, any grid and any
choice of blocks."""

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.deep.branch import Branch
from niwaki.model.deep.network import Network, NetworkShape
from niwaki.pruning.auxiliary import AuxiliaryMasks
from niwaki.pruning.blocks import BlockGroup
from niwaki.pruning.compaction import compact, expand, zero_outgoing
from niwaki.pruning.scores import exchange
from niwaki.pruning.unit_masks import MagnitudeMasks
from niwaki.pruning.units import MaskGradient, uniform_widths
from tests.support.networks import branch_of, correction, forward, inputs_of, predict, shapes

BLOCKS = st.sampled_from([(1, 1), (2, 3), (4, 4), (8, 8), (3, 1)])
KINDS = {"block": (8, 8), "weight": (1, 1)}


@st.composite
def networks(draw):
    """A whole network whose units are blocks, and some of them in each group."""
    network = Network(msgspec.structs.replace(draw(shapes()), block=draw(BLOCKS)))
    return network, draw(choice(network))


@st.composite
def choice(draw, network):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    counts = {group.name: draw(st.integers(1, group.size)) for group in network.groups}
    orders = {
        group.name: torch.randperm(group.size, generator=generator) for group in network.groups
    }
    return {name: order[: counts[name]].sort().values for name, order in orders.items()}


def masks_of(network: Network, kept: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {g.name: torch.zeros(g.size).index_fill(0, kept[g.name], 1.0) for g in network.groups}


@given(networks())
def test_each_weight_belongs_to_one_block_and_blocks_at_the_edges_are_smaller(drawn):
    for group in drawn[0].groups:
        numbers_OI = group.spread(torch.arange(group.size))
        assert numbers_OI.shape == group.shape
        assert torch.equal(numbers_OI.flatten().bincount(minlength=group.size), group.weights_U)
        assert group.alike == (len(group.weights_U.unique()) == 1) or min(group.grid) == 1
        matrix_OI = torch.randn(group.shape, generator=torch.Generator().manual_seed(0))
        expected_U = torch.zeros(group.size).index_add_(
            0, numbers_OI.flatten(), matrix_OI.flatten()
        )
        torch.testing.assert_close(group.sums(matrix_OI), expected_U, atol=1e-5, rtol=1e-5)


@given(networks(), st.integers(1, 5), st.integers(0, 2**31))
def test_a_compact_network_costs_and_predicts_what_the_masked_one_does(drawn, events, seed):
    network, kept = drawn
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: torch.randn(s, generator=generator) for name, s in network.shapes.items()}
    inputs, masks = inputs_of(network.shape, events, generator), masks_of(network, kept)
    narrow, compacted = network.cut_to(kept), compact(parameters, network.groups, kept)
    assert {name: tuple(t.shape) for name, t in compacted.items()} == narrow.shapes
    expected_B = correction(network, parameters, *inputs, masks)
    torch.testing.assert_close(predict(narrow, compacted, inputs), expected_B, atol=1e-4, rtol=1e-4)
    whole, filled = narrow.whole(compacted)
    torch.testing.assert_close(predict(whole, filled, inputs), expected_B, atol=1e-4, rtol=1e-4)
    alive = {group.name: group.amount(masks[group.name].bool()) for group in network.groups}
    assert network.cost.total(alive) == narrow.cost.total({})
    assert narrow.alive() == {name: len(index) for name, index in kept.items()}


@given(networks(), st.integers(0, 2**31))
def test_expanding_puts_survivors_back_exactly_and_leaves_the_others_as_they_are(drawn, seed):
    network, kept = drawn
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: torch.randn(s, generator=generator) for name, s in network.shapes.items()}
    compacted = compact(parameters, network.groups, kept)
    for name, tensor in expand(compacted, parameters, network.groups, kept).items():
        assert torch.equal(tensor, parameters[name])
    trained = {name: tensor + 100 for name, tensor in compacted.items()}
    expanded = expand(trained, parameters, network.groups, kept)
    for name, tensor in compact(expanded, network.groups, kept).items():
        assert torch.equal(tensor, trained[name])
    for name, tensor in expanded.items():
        assert (tensor != parameters[name]).sum() == trained[name].numel()
    zero_outgoing(expanded, network.groups, kept)
    for group in network.groups:
        assert (expanded[group.parameter] != 0).sum() == len(trained[group.parameter])


@given(networks(), st.integers(1, 6), st.integers(0, 2**31))
def test_values_and_gradients_of_what_is_left_are_those_of_the_definition(drawn, events, seed):
    network, kept = drawn
    generator = torch.Generator().manual_seed(seed)
    narrow = network.cut_to(kept)
    branch = Branch(
        narrow, {name: torch.randn(s, generator=generator) for name, s in narrow.shapes.items()}
    )
    for _ in range(2):  # the second time in buffers that are no longer fresh
        inputs, errors_B = (
            inputs_of(network.shape, events, generator),
            torch.randn(events, generator=generator),
        )
        correction_B = forward(branch.passes, inputs)
        gradient_BVD = branch.passes.backward(errors_B)
        parameters = {
            name: tensor.clone().requires_grad_() for name, tensor in branch.parameters.items()
        }
        vectors_BFD = inputs[0].requires_grad_()
        expected_B = correction(narrow, parameters, *inputs)
        (expected_B * errors_B).sum().backward()
        torch.testing.assert_close(correction_B, expected_B.detach(), rtol=1e-4, atol=1e-3)
        for name, gradient in branch.gradients.items():
            torch.testing.assert_close(gradient, parameters[name].grad, rtol=1e-4, atol=1e-3)
        if vectors_BFD.numel():
            fields = network.shape.fields
            torch.testing.assert_close(
                gradient_BVD[:, :fields], vectors_BFD.grad, rtol=1e-4, atol=1e-3
            )


@given(networks(), st.integers(1, 6), st.integers(0, 2**31))
def test_gradients_in_masks_are_those_of_the_definition_and_what_is_masked_does_not_learn(
    drawn, events, seed
):
    network, kept = drawn
    generator = torch.Generator().manual_seed(seed)
    branch = branch_of(network.shape, generator)
    inputs, errors_B = (
        inputs_of(network.shape, events, generator),
        torch.randn(events, generator=generator),
    )
    masks = {name: mask.requires_grad_() for name, mask in masks_of(network, kept).items()}
    correction_B = forward(
        branch.passes, inputs, {name: mask.detach() for name, mask in masks.items()}
    )
    branch.passes.backward(errors_B)
    parameters = {
        name: tensor.clone().requires_grad_() for name, tensor in branch.parameters.items()
    }
    expected_B = correction(network, parameters, *inputs, masks)
    (expected_B * errors_B).sum().backward()
    torch.testing.assert_close(correction_B, expected_B.detach(), rtol=1e-4, atol=1e-3)
    for name, gradient in branch.gradients.items():
        torch.testing.assert_close(gradient, parameters[name].grad, rtol=1e-4, atol=1e-3)
    for group in network.groups:
        mean_U, square_U = branch.passes.mask_gradients()[group.name]
        torch.testing.assert_close(mean_U, masks[group.name].grad / events, rtol=1e-3, atol=1e-3)
        assert torch.equal(square_U, events * mean_U.square())
        gone = ~group.within(kept[group.name])
        assert not branch.gradients[group.parameter][gone].any()


def default_network(fields: int, numerics: int, unit: str) -> Network:
    slots = fields * (fields + 1) // 2 + 2 * numerics + 1
    return Network(
        NetworkShape(
            fields=fields,
            numerics=numerics,
            slots=slots,
            embedding_dim=16,
            bottom=(64,) if numerics else (),
            top=(512, 256),
            interaction="dot",
            block=KINDS[unit],
        )
    )


@pytest.mark.parametrize("budget", [0.2, 0.1, 0.05, 0.02])
@pytest.mark.parametrize("unit", KINDS)
@pytest.mark.parametrize(("fields", "numerics"), [(7, 8), (3, 0)])
def test_the_default_widths_meet_every_budget_within_one_point_and_no_layer_dies(
    budget, unit, fields, numerics
):
    network = default_network(fields, numerics, unit)
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: torch.randn(shape, generator=generator) for name, shape in network.shapes.items()
    }
    auxiliary, magnitude = (
        AuxiliaryMasks(network.groups, network.cost),
        MagnitudeMasks(network.groups, network.cost),
    )
    for _ in range(3):
        by_event = {g.name: torch.randn(8, g.size, generator=generator) for g in network.groups}
        gradients = {
            name: MaskGradient(g_BU.mean(0), g_BU.square().mean(0))
            for name, g_BU in by_event.items()
        }
        auxiliary.update(gradients, budget)
        magnitude.update(gradients, budget, parameters)
    chosen = (auxiliary.kept(), magnitude.kept(), network.narrow(budget, generator))
    for kept in chosen:
        ratio = network.cut_to(kept).cost.total({}) / network.cost.total({})
        assert budget - 0.01 < ratio <= budget
        assert min(len(index) for index in kept.values()) >= 1
    least = {g.name: min(auxiliary.config.min_units, g.size) for g in network.groups}
    assert all(len(auxiliary.kept()[name]) >= units for name, units in least.items())
    assert auxiliary.ratio() == network.cut_to(auxiliary.kept()).cost.total(
        {}
    ) / network.cost.total({})
    for index, group in zip(magnitude.kept().values(), network.groups, strict=True):
        size = group.magnitudes(parameters)
        gone = torch.ones(group.size, dtype=torch.bool).index_fill(0, index, False)
        assert size[gone].max() <= size[index].min()


@given(networks(), st.floats(0.05, 1.0), st.integers(0, 2**31))
def test_uniform_widths_count_blocks_in_the_order_in_which_they_are_chosen(drawn, ratio, seed):
    network, generator = drawn[0], torch.Generator().manual_seed(seed)
    scores = {group.name: torch.rand(group.size, generator=generator) for group in network.groups}
    widths = uniform_widths(network.groups, network.cost, ratio, scores=scores)
    kept = {name: score.topk(widths[name]).indices.sort().values for name, score in scores.items()}
    fits = network.cut_to(kept).cost.total({}) <= ratio * network.cost.total({})
    assert fits or any(width == 1 for width in widths.values())


@given(networks(), st.floats(0, 1), st.integers(0, 2**31))
def test_an_exchange_conserves_count_and_cost_and_drops_no_block_that_it_grows(drawn, ratio, seed):
    network, kept = drawn
    generator = torch.Generator().manual_seed(seed)
    weights, gradients = (
        {name: torch.randn(s, generator=generator) for name, s in network.shapes.items()}
        for _ in range(2)
    )
    for group in network.groups:
        before = kept[group.name]
        after = exchange(group, before, weights, gradients, ratio)
        assert after.tolist() == sorted(set(after.tolist())) and len(after) == len(before)
        assert group.weights_U[after].sum() == group.weights_U[before].sum()
        for kind in group.kinds:
            inside = set(before[kind[before]].tolist())
            exchanged = len(inside - set(after.tolist()))
            assert exchanged == min(int(ratio * len(inside)), int(kind.sum()) - len(inside))


def test_blocks_live_by_the_mean_square_of_their_gradient_alone():
    group = BlockGroup("top.0", "top.0.weight", (8, 8), (2, 2))
    network = Network(
        NetworkShape(
            fields=0,
            numerics=0,
            slots=8,
            embedding_dim=0,
            bottom=(),
            top=(8,),
            interaction="none",
            block=(2, 2),
        )
    )
    auxiliary = AuxiliaryMasks(network.groups, network.cost)
    square_U = torch.arange(group.size).float()
    for _ in range(3):
        mean_U = torch.randn(group.size, generator=torch.Generator().manual_seed(1))
        gradients = {
            g.name: MaskGradient(torch.zeros(g.size), torch.ones(g.size)) for g in network.groups
        }
        auxiliary.update(gradients | {"top.0": MaskGradient(mean_U, square_U)}, 0.5)
    kept = auxiliary.kept()["top.0"]
    assert (
        kept.tolist() == list(range(group.size - len(kept), group.size))
        and 4 <= len(kept) < group.size
    )
