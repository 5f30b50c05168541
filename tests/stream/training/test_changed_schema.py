"""A trainer that goes on with a model of another schema."""

import dataclasses
import logging
from functools import cache

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import LIST, EventBatch, History, Schema
from niwaki.model.learner import Learner
from niwaki.pruning.config import PruningConfig
from niwaki.stream.errors import ConfigError
from niwaki.stream.kafka.reader import Positions
from niwaki.stream.training.changed_schema import adapted
from niwaki.stream.training.snapshots.contents import Place, load_snapshot, save_snapshot
from niwaki.stream.training.snapshots.files import SnapshotConfig
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig
from tests.support.streams import SMALL, differing

# Room enough in the table of pairs, so that few pairs meet.
MODEL = msgspec.structs.replace(SMALL, pair_rows=2**20)
OLD = Schema(categorical=("user", "item"), numeric=("age",))
CHANGES = {
    "a categorical column": {"categorical": ("device", "user", "item")},
    "a numeric column": {"numeric": ("price", "age")},
    "a list": {"lists": ("tags",)},
    "a list that shares": {"lists": ("tags",), "shares": {"tags": "item"}},
    "a cross": {"crosses": (("user", "item"),)},
    "ages and hours": {"time_features": ("hour", "age:item")},
    "a history": {"histories": (History(name="liked", of="item", by="user"),)},
    "rates": {"rates": ("item", ("user", "item"))},
    "all": {
        "categorical": ("device", "user", "item"),
        "numeric": ("price", "age"),
        "lists": ("tags",),
        "histories": (History(name="liked", of="item", by="user"),),
        "rates": ("user",),
        "time_features": ("age:device",),
    },
}


def changed(name: str) -> Schema:
    return msgspec.structs.replace(OLD, **CHANGES[name])


def events(count: int, schema: Schema, seed: int = 0) -> EventBatch:
    """The same events, whichever columns the schema has of them."""
    rng, taste = np.random.default_rng(seed), np.random.default_rng(7).normal(size=(30, 3))
    users, items = rng.integers(0, 30, count), rng.integers(0, 30, count)
    columns = {
        "user": pa.array([f"u{one}" for one in users]),
        "item": pa.array([f"i{one}" for one in items]),
        "device": pa.array([f"d{one}" for one in rng.integers(0, 4, count)]),
        "age": rng.normal(size=count),
        "price": rng.normal(size=count),
        "tags": pa.array([[(f"i{(one + 1) % 30}", 1.0)] for one in items], LIST),
    }
    score = 3 * (taste[users] * taste[items]).sum(1) + columns["age"]
    return EventBatch(
        (rng.random(count) < 1 / (1 + np.exp(-score))).astype(np.float32),
        1_700_000_000 + np.arange(count) * 0.5,
        tuple(columns[name] for name in schema.categorical),
        np.array([columns[name] for name in schema.numeric], np.float32)
        .T.reshape(count, -1)
        .copy(),
        tuple(columns[name] for name in schema.lists),
    )


def learn(learner: Learner, batch: EventBatch, *ratios: float) -> None:
    for start in range(0, len(batch), 64):
        part = batch.slice(start, start + 64)
        learner.learn(learner.encoder.encode(part), Outcomes.of(part), *ratios)


def learned(schema: Schema, phase: str = "dense") -> Learner:
    learner = Learner(schema, MODEL, prunes_tables=True)
    learn(learner, events(600, schema))
    if phase != "dense":
        learner.branches.prune(beside_reference=True)
        learn(learner, events(300, schema, 1), 0.4, 0.6)
    if phase in ("sparse", "regrown"):
        learner.branches.cut()
        learn(learner, events(128, schema, 2))
    if phase == "regrown":
        learner.branches.regrow()
        learn(learner, events(128, schema, 3))
    return learner


@cache
def old_learner(phase: str) -> Learner:
    """One of the old schema, which no test may change."""
    return learned(OLD, phase)


def moved(learner: Learner, schema: Schema) -> Learner:
    other = Learner(schema, MODEL, prunes_tables=True)
    state, tensors = learner.state()
    other.restore(state, adapted(tensors, learner.schema, other))
    return other


def predicted(learner: Learner, seed: int = 9) -> np.ndarray:
    return learner.predict(learner.encoder.encode(events(300, learner.schema, seed)))


