"""Histories and rates as inputs of the model: while it learns, when it is restored, and as scorers
have them."""

import math

import numpy as np
import pytest

from niwaki.model.features.encoder import Features
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import EventBatch, History, Schema
from niwaki.model.learner import Learner
from niwaki.model.published.served import PublishedModel
from niwaki.pruning.errors import RuleError
from tests.model.published.test_lists_published import logits, published
from tests.support.streams import SMALL, click_events, differing
from tests.support.trainers import learn_all

SCHEMA = Schema(
    categorical=("user", "item", "noise"),
    numeric=("age", "price"),
    histories=(
        History(name="liked", of="item", by="user", last=5),
        History(name="seen", of="noise", by="user", where="all", last=3),
    ),
    rates=("item", ("user", "noise")),
    rate_half_life_s=100.0,
    time_features=("age:item",),
    max_keys=500,
)


def in_groups(count: int, seed: int = 0) -> EventBatch:
    """Events of which some have the same time."""
    batch = click_events(count, seed=seed)
    batch.times_s_B[:] = 1_700_000_000 + np.random.default_rng(seed).integers(0, 2, count).cumsum()
    return batch


def recomputed(batch: EventBatch):
    """For each event, from all events before it with a smaller time: what its user liked, and
    clicks and events of its item, which fade."""
    users, items, _ = (column.to_pylist() for column in batch.categorical)
    liked, counts = [], []
    for b in range(len(batch)):
        before = [a for a in range(b) if batch.times_s_B[a] < batch.times_s_B[b]]
        own = [a for a in before if users[a] == users[b] and batch.labels_B[a] >= 0.5]
        liked.append([items[a] for a in own][-5:])
        fades = [
            [0.5 ** ((batch.times_s_B[b] - batch.times_s_B[a]) / 100), batch.labels_B[a], items[a]]
            for a in before
        ]

        def total(fades, of=None):
            return np.array(
                [(f, f * label) for f, label, item in fades if of in (None, item)] or [(0.0, 0.0)]
            ).sum(0)

        everything, mine = total(fades), total(fades, items[b])
        prior = (everything[1] + 0.5) / (everything[0] + 1)
        odds = (mine[1] + 10 * prior) / (mine[0] - mine[1] + 10 * (1 - prior))
        counts.append((math.log(odds), math.log1p(mine[0])))
    return liked, counts


@pytest.mark.parametrize("batch_events", [1, 7, 64, 500])
def test_every_event_is_learned_with_what_a_plain_recomputation_finds(batch_events, monkeypatch):
    batch, learner = in_groups(500), Learner(SCHEMA, SMALL)
    seen: list[Features] = []
    learn = learner.memory.learn
    monkeypatch.setattr(
        learner.memory, "learn", lambda *given: (seen.append(learn(*given)), seen[-1])[1]
    )
    learn_all(learner, batch, batch_events)
    liked, counts = recomputed(batch)
    items = {
        name: row
        for name, row in zip(
            batch.categorical[1].to_pylist(),
            learner.encoder.encode(batch).rows_BF[:, 1].tolist(),
            strict=True,
        )
    }
    found = [
        rows.embedded_V[rows.offsets[b] : rows.offsets[b + 1]].tolist()
        for features, _ in seen
        for rows in features.lists[:1]
        for b in range(len(features.rows_BF))
    ]
    empty = SMALL.table_rows + learner.encoder.empty_rows_L[0]
    assert found == [[items[name] for name in names] or [empty] for names in liked]
    numerics_BN = np.concatenate([features.numerics_BN.numpy() for features, _ in seen])
    place = SCHEMA.numerics.index("rate:item")
    np.testing.assert_allclose(numerics_BN[:, place : place + 2], counts, rtol=1e-4, atol=1e-5)


def test_a_restored_learner_goes_on_with_its_memory_bit_for_bit():
    first, second, batch = Learner(SCHEMA, SMALL), Learner(SCHEMA, SMALL), in_groups(3_000)
    learn_all(first, batch.slice(0, 2_000))
    second.restore(*first.state())
    for learner in (first, second):
        learn_all(learner, batch.slice(2_000, 3_000))
    assert differing(first.state()[1], second.state()[1]) == []


def test_a_scorer_needs_no_history_in_a_request_and_predicts_as_the_learner_does():
    learner, test = Learner(SCHEMA, SMALL), in_groups(300, seed=9)
    test.times_s_B[::2] = 0  # requests without a time are after all that is known
    changes = learner.track_dirty_rows()
    learn_all(learner, in_groups(2_000))
    model = PublishedModel.from_checkpoint(*published(learner, 1))
    changes.clear(learner.events)
    for version in (2, 3, 4):
        expected_B = learner.predict(learner.encoder.encode(test))
        np.testing.assert_allclose(logits(model, test), expected_B, atol=1e-6)
        learn_all(learner, in_groups(700, seed=version))
        delta = published(learner, version, 1, changes.rows())
        changes.clear(learner.events)
        model = PublishedModel.after([delta], model.frame, model.tables, model)
    whole = PublishedModel.from_checkpoint(*published(learner, 5))
    np.testing.assert_array_equal(logits(whole, test), logits(model, test))


def test_a_history_reads_the_embeddings_of_its_column_and_has_rows_of_its_own_otherwise():
    learner = Learner(SCHEMA, SMALL)
    learn_all(learner, in_groups(1_000))
    fields = {SCHEMA.fields[row // SMALL.table_rows] for row in learner.tables.touched().tolist()}
    assert fields == {"user", "item", "noise"}
    linear = learner.linear.touched().numpy()
    own = linear[linear < len(SCHEMA.fields) * SMALL.table_rows] // SMALL.table_rows
    assert {SCHEMA.fields[field] for field in own} == set(SCHEMA.fields)


def test_weights_count_in_rates_and_sampled_events_for_those_left_out():
    batch, weighted, plain = in_groups(400), Learner(SCHEMA, SMALL), Learner(SCHEMA, SMALL)
    twos_B = np.full(400, 2, np.float32)
    hashed = plain.encoder.encode(batch)
    plain.memory.learn(hashed, Outcomes.made(batch.labels_B))
    weighted.memory.learn(hashed, Outcomes.made(batch.labels_B, twos_B))
    place = SCHEMA.numerics.index("evidence:item")
    one, two = (
        learner.memory.complete(hashed).numerics_BN[:, place].expm1()
        for learner in (plain, weighted)
    )
    np.testing.assert_allclose(two, 2 * one, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"histories": (History(name="h", of="price", by="user"),)}, "histories"),
        ({"histories": (History(name="h", of="item", by="nobody"),)}, "histories"),
        ({"histories": (History(name="item", of="item", by="user"),)}, "histories"),
        ({"histories": (History(name="h", of="item", by="user", last=0),)}, "histories"),
        ({"rates": ("price",)}, "rates"),
        ({"rates": ("item", ("item",))}, "rates"),
        ({"rates": ("item",), "timestamp": None}, "rates"),
        ({"rate_half_life_s": 0}, "rate_half_life_s"),
        ({"max_keys": 0}, "max_keys"),
    ],
)
def test_settings_of_memory_that_cannot_be_used_are_named(changes, field):
    with pytest.raises(RuleError) as raised:
        Schema(categorical=("user", "item"), numeric=("price",), **changes)
    assert raised.value.field == field
