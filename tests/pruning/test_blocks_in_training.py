"""Blocks of weights and single weights as units of a learner and its trainer: cuts, policies, what
is served, snapshots and settings."""

import msgspec
import numpy as np
import pytest
import torch

from niwaki.model.errors import CheckpointError
from niwaki.model.features.schema import EventBatch
from niwaki.model.learner import Learner
from niwaki.model.published.checkpoint import pack, unpack
from niwaki.model.published.served import PublishedModel
from niwaki.pruning.compaction import compact
from niwaki.pruning.config import PruningConfig
from niwaki.pruning.policies import POLICIES
from niwaki.stream.errors import ConfigError
from niwaki.stream.kafka.reader import Positions
from niwaki.stream.training.snapshots.contents import Place, load_snapshot, save_snapshot
from niwaki.stream.training.snapshots.files import SnapshotConfig
from tests.support.streams import SCHEMA, SMALL, click_events, differing
from tests.support.trainers import learn_all, run, small_trainer

UNITS = [{"unit": "block", "block": (4, 4)}, {"unit": "weight"}]


@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_a_cut_and_a_regrowth_keep_predictions_and_the_optimizer_state_of_survivors(unit):
    learner = Learner(SCHEMA, SMALL, block=PruningConfig(**unit).weights_of_unit)
    learn_all(learner, click_events(2000))
    learner.branches.prune()
    learn_all(learner, click_events(1000, seed=1), target_ratio=0.3)
    features = learner.encoder.encode(click_events(100, seed=2))
    before, dense = learner.predict(features), learner.branches.dense
    learner.branches.cut()
    np.testing.assert_allclose(learner.predict(features), before, atol=1e-5)
    groups, sparse = dense.network.groups, learner.branches.sparse
    for part, left in zip(dense.tensors(), sparse.tensors(), strict=True):
        for name, tensor in compact(part, groups, learner.branches.kept).items():
            assert torch.equal(left[name], tensor)
    assert learner.multiply_adds <= 0.3 * learner.branches.dense_cost
    held = sum(
        tensor.numel() for name, tensor in sparse.parameters.items() if name.endswith("weight")
    )
    assert held <= learner.multiply_adds
    learn_all(learner, click_events(1000, seed=3))
    before, dormant = learner.predict(features), dense.state()
    learner.branches.regrow()
    np.testing.assert_array_equal(learner.predict(features), before)
    for group in groups:
        gone = ~group.within(learner.branches.kept[group.name])
        weights, *moments = (
            part[group.parameter][gone] for part in learner.branches.dense.tensors()
        )
        assert torch.equal(weights, dormant[f"weight.{group.parameter}"][gone])
        assert not any(moment.any() for moment in moments)
    for part, left in zip(learner.branches.dense.tensors(), sparse.tensors(), strict=True):
        for name, tensor in compact(part, groups, learner.branches.kept).items():
            assert torch.equal(left[name], tensor)
    learn_all(learner, click_events(500, seed=4))
    for group in groups:
        gone = ~group.within(learner.branches.kept[group.name])
        weights = learner.branches.dense.parameters[group.parameter]
        assert not gone.any() or (weights != dormant[f"weight.{group.parameter}"])[gone].any()


@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_a_served_checkpoint_predicts_what_the_trainer_does_and_wrong_blocks_are_refused(unit):
    trainer = small_trainer(**unit)
    replica = trainer.add_replica(640, table_precision="float32")
    run(trainer, click_events(4096))
    header, tensors = replica.checkpoint(
        trainer.status(), version=3, parent=2, offsets={"0": 4096}, created_s=1.0
    )
    assert (
        header.shape.block == trainer.policy.config.weights_of_unit and header.sparsity_ratio >= 0.7
    )
    served = PublishedModel.from_checkpoint(*unpack(pack(header, tensors)))
    batch = click_events(500, seed=9)
    features = trainer.learner.encoder.encode(batch)
    logits = torch.from_numpy(trainer.learner.predict(features, replica.mixture.weights))
    np.testing.assert_allclose(served.predict(batch), logits.sigmoid().numpy(), atol=1e-5)
    blocks = tensors["network.top.0.blocks"]
    wrong = [
        blocks[:-1],
        blocks.flip(0),
        blocks + 10**6,
        torch.cat([blocks, blocks[-1:]]),
        blocks.float(),
    ]
    for other in wrong:
        with pytest.raises(CheckpointError):
            PublishedModel.from_checkpoint(header, tensors | {"network.top.0.blocks": other})
    del tensors["network.top.1.blocks"]
    with pytest.raises(CheckpointError, match="blocks: must be those of"):
        PublishedModel.from_checkpoint(header, tensors)


