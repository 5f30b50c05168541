"""Units, masks, compaction and policies: what must hold of any network and any stream."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.deep.network import Network, NetworkShape
from niwaki.pruning.auxiliary import AuxiliaryConfig, AuxiliaryMasks
from niwaki.pruning.compaction import compact, expand
from niwaki.pruning.config import PruningConfig, policy_for
from niwaki.pruning.policies import POLICIES
from niwaki.pruning.policy import Comparison, Move, Phase, Policy
from niwaki.pruning.scores import exchange
from niwaki.pruning.unit_masks import MagnitudeMasks
from niwaki.pruning.units import MaskGradient, uniform_widths
from tests.support.networks import correction, predict

NETWORK = Network(
    NetworkShape(
        fields=3, numerics=4, slots=5, embedding_dim=4, bottom=(8,), top=(16, 12), interaction="dot"
    )
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
    """Any non-empty choice of units in every group, columns of the tables included."""
    return {
        group.name: torch.tensor(sorted(draw(st.sets(st.integers(0, group.size - 1), min_size=1))))
        for group in NETWORK.units
    }


@given(kept_units())
@settings(deadline=None, max_examples=50)
def test_a_compact_network_predicts_what_the_masked_one_does(kept):
    masks = {g.name: torch.zeros(g.size).index_fill(0, kept[g.name], 1.0) for g in NETWORK.units}
    masked = correction(NETWORK, PARAMETERS, *INPUTS, masks)
    narrow = NETWORK.cut_to(kept)
    compacted = compact(PARAMETERS, NETWORK.units, kept)
    assert {name: tuple(t.shape) for name, t in compacted.items()} == narrow.shapes
    torch.testing.assert_close(predict(narrow, compacted, INPUTS), masked, atol=1e-5, rtol=1e-5)


@given(kept_units())
@settings(deadline=None, max_examples=50)
def test_expanding_puts_every_weight_back_and_leaves_dormant_ones_alone(kept):
    compacted = compact(PARAMETERS, NETWORK.units, kept)
    for name, tensor in expand(compacted, PARAMETERS, NETWORK.units, kept).items():
        assert torch.equal(tensor, PARAMETERS[name])
    trained = {name: tensor + 1 for name, tensor in compacted.items()}
    expanded = expand(trained, PARAMETERS, NETWORK.units, kept)
    for name, tensor in compact(expanded, NETWORK.units, kept).items():
        assert torch.equal(tensor, trained[name])
    for name, tensor in expanded.items():
        assert (tensor != PARAMETERS[name]).sum() == trained[name].numel()


@given(kept_units())
@settings(deadline=None, max_examples=50)
def test_the_cost_of_survivors_is_the_cost_of_the_network_cut_from_them(kept):
    alive = {name: len(index) for name, index in kept.items()}
    assert NETWORK.cost.total(alive) == NETWORK.cut_to(kept).cost.total({})
    for name, price in NETWORK.cost.marginal(alive).items():
        more = alive | {name: alive[name] + 1}
        assert NETWORK.cost.total(more) - NETWORK.cost.total(alive) == price


def gradients_of(auxiliary: AuxiliaryMasks, value: float) -> dict[str, MaskGradient]:
    """As if every event had this gradient in every mask."""
    sizes = {group.name: torch.ones(group.size) for group in auxiliary.groups}
    return {name: MaskGradient(ones * value, ones * value**2) for name, ones in sizes.items()}


def random_gradients(
    auxiliary: AuxiliaryMasks, generator: torch.Generator
) -> dict[str, MaskGradient]:
    """Of eight events."""
    by_event = {
        group.name: 8 * torch.randn(8, group.size, generator=generator)
        for group in auxiliary.groups
    }
    return {
        name: MaskGradient(g_BU.mean(0), g_BU.square().mean(0)) for name, g_BU in by_event.items()
    }


@given(st.floats(0.05, 1.0), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_masks_meet_the_target_as_closely_as_whole_units_allow_and_no_layer_dies(target, seed):
    wide = Network(
        NetworkShape(
            fields=3,
            numerics=4,
            slots=5,
            embedding_dim=4,
            bottom=(32,),
            top=(128, 64),
            interaction="dot",
        )
    )
    auxiliary = AuxiliaryMasks(wide.groups, wide.cost, AuxiliaryConfig(min_units=1))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        auxiliary.update(random_gradients(auxiliary, generator), target)
    counts = {name: len(index) for name, index in auxiliary.kept().items()}
    dearest = max(wide.cost.marginal({}).values()) / wide.cost.total({})
    assert auxiliary.ratio() <= target
    assert auxiliary.ratio() > target - dearest or all(
        counts[g.name] == g.size for g in wide.groups
    )
    assert min(counts.values()) >= 1


def test_a_unit_whose_absence_hurts_outlives_one_that_does_nothing():
    auxiliary = AuxiliaryMasks(NETWORK.groups, NETWORK.cost, AuxiliaryConfig(min_units=1))
    useful = torch.arange(0, 16, 2)
    for _ in range(5):
        gradients = gradients_of(auxiliary, 0.0)
        gradients["top.0"].mean_U[useful] = -0.8
        auxiliary.update(gradients, 0.6)
    assert set(useful.tolist()) <= set(auxiliary.kept()["top.0"].tolist())
    assert not auxiliary.alive["top.0"].all()


def test_a_pruned_unit_comes_back_when_its_gradient_asks_for_it():
    auxiliary = AuxiliaryMasks(
        NETWORK.groups, NETWORK.cost, AuxiliaryConfig(min_units=1, horizon_steps=2)
    )
    for favoured in ([0, 1, 2], [8, 9, 10]):
        for _ in range(20):
            gradients = gradients_of(auxiliary, 0.08)
            gradients["top.1"].mean_U[favoured] = -0.4
            gradients["top.1"].square_U[favoured] = 0.16
            auxiliary.update(gradients, 0.5)
        assert auxiliary.alive["top.1"][favoured].all()


def drive(policy: Policy, events: range, drifts: set[int] = frozenset()) -> list[tuple[int, Move]]:
    moves = [(at, policy.decide(at, at in drifts)) for at in events]
    return [(at, move) for at, move in moves if move is not Move.STAY]


def test_phases_follow_their_lengths_and_a_drift_in_a_sparse_phase_starts_them_anew():
    config = PruningConfig(warmup_events=100, regrowth_events=50, pruning_events=30)
    moves = drive(policy_for(config), range(10, 1000, 10), drifts={300, 320, 360})
    assert moves == [
        (100, Move.PRUNE), (130, Move.CUT),
        (300, Move.REGROW), (350, Move.PRUNE), (380, Move.CUT),
    ]  # fmt: skip


def test_a_static_policy_prunes_once_and_a_dense_one_never():
    config = {"warmup_events": 100, "pruning_events": 30}
    static = drive(
        policy_for(PruningConfig(policy="static", **config)), range(10, 1000, 10), drifts={300}
    )
    assert static == [(100, Move.PRUNE), (130, Move.CUT)]
    assert (
        drive(
            policy_for(PruningConfig(policy="dense", **config)), range(10, 1000, 10), drifts={300}
        )
        == []
    )


def test_the_target_falls_from_dense_to_the_budget_and_stays_there():
    policy = policy_for(
        PruningConfig(warmup_events=100, pruning_events=100, budget=0.2, settle_ratio=0.5)
    )
    assert policy.target_ratio(50) == 1.0
    policy.decide(100, False)
    assert policy.phase is Phase.PRUNING
    targets = [policy.target_ratio(events) for events in range(100, 201, 5)]
    assert targets[0] == 1.0 and targets[-1] == pytest.approx(0.2)
    assert all(later <= earlier for earlier, later in zip(targets, targets[1:], strict=False))
    assert policy.target_ratio(150) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("budget", 0.0),
        ("budget", 1.5),
        ("table_budget", 0.0),
        ("table_budget", 1.01),
        ("warmup_events", 0),
        ("settle_ratio", 1.0),
        ("doubt_events", 0),
    ],
)
def test_a_pruning_setting_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        PruningConfig(**{field: value})


def test_every_policy_has_a_class_and_only_those_that_are_narrow_from_the_start_begin_sparse():
    assert set(POLICIES) == set(
        "dense small static magnitude rigl periodic adaptive adaptive-live".split()
    )
    for name in POLICIES:
        policy = policy_for(PruningConfig(policy=name))
        assert (
            (policy.phase is Phase.SPARSE)
            == policy.narrow_from_the_start
            == (name in ("small", "rigl"))
        )


def test_a_network_that_predicts_worse_takes_over_only_when_it_no_longer_does_or_at_the_bound():
    config = PruningConfig(
        warmup_events=100, pruning_events=30, tolerance_ratio=0.01, longest_wait_events=50
    )
    for behind_ratio, cut_at, forced in ((0.005, 130, 0), (0.02, 180, 1), (None, 130, 0)):
        policy = policy_for(config)
        moves = [
            (at, policy.decide(at, False, Comparison(behind_ratio))) for at in range(10, 400, 10)
        ]
        assert [at for at, move in moves if move is Move.CUT] == [cut_at]
        assert policy.state.forced == forced


@pytest.mark.parametrize("enough", [0.02, 0.1, 0.4, 1.0])
def test_an_automatic_budget_is_the_least_that_predicts_as_well_as_no_pruning(enough):
    policy = policy_for(
        PruningConfig(
            budget="auto", warmup_events=100, pruning_events=1000, longest_wait_events=1000
        )
    )
    worse = False
    for at in range(10, 6000, 10):
        move = policy.decide(at, False, Comparison(None, 0.01 if worse else 0.0))
        if move is Move.CUT:
            break
        worse = policy.target_ratio(at) < enough
    assert move is Move.CUT and not policy.state.forced
    assert enough <= policy.budget <= 1.15 * enough


def test_an_automatic_budget_starts_from_dense_at_each_pruning_and_is_bounded():
    policy = policy_for(
        PruningConfig(budget="auto", warmup_events=100, regrowth_events=50, pruning_events=100)
    )
    budgets = []
    for at in range(10, 1000, 10):
        move = policy.decide(at, at == 500, Comparison(None, 0.0))
        assert 0.02 <= policy.target_ratio(at) <= 1
        budgets += [policy.budget] if move in (Move.PRUNE, Move.CUT) else []
    assert budgets == pytest.approx([1.0, 0.02, 1.0, 0.02])


@pytest.mark.parametrize("policy", ["small", "magnitude", "rigl"])
def test_a_policy_that_needs_a_number_refuses_an_automatic_budget(policy):
    with pytest.raises(ValueError, match=f"budget.*{policy}"):
        PruningConfig(policy=policy, budget="auto")


def test_periodic_prunes_anew_at_equal_intervals_and_stays_dense():
    policy = policy_for(
        PruningConfig(policy="periodic", warmup_events=100, pruning_events=30, period_events=200)
    )
    cuts = [at for at, move in drive(policy, range(10, 1000, 10), drifts={500}) if move is Move.CUT]
    assert cuts == [130, 330, 530, 730, 930]
    assert policy.stays_dense


def test_rigl_exchanges_fewer_units_as_time_goes_by_and_never_none():
    policy = policy_for(PruningConfig(policy="rigl", period_events=100, exchange_ratio=0.3))
    moves = drive(policy, range(1, 1000))
    assert [at for at, _ in moves] == list(range(10, 1000, 10)) and {move for _, move in moves} == {
        Move.REWIRE
    }
    ratios = [policy.exchange_ratio(events) for events in range(0, 4000, 100)]
    assert ratios[0] == 0.3 and ratios[-1] == pytest.approx(0.03)
    assert ratios == sorted(ratios, reverse=True)


@given(st.floats(0.05, 1.0))
@settings(deadline=None, max_examples=30)
def test_uniform_widths_are_the_same_share_of_each_layer_and_the_most_that_fit(ratio):
    widths = uniform_widths(NETWORK.groups, NETWORK.cost, ratio)
    assert NETWORK.cost.total(widths) <= ratio * NETWORK.cost.total({}) or set(widths.values()) == {
        1
    }
    shares = [widths[group.name] / group.size for group in NETWORK.groups]
    least = max(
        (width - 1) / group.size
        for width, group in zip(widths.values(), NETWORK.groups, strict=True)
    )
    assert all(
        share >= least - 1 / group.size for share, group in zip(shares, NETWORK.groups, strict=True)
    )


@pytest.mark.parametrize("target", [0.5, 0.2])
def test_uniform_masks_keep_the_most_important_units_and_the_same_share_of_each_layer(target):
    auxiliary = AuxiliaryMasks(NETWORK.groups, NETWORK.cost, AuxiliaryConfig(uniform=True))
    generator = torch.Generator().manual_seed(3)
    means = {g.name: torch.randn(g.size, generator=generator) for g in NETWORK.groups}
    auxiliary.update(
        {name: MaskGradient(mean, torch.zeros_like(mean)) for name, mean in means.items()}, target
    )
    kept = auxiliary.kept()
    assert {name: len(index) for name, index in kept.items()} == uniform_widths(
        NETWORK.groups, NETWORK.cost, target
    )
    for name, index in kept.items():
        gone = torch.ones(len(means[name]), dtype=torch.bool).index_fill(0, index, False)
        assert (-means[name])[index].min() >= (-means[name])[gone].max()


def test_magnitude_masks_keep_the_largest_units_and_what_is_gone_stays_gone():
    masks = MagnitudeMasks(NETWORK.groups, NETWORK.cost)
    before = None
    for target in (0.8, 0.5, 0.3):
        masks.update({}, target, PARAMETERS)
        kept = masks.kept()
        assert NETWORK.cost.total(
            {name: len(index) for name, index in kept.items()}
        ) <= target * NETWORK.cost.total({})
        for group in NETWORK.groups:
            size = group.magnitudes(PARAMETERS)
            gone = [unit for unit in range(group.size) if unit not in kept[group.name]]
            assert not gone or size[gone].max() <= size[kept[group.name]].min()
            assert before is None or set(kept[group.name].tolist()) <= set(
                before[group.name].tolist()
            )
        before = kept


@given(kept_units(), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_an_exchange_conserves_the_number_of_units_and_drops_none_that_it_grows(kept, ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    gradients = {name: torch.randn(t.shape, generator=generator) for name, t in PARAMETERS.items()}
    for group in NETWORK.groups:
        before = set(kept[group.name].tolist())
        after = exchange(group, kept[group.name], PARAMETERS, gradients, ratio)
        assert after.tolist() == sorted(set(after.tolist())) and len(after) == len(before)
        assert len(before - set(after.tolist())) == min(
            int(ratio * len(before)), group.size - len(before)
        )


@pytest.mark.parametrize("budget", [0.2, 0.1, 0.05, 0.02])
@pytest.mark.parametrize(("fields", "numerics"), [(7, 8), (3, 0), (1, 6), (12, 4)])
def test_the_default_widths_meet_every_budget_within_one_point_and_no_layer_dies(
    budget, fields, numerics
):
    slots = fields * (fields + 1) // 2 + 2 * numerics + 1
    bottom = (64,) if numerics else ()
    shape = NetworkShape(
        fields=fields,
        numerics=numerics,
        slots=slots,
        embedding_dim=16,
        bottom=bottom,
        top=(512, 256),
        interaction="dot",
    )
    network = Network(shape)
    auxiliary = AuxiliaryMasks(network.groups, network.cost)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        auxiliary.update(random_gradients(auxiliary, generator), budget)
    assert budget - 0.01 < auxiliary.ratio() <= budget
    assert all(len(index) >= auxiliary.config.min_units for index in auxiliary.kept().values())
