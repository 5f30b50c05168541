"""The trainer: policies move the learner through its phases, snapshots lose nothing, checkpoints
are what it says."""

import dataclasses
import itertools

import msgspec
import numpy as np
import pytest
import torch

from niwaki.model.config import LearnerConfig
from niwaki.model.errors import CheckpointError
from niwaki.model.evaluation import log_losses
from niwaki.model.features.schema import EventBatch
from niwaki.model.published.checkpoint import pack, read_header, unpack
from niwaki.model.published.served import PublishedModel
from niwaki.pruning.config import PruningConfig
from niwaki.pruning.policies import POLICIES
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.offline.history import History
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig
from tests.support.streams import SCHEMA, click_events
from tests.support.trainers import assert_restored_trainers_continue_bit_for_bit, run, small_trainer


def test_after_a_drift_the_network_regrows_and_is_pruned_anew_while_a_sparse_one_is_served():
    trainer = small_trainer()
    steps = run(trainer, click_events(6400)) + run(
        trainer, click_events(6400, seed=1, flipped=True)
    )
    moves = [step.move for step in steps if step.move != "stay"]
    drifts = [drift for step in steps for drift in step.drifts]
    assert moves[:2] == ["prune", "cut"]
    assert moves[-3:] == ["regrow", "prune", "cut"]
    assert any(6400 <= drift.event <= 7400 for drift in drifts)
    assert trainer.learner.multiply_adds <= 0.3 * trainer.learner.branches.dense_cost


@pytest.mark.parametrize(
    "pruning", [*({"policy": name} for name in POLICIES), {"budget": "auto"}], ids=str
)
def test_a_restored_trainer_continues_bit_for_bit_from_every_phase_of_every_policy(pruning):
    events = EventBatch.concat([click_events(3200), click_events(2560, seed=1, flipped=True)])
    assert_restored_trainers_continue_bit_for_bit(events, **pruning)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_its_budget_and_is_served_as_it_learns(policy):
    trainer = small_trainer(policy=policy)
    replica = trainer.add_replica(512)
    events = EventBatch.concat([click_events(3200), click_events(1600, seed=1, flipped=True)])
    for start in range(0, len(events), 64):
        step = trainer.step(events.slice(start, start + 64))
        if replica.due(step.move):
            replica.refresh()
    learner = trainer.learner
    assert (
        learner.multiply_adds <= (1.0 if policy == "dense" else 0.3) * learner.branches.dense_cost
    )
    assert all(sparsity < 1 for sparsity in learner.branches.sparsity_by_layer().values())
    assert replica.evaluation.total.normalized_entropy < 1.05


def test_an_automatic_budget_prunes_beside_an_unpruned_network_and_is_told_in_header_and_history():
    trainer = small_trainer(budget="auto", auto_tolerance_ratio=0.05, pruning_events=680)
    replica = trainer.add_replica(512)
    history = History(trainer, replica)
    steps = run(trainer, click_events(2000))
    assert trainer.learner.branches.masks and trainer.learner.branches.reference
    learned = trainer.learner.learned_multiply_adds
    history.stepped(steps[-1])
    run(trainer, click_events(64, seed=1))
    assert (
        trainer.learner.learned_multiply_adds - learned
        == 2 * 64 * trainer.learner.branches.dense_cost
    )
    for step in run(trainer, click_events(4000, seed=2)):
        history.stepped(step)
    chosen = trainer.policy.budget
    assert trainer.learner.branches.reference is None and 0.02 <= chosen < 1
    least = 240 / 1928  # four units of each layer, which stay whatever the budget
    assert trainer.learner.multiply_adds / trainer.learner.branches.dense_cost <= max(chosen, least)
    header, _ = replica.checkpoint(trainer.status(), version=1, parent=0, offsets={}, created_s=0.0)
    assert header.budget == history.prunings[0]["budget"] == chosen


def test_collisions_are_told_about_as_they_are():
    trainer = small_trainer(policy="dense")
    assert trainer.collisions() == dict.fromkeys(SCHEMA.fields, 0.0)
    events = click_events(3200)
    run(trainer, events)
    rows_BF = trainer.learner.encoder.encode(events).rows_BF
    for place, told in enumerate(trainer.collisions().values()):
        values = len(events.categorical[place].drop_null().unique())
        taken = len(rows_BF[:, place].unique()) - (events.categorical[place].null_count > 0)
        assert told == pytest.approx(1 - taken / values, abs=0.06)
    assert trainer.collisions()["noise"] > 0.4


