"""Columns of the embedding tables in a learner and its trainer: cut out of checkpoints, regrown
without a jump, within their budget under every policy."""

import msgspec
import numpy as np
import pytest
import torch

from niwaki.model.errors import CheckpointError
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import EventBatch
from niwaki.model.learner import Learner
from niwaki.model.published.checkpoint import Header, pack, unpack, unpack_as
from niwaki.model.published.served import PublishedModel
from niwaki.pruning.config import PruningConfig
from niwaki.pruning.masks import MaskSet
from niwaki.stream.offline.backtest import rebatch
from tests.support.publisher import Publisher
from tests.support.streams import SCHEMA, SMALL, click_events
from tests.support.trainers import (
    assert_restored_trainers_continue_bit_for_bit,
    run,
    served_by,
    small_trainer,
)

ABOUT = {"version": 1, "parent": 0, "offsets": {}, "created_s": 1.0}


def learn(learner: Learner, events: EventBatch, *ratios: float) -> None:
    for batch in rebatch([events], 64):
        learner.learn(learner.encoder.encode(batch), Outcomes.of(batch), *ratios)


def cut_learner(stays_dense: bool = False) -> Learner:
    """After a cut to half of the bytes and three tenths of the multiply-adds."""
    learner = Learner(SCHEMA, SMALL, prunes_tables=True)
    learn(learner, click_events(2000))
    learner.branches.prune()
    learn(learner, click_events(1000, seed=1), 0.3, 0.5)
    learner.branches.cut(stays_dense)
    return learner


def dead_values(learner: Learner) -> torch.Tensor:
    """All values of the columns that the sparse branch does not read."""
    dead_FD = ~learner.branches.sparse.network.shape.alive_FD()
    return learner.tables.weight_RD.view(len(dead_FD), -1, dead_FD.shape[1]).transpose(1, 2)[
        dead_FD
    ]


def test_a_cut_of_columns_changes_neither_predictions_nor_the_optimizer_state_of_survivors():
    learner = Learner(SCHEMA, SMALL, prunes_tables=True)
    learn(learner, click_events(2000))
    learner.branches.prune()
    learn(learner, click_events(1000, seed=1), 0.3, 0.5)
    features = learner.encoder.encode(click_events(100, seed=2))
    before, squares = learner.predict(features), learner.tables.squares_R.clone()
    moments = learner.branches.dense.tensors().second_moments["top.0.weight"].clone()
    learner.branches.cut()
    np.testing.assert_allclose(learner.predict(features), before, atol=1e-6)
    columns = learner.branches.kept["embedding"]
    assert 0 < len(columns) < learner.branches.dense.network.columns.size
    after = learner.branches.sparse.tensors().second_moments["top.0.weight"]
    assert torch.equal(
        after[:, : len(columns)], moments[learner.branches.kept["top.0"]][:, columns]
    )
    assert torch.equal(learner.tables.squares_R, squares)
    assert after.shape[1] == moments.shape[1] - learner.branches.dense.network.columns.size + len(
        columns
    )
    assert learner.multiply_adds <= 0.3 * learner.branches.dense_cost and learner.table_ratio <= 0.5


def test_dead_columns_learn_nothing_while_the_network_is_sparse():
    learner = cut_learner()
    assert len(dead_values(learner)) and not dead_values(learner).any()
    before = learner.tables.weight_RD.clone()
    learn(learner, click_events(500, seed=3))
    assert not dead_values(learner).any() and not torch.equal(before, learner.tables.weight_RD)


def test_columns_that_a_dense_branch_still_reads_go_on_learning_and_are_not_published():
    learner = cut_learner(stays_dense=True)
    before = dead_values(learner).clone()
    learn(learner, click_events(500, seed=3))
    assert before.any() and not torch.equal(before, dead_values(learner))
    export = learner.export(learner.mixture.weights)
    field_U = export.tensors["embedding.rows"] // SMALL.table_rows
    assert not export.tensors["embedding.values"][~export.shape.alive_FD()[field_U]].any()
    model = served_by(learner, export)
    features = learner.encoder.encode(click_events(100, seed=4))
    np.testing.assert_allclose(
        model.logits(model.experts(features)), learner.predict(features), atol=2e-5
    )


