"""A learner of events with lists, and what is published of it."""

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import torch

from niwaki.model.deep.embeddings import Embedded
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import LIST, EventBatch, Schema
from niwaki.model.learner import Learner
from tests.support.streams import LISTS, SMALL, differing, list_events
from tests.support.trainers import learn_all

LINEAR = msgspec.structs.replace(SMALL, network_rate=0.0, pair_rows=0)


def as_lists(batch: EventBatch, column: int) -> tuple[pa.Array, ...]:
    values = batch.categorical[column].to_pylist()
    return (pa.array([None if one is None else [(one, 1.0)] for one in values], LIST),)


def test_the_linear_expert_learns_lists_of_one_value_as_it_learns_a_column():
    batch = list_events(2_000)
    plain = Learner(Schema(categorical=("user", "last"), timestamp="ts"), LINEAR)
    listed = Learner(Schema(categorical=("user",), lists=("last",), timestamp="ts"), LINEAR)
    nothing = np.empty((2_000, 0), np.float32)
    seen = batch.labels_B, batch.times_s_B
    one = EventBatch(*seen, batch.categorical[::2], nothing)
    other = EventBatch(*seen, batch.categorical[:1], nothing, as_lists(batch, 2))
    # The prior variance of a list begins where that of a column does.
    first, second = learn_all(plain, one), learn_all(listed, other)
    assert second.log_loss == pytest.approx(first.log_loss, rel=1e-6)
    np.testing.assert_allclose(
        listed.predict(listed.encoder.encode(other)),
        plain.predict(plain.encoder.encode(one)),
        atol=1e-5,
    )


def test_a_list_contributes_the_mean_of_what_its_values_do():
    learner, batch = Learner(LISTS, SMALL), list_events(1_000)
    learn_all(learner, batch)
    hashed = learner.encoder.encode(batch)
    inputs = learner._assemble(learner.ages.complete(hashed))
    evidence_R2K, prior_SK = learner.linear.evidence_R2K.numpy(), learner.linear.prior_SK().numpy()
    for place, rows in enumerate(hashed.lists):
        slot = learner.slots.single + place
        b_V, q_V = evidence_R2K[rows.rows_V, :, 0].T
        each_V = b_V / (prior_SK[slot, 0] + q_V) * rows.shares_V
        expected_B = np.add.reduceat(each_V, rows.offsets[:-1])
        found_B = inputs.contributions_BS[:, slot].numpy()
        np.testing.assert_allclose(found_B, expected_B, atol=1e-6)
    embedded = Embedded.of(learner.ages.complete(hashed))
    vectors_BFD = learner.tables.vectors(embedded).numpy()
    table_RD = learner.tables.weight_RD.numpy()
    for field, rows in enumerate(hashed.lists, len(LISTS.single_fields)):
        weighed_VD = table_RD[rows.embedded_V] * rows.shares_V[:, None]
        expected_BD = np.add.reduceat(weighed_VD, rows.offsets[:-1], 0)
        np.testing.assert_allclose(vectors_BFD[:, field], expected_BD, atol=1e-6)


def test_a_list_whose_column_is_shared_learns_the_rows_of_that_column():
    learner, batch = Learner(LISTS, SMALL), list_events(1_000)
    learn_all(learner, batch)
    fields_U = learner.tables.touched().numpy() // SMALL.table_rows
    names = {LISTS.fields[field] for field in fields_U}
    assert names == {"user", "item", "tags"}  # history and last have none of their own


def test_the_gradient_of_a_list_s_values_is_that_of_the_loss():
    """One step moves each row against the slope of the loss, measured by small changes of it."""
    learner, batch = Learner(LISTS, SMALL), list_events(400)
    learn_all(learner, batch)
    part = batch.slice(0, 8)
    hashed, outcomes = learner.encoder.encode(part), Outcomes.of(part)
    rows = np.unique(hashed.lists[1].embedded_V)
    passes, masks = learner.branches.served_branch.passes, None
    inputs = learner._assemble(learner.ages.complete(hashed))
    read = inputs.embedded, inputs.numerics_BM, inputs.contributions_BS

    def loss() -> float:
        corrections_B = passes.forward(learner.tables.weight_RD.numpy(), *read, masks)
        logits_B = (inputs.linear_BK[:, 0] + corrections_B).double().numpy()
        return float((np.logaddexp(0, logits_B) - outcomes.labels_B * logits_B).sum())

    loss()
    corrections_B = passes.forward(learner.tables.weight_RD.numpy(), *read, masks)
    probability_B = (inputs.linear_BK[:, 0] + corrections_B).sigmoid()
    gradient_BVD = (
        passes.backward(probability_B - torch.from_numpy(outcomes.labels_B)).clone().numpy()
    )
    field = len(LISTS.single_fields) + 1
    for row in rows[:6]:
        expected_D = np.zeros(SMALL.embedding_dim)
        flat = hashed.lists[1]
        for b in range(8):
            for v in range(flat.offsets[b], flat.offsets[b + 1]):
                if flat.embedded_V[v] == row:
                    expected_D += flat.shares_V[v] * gradient_BVD[b, field]
        for d in range(SMALL.embedding_dim):
            before = learner.tables.weight_RD[row, d].item()
            learner.tables.weight_RD[row, d] = before + 0.01
            up = loss()
            learner.tables.weight_RD[row, d] = before - 0.01
            down = loss()
            learner.tables.weight_RD[row, d] = before
            assert (up - down) / 0.02 == pytest.approx(expected_D[d], abs=0.02)


def test_lists_make_predictions_better_where_clicks_follow_them():
    without = Schema(categorical=("user", "item"), numeric=("age",))
    batch = list_events(12_000)
    blind = EventBatch(batch.labels_B, batch.times_s_B, batch.categorical[:2], batch.numerics_BN)
    seen = learn_all(Learner(LISTS, SMALL), batch).normalized_entropy
    assert seen < learn_all(Learner(without, SMALL), blind).normalized_entropy - 0.02


def test_a_restored_learner_of_lists_goes_on_bit_for_bit():
    first, second, batch = Learner(LISTS, SMALL), Learner(LISTS, SMALL), list_events(1_500)
    learn_all(first, batch.slice(0, 1_000))
    second.restore(*first.state())
    for learner in (first, second):
        learn_all(learner, batch.slice(1_000, 1_500))
    assert differing(first.state()[1], second.state()[1]) == []
