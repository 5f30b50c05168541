"""Units, masks, compaction and policies: what must hold of any network and any stream."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.network import Network, NetworkShape
from pruning.auxiliary import AuxiliaryConfig, AuxiliaryMasks
from pruning.compaction import compact, expand
from pruning.policy import Move, Phase, Policy, PruningConfig

NETWORK = Network(
    NetworkShape(fields=3, numerics=4, slots=5, embedding_dim=4, bottom=(8,), top=(16, 12), interaction="dot")
)
PARAMETERS = NETWORK.initial(torch.Generator().manual_seed(0))
for name in ("top.2.weight", "top.2.bias"):  # zero at first, which would hide everything before it
    PARAMETERS[name].normal_(0, 1, generator=torch.Generator().manual_seed(9))
INPUTS = [
    torch.randn(20, *shape, generator=torch.Generator().manual_seed(seed))
    for seed, shape in enumerate([(3, 4), (4,), (5,)])
]


@st.composite
def kept_units(draw):
    """Any non-empty choice of units in every group."""
    return {
        group.name: torch.tensor(sorted(draw(st.sets(st.integers(0, group.size - 1), min_size=1))))
        for group in NETWORK.groups
    }


@given(kept_units())
@settings(deadline=None, max_examples=50)
def test_a_compact_network_predicts_what_the_masked_one_does(kept):
    masks = {g.name: torch.zeros(20, g.size).index_fill(1, kept[g.name], 1.0) for g in NETWORK.groups}
    masked = NETWORK.correction(PARAMETERS, *INPUTS, masks)
    narrow = NETWORK.narrowed({name: len(index) for name, index in kept.items()})
    compacted = compact(PARAMETERS, NETWORK.groups, kept)
    assert {name: tuple(t.shape) for name, t in compacted.items()} == narrow.shapes
    torch.testing.assert_close(narrow.correction(compacted, *INPUTS), masked, atol=1e-5, rtol=1e-5)


@given(kept_units())
@settings(deadline=None, max_examples=50)
def test_expanding_puts_every_weight_back_and_leaves_dormant_ones_alone(kept):
    compacted = compact(PARAMETERS, NETWORK.groups, kept)
    for name, tensor in expand(compacted, PARAMETERS, NETWORK.groups, kept).items():
        assert torch.equal(tensor, PARAMETERS[name])
    trained = {name: tensor + 1 for name, tensor in compacted.items()}
    expanded = expand(trained, PARAMETERS, NETWORK.groups, kept)
    for name, tensor in compact(expanded, NETWORK.groups, kept).items():
        assert torch.equal(tensor, trained[name])
    for name, tensor in expanded.items():
        assert (tensor != PARAMETERS[name]).sum() == trained[name].numel()


@given(kept_units())
@settings(deadline=None, max_examples=50)
def test_the_cost_of_survivors_is_the_cost_of_the_network_cut_from_them(kept):
    alive = {name: len(index) for name, index in kept.items()}
    assert NETWORK.cost.total(alive) == NETWORK.narrowed(alive).cost.total({})
    for name, price in NETWORK.cost.marginal(alive).items():
        more = alive | {name: alive[name] + 1}
        assert NETWORK.cost.total(more) - NETWORK.cost.total(alive) == price


@given(st.floats(0.05, 1.0), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_masks_meet_the_target_as_closely_as_whole_units_allow_and_no_layer_dies(target, seed):
    wide = Network(
        NetworkShape(fields=3, numerics=4, slots=5, embedding_dim=4, bottom=(32,), top=(128, 64), interaction="dot")
    )
    auxiliary = AuxiliaryMasks(wide.groups, wide.cost, AuxiliaryConfig(min_units=1))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        masks = auxiliary.masks(8)
        for mask in masks.values():
            mask.grad = torch.randn(mask.shape, generator=generator)
        auxiliary.update(masks, target)
    counts = {name: len(index) for name, index in auxiliary.kept().items()}
    dearest = max(wide.cost.marginal({}).values()) / wide.cost.total({})
    assert auxiliary.ratio() <= target
    assert auxiliary.ratio() > target - dearest or all(counts[g.name] == g.size for g in wide.groups)
    assert min(counts.values()) >= 1


def test_a_unit_whose_absence_hurts_outlives_one_that_does_nothing():
    auxiliary = AuxiliaryMasks(NETWORK.groups, NETWORK.cost, AuxiliaryConfig(min_units=1))
    useful = torch.arange(0, 16, 2)
    for _ in range(5):
        masks = auxiliary.masks(8)
        for mask in masks.values():
            mask.grad = torch.zeros_like(mask)
        masks["top.0"].grad[:, useful] = -0.1
        auxiliary.update(masks, 0.6)
    assert set(useful.tolist()) <= set(auxiliary.kept()["top.0"].tolist())
    assert not auxiliary.alive["top.0"].all()


def test_a_pruned_unit_comes_back_when_its_gradient_asks_for_it():
    auxiliary = AuxiliaryMasks(NETWORK.groups, NETWORK.cost, AuxiliaryConfig(min_units=1, horizon_steps=2))
    for favoured in ([0, 1, 2], [8, 9, 10]):
        for _ in range(20):
            masks = auxiliary.masks(8)
            for mask in masks.values():
                mask.grad = torch.full_like(mask, 0.01)
            masks["top.1"].grad[:, favoured] = -0.05
            auxiliary.update(masks, 0.5)
        assert auxiliary.alive["top.1"][favoured].all()


def drive(policy: Policy, events: range, drifts: set[int] = frozenset()) -> list[tuple[int, Move]]:
    moves = [(at, policy.decide(at, at in drifts)) for at in events]
    return [(at, move) for at, move in moves if move is not Move.STAY]


def test_phases_follow_their_lengths_and_a_drift_in_a_sparse_phase_starts_them_anew():
    config = PruningConfig(warmup_events=100, regrowth_events=50, pruning_events=30)
    moves = drive(Policy(config), range(10, 1000, 10), drifts={300, 320, 360})
    assert moves == [
        (100, Move.PRUNE), (130, Move.CUT),
        (300, Move.REGROW), (350, Move.PRUNE), (380, Move.CUT),
    ]  # fmt: skip


def test_a_static_policy_prunes_once_and_a_dense_one_never():
    config = {"warmup_events": 100, "pruning_events": 30}
    static = drive(Policy(PruningConfig(policy="static", **config)), range(10, 1000, 10), drifts={300})
    assert static == [(100, Move.PRUNE), (130, Move.CUT)]
    assert drive(Policy(PruningConfig(policy="dense", **config)), range(10, 1000, 10), drifts={300}) == []


def test_the_target_falls_from_dense_to_the_budget_and_stays_there():
    policy = Policy(PruningConfig(warmup_events=100, pruning_events=100, budget=0.2, settle_ratio=0.5))
    assert policy.target_ratio(50) == 1.0
    policy.decide(100, False)
    assert policy.phase is Phase.PRUNING
    targets = [policy.target_ratio(events) for events in range(100, 201, 5)]
    assert targets[0] == 1.0 and targets[-1] == pytest.approx(0.2)
    assert all(later <= earlier for earlier, later in zip(targets, targets[1:], strict=False))
    assert policy.target_ratio(150) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("field", "value"), [("budget", 0.0), ("budget", 1.5), ("warmup_events", 0), ("settle_ratio", 1.0)]
)
def test_a_pruning_setting_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"pruning.{field}.*{value}"):
        PruningConfig(**{field: value})
