"""Lists, histories, rates, weights and sampling ratios from a topic to a scorer, across a crash and
a change of the schema."""

import dataclasses

import msgspec
import numpy as np
import pytest

from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.schema import EventBatch, History
from niwaki.serving.scorer import Scorer
from niwaki.serving.store import CheckpointStore
from niwaki.stream.events.encoders import encode_arrow
from niwaki.stream.recordings.writing import batch_to_table
from niwaki.stream.training.observers import StepCallback
from tests.support import pipelines
from tests.support.pipelines import (
    Running,
    assert_same,
    json_messages,
    never,
    produce,
    uninterrupted,
)
from tests.support.streams import LISTS, list_events

# A fixture, in the place of one that the other tests of pipelines have.
setting = pipelines.setting

SCHEMA = msgspec.structs.replace(
    LISTS,
    histories=(History(name="liked", of="item", by="user"),),
    rates=("item", ("user", "item")),
    weight="w",
    sampling_ratio="kept",
    max_keys=1_000,
)


class Crash(Exception):
    """The trainer's process dies."""


def events(count: int, seed: int = 0) -> EventBatch:
    rng, batch = np.random.default_rng(seed), list_events(count, seed=seed)
    return dataclasses.replace(
        batch,
        times_s_B=1_700_000_000 + rng.integers(0, 2, count).cumsum().astype(float),
        weights_B=rng.choice([0.5, 1.0, 2.0], count).astype(np.float32),
        sampling_B=rng.choice([0.5, 1.0], count).astype(np.float32),
    )


def requests(batch: EventBatch) -> list[dict[str, object]]:
    """The events as a client sends them: without labels, weights and histories."""
    table = batch_to_table(batch, SCHEMA).drop_columns(["label", "w", "kept"])
    return [
        {name: dict(value) if name == "tags" and value else value for name, value in row.items()}
        for row in table.to_pylist()
    ]


@pytest.mark.parametrize(("arrow", "reader"), [(False, "inline"), (True, "process")])
def test_a_trainer_of_lists_that_dies_ends_where_one_that_lived_does_and_a_scorer_agrees(
    setting, arrow, reader
):
    kafka, store, directory = setting
    setting = msgspec.structs.replace(kafka, reader=reader), store, directory
    batch = events(3_000)
    table = batch_to_table(batch, SCHEMA)
    produce(kafka, encode_arrow(table, 150) if arrow else json_messages(batch, SCHEMA))

    with Running(*setting, schema=SCHEMA) as first:
        first.pipeline.run(never, limit_events=1_024)

    def die(step):
        if second.trainer.events >= 1_800:
            raise Crash

    with Running(*setting, schema=SCHEMA, observers=[StepCallback(die)]) as second:
        with pytest.raises(Crash):
            second.pipeline.run(never)
    with Running(*setting, schema=SCHEMA) as third:
        third.pipeline.run(never, limit_events=3_000)
        assert_same(third.trainer, uninterrupted(batch, third.pipeline.replica, SCHEMA))
        assert third.trainer.prequential.unweighted.events == 3_000
        test = events(200, seed=9)
        with CheckpointStore(store) as read, Scorer(read) as scorer:
            scorer.refresh()
            served = third.pipeline.replica.served
            asked = rows_to_batch(requests(test), SCHEMA)
            expected_B = served.predict(asked)
            found_B = scorer.score(requests(test))
    np.testing.assert_allclose(found_B, expected_B, atol=1e-6)
    assert np.std(found_B) > 0.01


def test_a_scorer_follows_a_trainer_whose_schema_has_changed(setting):
    kafka, store, _ = setting
    old = LISTS
    new = msgspec.structs.replace(
        old, lists=("history",), categorical=("user", "item"), numeric=("age", "price"), shares={}
    )
    first, second = list_events(512), list_events(512, seed=1)
    request = {"user": "u1", "item": "i1", "history": ["i2"], "age": 0.5}
    produce(kafka, json_messages(first, old))
    with Running(*setting, schema=old) as before:
        before.pipeline.run(never, limit_events=512)
    with CheckpointStore(store) as read, Scorer(read) as scorer:
        scorer.refresh()
        assert scorer.score([request | {"tags": ["t1"], "last": "i3"}]).shape == (1,)
        rows = dataclasses.replace(
            second,
            categorical=second.categorical[:2],
            numerics_BN=np.repeat(second.numerics_BN, 2, 1),
            lists=second.lists[:1],
        )
        produce(kafka, json_messages(rows, new))
        with Running(*setting, schema=new) as after:
            assert after.trainer.events == 512
            after.pipeline.run(never, limit_events=1_024)
            assert after.trainer.events == 1_024
        scorer.refresh()
        with_it, without = scorer.score([request | {"price": 3.0}, request])
    assert np.isfinite([with_it, without]).all()
    assert scorer.model.header.schema == new