@pytest.mark.parametrize("unit", UNITS, ids=str)
@pytest.mark.parametrize(
    "pruning", [*({"policy": name} for name in POLICIES), {"budget": "auto"}], ids=str
)
def test_every_policy_keeps_its_budget_is_served_as_it_learns_and_continues_bit_for_bit(
    pruning, unit
):
    events = EventBatch.concat([click_events(2560), click_events(1280, seed=1, flipped=True)])
    whole = small_trainer(**pruning, **unit)
    replica = whole.add_replica(512)
    phases, states = [], []
    for start in range(0, len(events), 64):
        state, tensors = whole.state()
        if start and (not phases or whole.policy.phase != phases[-1]):
            phases.append(whole.policy.phase)
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            states.append(
                (start, msgspec.convert(msgspec.to_builtins(state), type(state)), tensors)
            )
        step = whole.step(events.slice(start, start + 64))
        if replica.due(step.move):
            replica.refresh()
    learner = whole.learner
    if pruning != {"budget": "auto"}:
        assert (
            learner.multiply_adds
            <= (1.0 if pruning["policy"] == "dense" else 0.3) * learner.branches.dense_cost
        )
    assert all(sparsity < 1 for sparsity in learner.branches.sparsity_by_layer().values())
    assert replica.evaluation.total.normalized_entropy < 1.05
    expected = whole.state()
    for at, state, tensors in states:
        second = small_trainer(**pruning, **unit)
        second.restore(state, tensors)
        run(second, events.slice(at, len(events)))
        actual = second.state()
        assert expected[0] == actual[0]
        assert differing(expected[1], actual[1]) == []


def test_a_snapshot_of_other_units_is_refused(tmp_path):
    config, block = SnapshotConfig(directory=str(tmp_path)), {"unit": "block", "block": (4, 4)}
    trainer = small_trainer(**block)
    run(trainer, click_events(2560))
    replica = trainer.add_replica(512)
    save_snapshot(config, trainer, replica, Place(topic="clicks", positions=Positions(), version=1))
    again = small_trainer(**block)
    assert load_snapshot(config, again, again.add_replica(512), "clicks").version == 1
    assert differing(trainer.state()[1], again.state()[1]) == []
    for unit in ({}, {"unit": "weight"}):
        other = small_trainer(**unit)
        with pytest.raises(ConfigError, match="pruning.unit: 'block' in the snapshot, '"):
            load_snapshot(config, other, other.add_replica(512), "clicks")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "row"}, "unit: must be one of neuron, block, weight, got 'row'"),
        ({"block": (0, 8)}, r"block: must be two sides of at least 1, got \[0, 8\]"),
        (
            {"unit": "weight", "table_budget": 0.5},
            "unit: must be neuron where tables are pruned.*'weight'",
        ),
    ],
)
def test_a_setting_of_units_out_of_range_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(**changes)


def test_the_policy_small_has_narrow_layers_whatever_the_unit():
    assert PruningConfig(policy="small", unit="weight").weights_of_unit is None
    assert PruningConfig(unit="weight").weights_of_unit == (1, 1)
    assert PruningConfig(unit="block", block=(4, 2)).weights_of_unit == (4, 2)
    small = small_trainer(policy="small", unit="weight").learner
    assert (
        small.branches.network.shape == small_trainer(policy="small").learner.branches.network.shape
    )