def test_regrown_columns_begin_as_zeros_with_the_weights_that_they_were_cut_with_and_learn():
    learner = cut_learner()
    learn(learner, click_events(1000, seed=2))
    features = learner.encoder.encode(click_events(100, seed=3))
    before, sparse = learner.predict(features), learner.branches.sparse
    kept = torch.zeros(learner.branches.dense.network.columns.size, dtype=torch.bool)
    kept[learner.branches.kept["embedding"]] = True
    as_cut = learner.branches.dense.parameters["top.0.weight"][:, : len(kept)].clone()
    learner.branches.regrow()
    weight, first, second = (
        part["top.0.weight"][:, : len(kept)] for part in learner.branches.dense.tensors()
    )
    assert (
        torch.equal(weight[:, ~kept], as_cut[:, ~kept])
        and weight.all()
        and not first[:, ~kept].any()
        and not second[:, ~kept].any()
    )
    survivors = learner.branches.kept["top.0"]
    assert torch.equal(
        weight[survivors][:, kept], sparse.parameters["top.0.weight"][:, : kept.sum()]
    )
    assert torch.equal(
        second[survivors][:, kept], sparse.tensors().second_moments["top.0.weight"][:, : kept.sum()]
    )
    np.testing.assert_array_equal(learner.predict(features), before)
    assert not dead_values(learner).any()
    regrown = weight.clone()
    learn(learner, click_events(500, seed=4))
    assert dead_values(learner).any(1).all()
    assert not torch.equal(
        learner.branches.dense.parameters["top.0.weight"][:, : len(kept)][:, ~kept],
        regrown[:, ~kept],
    )


@pytest.mark.parametrize("policy", ["adaptive", "adaptive-live", "static", "periodic", "magnitude"])
def test_every_policy_keeps_both_budgets_and_is_served_as_it_learns(policy):
    trainer = small_trainer(policy=policy, table_budget=0.5)
    replica = trainer.add_replica(512, table_precision="float32")
    events = EventBatch.concat([click_events(3200), click_events(1600, seed=1, flipped=True)])
    cuts = 0
    for batch in rebatch([events], 64):
        step = trainer.step(batch)
        if step.move == "cut":
            cuts += 1
            assert 0.25 <= trainer.learner.table_ratio <= 0.5
            assert trainer.learner.multiply_adds <= 0.3 * trainer.learner.branches.dense_cost
        if replica.due(step.move):
            replica.refresh()
            features = trainer.learner.encoder.encode(batch)
            expected = trainer.learner.predict(features, replica.mixture.weights)
            found = replica.served.logits(replica.served.experts(features))
            np.testing.assert_allclose(found, expected, atol=5e-5)
    assert cuts and trainer.learner.branches.sparsity_by_layer()["embedding"] > 0
    assert replica.evaluation.total.normalized_entropy < 1.05


@pytest.mark.parametrize(
    "pruning",
    [
        *({"policy": name} for name in ("adaptive", "adaptive-live", "periodic", "magnitude")),
        {"budget": "auto"},
    ],
)
def test_a_restored_trainer_continues_bit_for_bit_from_every_phase(pruning):
    events = EventBatch.concat([click_events(2560), click_events(2560, seed=1, flipped=True)])
    assert_restored_trainers_continue_bit_for_bit(
        events, lambda start: start % 1600 == 1216, **pruning, table_budget=0.5
    )


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.5), (0.5, 1.0)])
def test_a_restart_in_the_middle_of_a_pruning_may_have_another_budget_for_the_tables(before, after):
    trainer, second = small_trainer(table_budget=before), small_trainer(table_budget=after)
    run(trainer, click_events(1280))
    assert trainer.policy.phase == "pruning"
    second.restore(*trainer.state())
    run(second, click_events(1280, seed=1))
    assert second.policy.phase == "sparse"
    assert second.learner.table_ratio <= after
    assert (second.learner.table_ratio == 1) == (after == 1)


