"""Ages: how long ago a value was first seen, the same for a learner, a snapshot and whatever was
published."""

import math

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import torch

from niwaki.model.features.ages import Ages
from niwaki.model.features.encoder import Encoder
from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.published.checkpoint import pack, unpack
from niwaki.model.published.served import PublishedModel
from niwaki.pruning.config import PruningConfig
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig
from tests.support.streams import SMALL, differing

SCHEMA = Schema(categorical=("user", "item"), numeric=("price",), time_features=("age:item",))


def fading_items(count: int, seed: int = 0) -> EventBatch:
    """An event a second, a new item every ten of them; an item is clicked while it is younger than
    five minutes."""
    rng, at = np.random.default_rng(seed), np.arange(count)
    item = np.maximum(at // 10 - rng.integers(0, 100, count), 0)
    labels = (rng.random(count) < np.where(at - item * 10 < 300, 0.9, 0.1)).astype(np.float32)
    columns = [
        pa.array([f"{name}{i}" for i in ids])
        for name, ids in (("u", rng.integers(0, 20, count)), ("i", item))
    ]
    return EventBatch(
        labels, 1e9 + at, tuple(columns), rng.normal(size=(count, 1)).astype(np.float32)
    )


def trainer(schema: Schema = SCHEMA) -> Trainer:
    training = TrainingConfig(batch_events=64, publish_every_events=512, table_precision="float32")
    return Trainer(
        TrainerConfig(
            schema=schema,
            model=SMALL,
            pruning=PruningConfig(policy="dense"),
            drift=DriftConfig(detectors=()),
            training=training,
        )
    )


def learn(trainer: Trainer, events: EventBatch) -> None:
    for start in range(0, len(events), 64):
        trainer.step(events.slice(start, min(start + 64, len(events))))


def test_an_age_counts_from_when_a_value_was_first_seen_and_is_missing_without_value_or_time():
    schema = Schema(categorical=("user", "item"), time_features=("age:item", "age:user"))
    encoder, ages = Encoder(schema, rows=1000), Ages(schema, 1000)

    def now(user: str | None, item: str | None, ts: int | None) -> list[float]:
        features = ages.complete(
            encoder.encode(rows_to_batch([{"user": user, "item": item, "ts": ts}], schema))
        )
        ages.see(features)
        return features.numerics_BN[0].tolist()

    assert now("a", "x", 10_000) == [0, 0]
    assert now("a", "y", 12_000) == [0, pytest.approx(math.log1p(2))]
    assert now("b", "x", 17_000) == [pytest.approx(math.log1p(7)), 0]
    assert now("b", "x", 9_000) == [0, 0]
    assert np.isnan(now("a", None, 12_000)).tolist() == [True, False]
    assert np.isnan(now("a", "x", None)).all()


def test_within_a_batch_the_first_event_of_a_value_is_what_counts():
    encoder, ages = Encoder(SCHEMA, rows=1000), Ages(SCHEMA, 1000)
    rows = [
        {"user": "u", "item": item, "ts": ts}
        for item, ts in (("x", 5000), ("y", 6000), ("x", 3000), ("y", 9000))
    ]
    hashed = encoder.encode(rows_to_batch(rows, SCHEMA))
    ages.see(ages.complete(hashed))
    later = hashed._replace(times_s_B=torch.full((4,), 10.0, dtype=torch.float64))
    assert ages.complete(later).numerics_BN[:, 1].expm1().tolist() == pytest.approx([5, 4, 5, 4])


def test_a_full_checkpoint_and_a_delta_after_it_predict_as_the_learner_does():
    learned, unseen = trainer(), fading_items(4096, seed=1)
    replica = learned.add_replica(1024)
    learn(learned, fading_items(1024))
    header, tensors = replica.checkpoint(
        learned.status(), version=1, parent=0, offsets={}, created_s=0.0
    )
    model = PublishedModel.from_checkpoint(*unpack(pack(header, tensors)))
    replica.refresh()
    learn(learned, fading_items(2048).slice(1024, 2048))
    changes = replica.checkpoint(
        learned.status(), version=2, parent=1, base=1, offsets={}, created_s=0.0
    )
    assert 0 < len(changes[1]["age.rows"]) < len(learned.learner.memory.export({})["age.rows"])
    model = PublishedModel.after([unpack(pack(*changes))], model.frame, model.tables, model)
    expected = learned.learner.predict(
        learned.learner.encoder.encode(unseen), replica.mixture.weights
    )
    assert model.logits(model.experts(model.encoder.encode(unseen))) == pytest.approx(
        expected, abs=1e-4
    )


def test_a_restored_trainer_knows_what_it_has_seen():
    first, second, events = trainer(), trainer(), fading_items(1024)
    learn(first, events.slice(0, 512))
    second.restore(*first.state())
    for one in (first, second):
        learn(one, events.slice(512, 1024))
    assert differing(first.state()[1], second.state()[1]) == []


def test_where_clicks_depend_on_it_an_age_is_worth_having():
    entropy = {}
    for schema in (SCHEMA, msgspec.structs.replace(SCHEMA, time_features=())):
        learned = trainer(schema)
        learn(learned, fading_items(6000))
        entropy[schema.time_features] = learned.prequential.total.normalized_entropy
    assert entropy[SCHEMA.time_features] < 0.9 * entropy[()]


def test_a_first_sight_of_before_the_stream_began_anew_years_earlier_is_forgotten():
    ages, rows = Ages(SCHEMA, 16), Encoder(SCHEMA, rows=16)
    batch = fading_items(2)
    item = tuple(pa.array(["one", "one"]) for _ in batch.categorical)
    earlier_s = 1e9 - 365 * 86_400.0
    for first_s, expected in ((1e9, 0.0), (earlier_s, 0.0), (earlier_s + 60, math.log1p(60))):
        hashed = rows.encode(
            EventBatch(batch.labels_B, np.full(2, first_s), item, batch.numerics_BN)
        )
        features = ages.complete(hashed)
        assert features.numerics_BN[0, -1] == pytest.approx(expected)
        ages.see(features)