def test_a_served_checkpoint_predicts_what_the_trainer_does():
    trainer = small_trainer()
    replica = trainer.add_replica(640, table_precision="float32")
    for start in range(0, 4096, 64):
        step = trainer.step(click_events(4096).slice(start, start + 64))
        if replica.due(step.move):
            replica.refresh()
    header, tensors = replica.checkpoint(
        trainer.status(), version=3, parent=2, offsets={"0": 4096}, created_s=1.0
    )
    data = pack(header, tensors)
    served = PublishedModel.from_checkpoint(*unpack(data))
    batch = click_events(500, seed=9)
    features = trainer.learner.encoder.encode(batch)
    logits = torch.from_numpy(trainer.learner.predict(features, replica.mixture.weights))
    np.testing.assert_allclose(served.predict(batch), logits.sigmoid().numpy(), atol=1e-6)
    replica.refresh()
    np.testing.assert_allclose(replica.served.predict(batch), served.predict(batch), atol=1e-7)
    assert read_header(data) == header and header.sparsity_ratio >= 0.7


def test_a_checkpoint_with_any_byte_changed_or_missing_is_refused():
    trainer = small_trainer()
    run(trainer, click_events(640))
    data = pack(
        *trainer.add_replica(640).checkpoint(
            trainer.status(), version=1, parent=0, offsets={}, created_s=1.0
        )
    )
    for at in [*range(0, 40), *range(40, len(data), len(data) // 50), len(data) - 1]:
        damaged = bytearray(data)
        damaged[at] ^= 1
        with pytest.raises(CheckpointError):
            unpack(bytes(damaged))
    for length in (0, 5, 100, len(data) - 1):
        with pytest.raises(CheckpointError):
            unpack(data[:length])


def test_a_checkpoint_whose_tensors_are_not_what_its_header_says_is_refused():
    trainer = small_trainer()
    run(trainer, click_events(640))
    replica = trainer.add_replica(640)
    header, tensors = replica.checkpoint(
        trainer.status(), version=1, parent=0, offsets={}, created_s=1.0
    )
    wrong = {"network.top.0.weight": torch.zeros(3, 3), "mixture": torch.zeros(1)}
    wrong |= {
        "linear.rows": tensors["linear.rows"] + 10**7,
        "embedding.rows": tensors["embedding.rows"].float(),
    }
    for name, tensor in wrong.items():
        with pytest.raises(CheckpointError):
            PublishedModel.from_checkpoint(*unpack(pack(header, tensors | {name: tensor})))


def test_at_the_default_budget_the_network_keeps_a_tenth_of_its_multiply_adds_and_every_layer():
    trainer = Trainer(
        TrainerConfig(
            schema=SCHEMA,
            model=LearnerConfig(table_rows=512),
            pruning=PruningConfig(warmup_events=512, pruning_events=2048),
            drift=DriftConfig(),
            training=TrainingConfig(),
        )
    )
    while trainer.policy.phase != "sparse":
        trainer.step(click_events(128, seed=trainer.events))
    learner = trainer.learner
    assert (
        0.09 * learner.branches.dense_cost
        < learner.multiply_adds
        <= 0.1 * learner.branches.dense_cost
    )
    assert all(
        len(index) >= learner.config.auxiliary.min_units for index in learner.branches.kept.values()
    )
    assert (
        sum(p.numel() for p in learner.branches.sparse.parameters.values() if p.dim() == 2)
        <= learner.multiply_adds
    )


@pytest.mark.parametrize("ratio", [0.25, 0.6])
def test_the_mixture_learns_from_a_share_of_the_stream_whatever_else_is_evaluated(ratio):
    config = small_trainer().config
    training = msgspec.structs.replace(config.training, scored_ratio=ratio)
    trainer = Trainer(msgspec.structs.replace(config, training=training))
    whole, share = (trainer.add_replica(640, evaluates_all=every) for every in (True, False))
    logits: list[np.ndarray] = []
    whole.observe(logits.append)
    for replica in (whole, share):
        replica.refresh()
    events = click_events(6_400)
    for start, stop in itertools.pairwise([0, *range(100, 6_400, 150), 6_400]):
        move = trainer.step(events.slice(start, stop)).move
        for replica in (whole, share):
            if replica.due(move):
                replica.refresh()
    whole.settle()
    assert sum(map(len, logits)) == 6_400 == whole.evaluation.total.events
    assert share.evaluation.total.events == 6_400 // 128 * round(128 * ratio)
    np.testing.assert_array_equal(whole.mixture.weights, share.mixture.weights)
    places = np.arange(6_400) % 128 < round(128 * ratio)
    labels_B, logits_B = events.labels_B[places], np.concatenate(logits)[places]
    assert share.evaluation.total.loss_sum == pytest.approx(log_losses(logits_B, labels_B).sum())


def test_event_times_of_another_age_are_put_back_and_change_no_header():
    events = click_events(1_280)
    times_s = events.times_s_B.copy()
    times_s[[0, 640, 1_279]] = 32_503_680_000.0, 1.0, 32_503_680_000.0
    trainer = small_trainer()
    steps = run(trainer, dataclasses.replace(events, times_s_B=times_s))
    assert sum(step.outlier_times for step in steps) in (2, 3, 4)
    assert 0 <= events.times_s_B[-1] - trainer.status().event_time_s < 128