@pytest.mark.parametrize(("precision", "width"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_a_checkpoint_has_the_bytes_of_the_columns_alive_and_predicts_what_the_trainer_does(
    precision, width
):
    trainer = small_trainer(table_budget=0.5, policy="static")
    replica = trainer.add_replica(640, precision)
    run(trainer, click_events(2560))
    full = pack(*replica.checkpoint(trainer.status(), **ABOUT))
    replica.refresh()
    run(trainer, click_events(128, seed=3))
    delta = pack(
        *replica.checkpoint(trainer.status(), **ABOUT | {"version": 2, "parent": 1}, base=1)
    )
    headers = []
    for data in (full, delta):
        header, tensors = unpack(data)
        headers.append(header)
        _, stored = unpack_as(data, Header)
        alive_F = header.shape.alive_FD().sum(1)
        count = int(alive_F[tensors["embedding.rows"] // SMALL.table_rows].sum())
        assert (
            0
            < stored["embedding.values"].numpy().nbytes
            == width * count
            < width * 4 * len(tensors["embedding.rows"])
        )
        assert data[6:8] == b"\x03\x00"
    assert [header.base for header in headers] == [0, 1]
    replica.refresh()
    served = PublishedModel.from_checkpoint(*unpack(full))
    served = PublishedModel.after([unpack(delta)], served.frame, served.tables, served)
    batch = click_events(500, seed=9)
    logits = torch.from_numpy(
        trainer.learner.predict(trainer.learner.encoder.encode(batch), replica.mixture.weights)
    )
    atol = {"float32": 1e-6, "float16": 1e-3, "int8": 1e-2}[precision]
    np.testing.assert_allclose(served.predict(batch), logits.sigmoid().numpy(), atol=atol)
    assert np.array_equal(replica.served.predict(batch), served.predict(batch))


def test_where_all_columns_live_a_checkpoint_names_none():
    trainer = small_trainer()
    run(trainer, click_events(2560))
    data = pack(*trainer.add_replica(640).checkpoint(trainer.status(), **ABOUT))
    assert data[6:8] == b"\x03\x00" and b'"columns"' not in data
    assert (
        trainer.learner.table_ratio == 1
        and "embedding" not in trainer.learner.branches.sparsity_by_layer()
    )


def test_other_columns_are_published_in_full_and_refused_as_a_delta():
    trainer = small_trainer(table_budget=0.5, policy="static")
    replica = trainer.add_replica(640)
    run(trainer, click_events(1024))
    first, _ = replica.checkpoint(trainer.status(), **ABOUT)
    replica.refresh()
    run(trainer, click_events(1024, seed=1))
    second, _ = replica.checkpoint(trainer.status(), **ABOUT | {"version": 2, "parent": 1}, base=1)
    assert first.shape.columns is None and second.shape.columns and second.base == 0
    with pytest.raises(CheckpointError, match="another choice of columns than version 1"):
        msgspec.structs.replace(second, base=1).check_follows(first)


@pytest.mark.parametrize("columns", [[3, 3], [4, 2], [-1, 2], [0, 12]])
def test_a_checkpoint_that_names_columns_which_are_not_there_is_refused(columns):
    publisher = Publisher(prunes_tables=True)
    publisher.prune()
    header, data = publisher.checkpoint(1)
    told = msgspec.json.encode(list(header.shape.columns))
    assert data.count(told) == 1
    text = msgspec.json.encode(header).replace(told, msgspec.json.encode(columns))
    with pytest.raises(msgspec.ValidationError, match="columns: must ascend"):
        msgspec.json.decode(text, type=Header)
    assert unpack(data)[0] == header


def test_a_budget_for_the_tables_is_refused_where_the_policy_never_prunes_them():
    for policy in ("small", "rigl"):
        with pytest.raises(
            ValueError, match=f"table_budget: must be 1 for the policy {policy}, got 0.5"
        ):
            PruningConfig(policy=policy, table_budget=0.5)


def test_a_model_without_embeddings_has_no_columns_to_prune():
    trainer_config = msgspec.structs.replace(SMALL, embedding_dim=0)
    learner = Learner(SCHEMA, trainer_config, prunes_tables=True)
    learn(learner, click_events(500))
    learner.branches.prune()
    learn(learner, click_events(500, seed=1), 0.4, 0.5)
    learner.branches.cut()
    assert isinstance(learner.branches.masks, MaskSet | None) and learner.table_ratio == 0
    assert "embedding" not in learner.branches.sparsity_by_layer()