@pytest.mark.parametrize("phase", ["dense", "pruning", "sparse", "regrown"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_new_column_changes_no_prediction_at_the_seam_and_is_learned_from_then_on(change, phase):
    before = old_learner(phase)
    after = moved(before, changed(change))
    np.testing.assert_allclose(predicted(after), predicted(before), atol=1e-6)
    assert after.events == before.events
    learn(after, events(300, after.schema, 4), *((0.4, 0.6) if phase == "pruning" else ()))
    assert np.isfinite(predicted(after)).all()
    fields = set(after.schema.fields) - set(before.schema.fields)
    rows = after.linear.touched().numpy()
    known = {
        after.schema.fields[row // MODEL.table_rows]
        for row in rows[rows < after.slots.places.first_pair]
    }
    assert fields <= known


@pytest.mark.parametrize("phase", ["dense", "sparse"])
@pytest.mark.parametrize("change", [name for name in CHANGES if name != "a list that shares"])
def test_a_column_that_is_added_and_taken_away_again_leaves_all_as_it_was(change, phase):
    before = old_learner(phase)
    again = moved(moved(before, changed(change)), OLD)
    names = differing(before.state()[1], again.state()[1])
    # Units of the network keep their number and order, and so do all of their weights. Inputs of
    # earlier events have lost their meaning.
    assert [name for name in names if not name.startswith("replay.")] == []
    assert not len(again.state()[1]["replay.inputs"])


def test_a_column_that_is_gone_leaves_the_others_as_they_were():
    before = learned(changed("all"))
    after = moved(before, OLD)
    for name in ("user", "item"):
        old, new = before.schema.fields.index(name), OLD.fields.index(name)
        rows = slice(old * MODEL.table_rows, (old + 1) * MODEL.table_rows)
        to = slice(new * MODEL.table_rows, (new + 1) * MODEL.table_rows)
        np.testing.assert_array_equal(
            after.tables.weight_RD[to].numpy(), before.tables.weight_RD[rows].numpy()
        )
    learn(after, events(600, OLD, 4))
    assert np.isfinite(predicted(after)).all()


def test_a_column_that_becomes_a_list_keeps_what_was_learned_of_its_values():
    model = msgspec.structs.replace(MODEL, pair_rows=0)
    old = Schema(categorical=("user", "tags"), numeric=("age",))
    new = Schema(categorical=("user",), lists=("tags",), numeric=("age",))
    batch = events(1_500, Schema(categorical=("user",), numeric=("age",), lists=("tags",)))
    values = pa.array([one[0][0] for one in batch.lists[0].to_pylist()])
    single = dataclasses.replace(batch, categorical=(*batch.categorical, values), lists=())
    before, after = Learner(old, model), Learner(new, model)
    learn(before, single)
    state, tensors = before.state()
    after.restore(state, adapted(tensors, old, after))
    found = after.predict(after.encoder.encode(batch))
    expected = before.predict(before.encoder.encode(single))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(st.data())
@settings(deadline=None, max_examples=10)
def test_any_change_goes_on_with_finite_predictions(data):
    columns = data.draw(st.permutations(["user", "item", "device"]))
    count = data.draw(st.integers(1, 3))
    numeric = data.draw(st.sampled_from([(), ("age",), ("price", "age")]))
    lists = data.draw(st.sampled_from([(), ("tags",)]))
    first = Schema(categorical=tuple(columns[:count]), numeric=numeric, lists=lists)
    other = data.draw(st.sampled_from([OLD, changed("all"), changed("a list that shares")]))
    after = moved(learned(first, data.draw(st.sampled_from(["dense", "sparse"]))), other)
    learn(after, events(200, other, 4))
    assert np.isfinite(predicted(after)).all()


def trainer_of(schema: Schema, **pruning) -> Trainer:
    return Trainer(
        TrainerConfig(
            schema=schema,
            model=MODEL,
            pruning=PruningConfig(policy="dense", **pruning),
            training=TrainingConfig(batch_events=64),
        )
    )


def saved(tmp_path, schema: Schema = OLD, **pruning) -> Trainer:
    trainer = trainer_of(schema, **pruning)
    replica = trainer.add_replica(64)
    for start in range(0, 1_280, 64):
        trainer.step(events(1_280, schema).slice(start, start + 64))
    replica.refresh()
    config = SnapshotConfig(directory=str(tmp_path))
    save_snapshot(config, trainer, replica, Place(topic="t", positions=Positions(), version=7))
    return trainer


def test_a_trainer_takes_the_snapshot_of_another_schema_over_and_says_so(tmp_path, caplog):
    before = saved(tmp_path)
    after = trainer_of(changed("all"))
    replica = after.add_replica(64)
    with caplog.at_level(logging.INFO, "niwaki"):
        header = load_snapshot(SnapshotConfig(directory=str(tmp_path)), after, replica, "t")
    assert header is not None and header.version == 7 and after.events == 1_280
    (told,) = (one.message for one in caplog.records if "schema has changed" in one.message)
    assert "device" in told and "liked" in told and "rate:user" in told
    np.testing.assert_allclose(predicted(after.learner), predicted(before.learner), atol=1e-6)
    assert replica.full_due  # scorers take a full checkpoint of another schema as any other
    step = after.step(events(64, changed("all"), 3))
    assert np.isfinite(step.losses_B).all()


@pytest.mark.parametrize(
    ("new", "pruning", "strict", "field"),
    [
        (changed("all"), {}, True, "schema"),
        (msgspec.structs.replace(OLD, label="bought"), {}, False, "schema.label"),
        (msgspec.structs.replace(OLD, timestamp="at"), {}, False, "schema.timestamp"),
        (changed("all"), {"unit": "block"}, False, "schema"),
    ],
)
def test_what_cannot_go_on_is_refused_with_the_way_on(new, pruning, strict, field, tmp_path):
    saved(tmp_path, **pruning)
    after = trainer_of(new, **pruning)
    config = SnapshotConfig(directory=str(tmp_path), strict_schema=strict)
    with pytest.raises(ConfigError, match="move .* away") as raised:
        load_snapshot(config, after, after.add_replica(64), "t")
    assert raised.value.field == field
