"""A further expert is registered, and nothing else is told: it is learned, snapshot, published and
served like the others, and whoever does not have it says so."""

import logging

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from niwaki.model import experts as registry
from niwaki.model.errors import CheckpointError
from niwaki.model.features.encoder import Features
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import EventBatch
from niwaki.model.learner import Learner
from niwaki.model.mixture.mixture import LOGIT_RANGE
from niwaki.model.published.checkpoint import pack, unpack
from niwaki.model.published.served import PublishedModel
from niwaki.pruning.errors import RuleError
from niwaki.serving.double_buffer import DoubleBuffer
from niwaki.serving.network_export import export
from niwaki.stream.errors import ConfigError
from niwaki.stream.kafka.reader import Positions
from niwaki.stream.training.served_replica import ServedReplica
from niwaki.stream.training.snapshots.contents import Place, load_snapshot, save_snapshot
from niwaki.stream.training.snapshots.files import SnapshotConfig
from niwaki.stream.training.trainer import Trainer
from tests.support import scorers
from tests.support.publisher import Publisher
from tests.support.streams import SCHEMA, SMALL, click_events, differing
from tests.support.trainers import learn_all, small_trainer

# Fixtures, in the place of those of the same names that all tests share.
store = scorers.store
scorer_of = scorers.scorer_of

SCALES = len(SMALL.half_lives_events)
WINDOW_EVENTS = 200


class LatestClicks:
    """The click rate of the last 200 events that share an event's first value, drawn to that of
    all 200."""

    name = "latest_clicks"

    def __init__(self, schema):
        assert schema == SCHEMA
        self._rows_W = np.full(WINDOW_EVENTS, -1)
        self._labels_W = np.zeros(WINDOW_EVENTS, np.float32)

    def contribute(self, features):
        same_BW = features.rows_BF[:, :1].numpy() == self._rows_W
        rate = (self._labels_W.sum() + 1) / (np.sum(self._rows_W >= 0) + 2)
        rate_B = (same_BW @ self._labels_W + 4 * rate) / (same_BW.sum(1) + 4)
        return np.log(rate_B / (1 - rate_B)).astype(np.float32)

    def learn(self, features, outcomes):
        rows_X = np.concatenate([self._rows_W, features.rows_BF[:, 0].numpy()])
        self._rows_W = rows_X[-WINDOW_EVENTS:]
        self._labels_W = np.concatenate([self._labels_W, outcomes.labels_B])[-WINDOW_EVENTS:]

    def state(self):
        arrays = {"window.first": self._rows_W, "window.labels": self._labels_W}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def restore(self, tensors):
        self._rows_W = tensors["window.first"].numpy().copy()
        self._labels_W = tensors["window.labels"].numpy().copy()


class LatestRate(LatestClicks):
    """The click rate of the last 200 events, whatever their values."""

    name = "latest_rate"

    def contribute(self, features):
        rate = (self._labels_W.sum() + 1) / (np.sum(self._rows_W >= 0) + 2)
        return np.full(len(features.rows_BF), np.log(rate / (1 - rate)), np.float32)


@pytest.fixture
def register(monkeypatch):
    """Makes its arguments the further experts of this program."""
    return lambda *kinds: monkeypatch.setattr(registry, "EXPERTS", kinds)


def in_bursts(seed: int) -> EventBatch:
    """Clicks that follow nothing but bursts, which are too short for the other experts."""
    rng, batch = np.random.default_rng(seed), click_events(4000, seed=seed)
    rate_B = np.where(np.arange(4000) // 400 % 2, 0.8, 0.2)
    batch.labels_B[:] = rng.random(4000) < rate_B
    return batch


def test_the_mixture_has_one_weight_more_for_each_further_expert(register):
    weights, columns, batch = [], [], click_events(64)
    for kinds in ((), (LatestClicks,), (LatestClicks, LatestRate)):
        register(*kinds)
        learner = Learner(SCHEMA, SMALL)
        weights.append(len(learner.mixture.weights))
        learned = learner.learn(learner.encoder.encode(batch), Outcomes.of(batch))
        columns.append(learned.experts_BE.shape[1])
    assert columns == [SCALES + 1, SCALES + 2, SCALES + 3]
    assert weights == [1 + count for count in columns]


@pytest.mark.parametrize(("events", "steps"), [(64, 1), (600, 3)])
def test_its_column_is_before_the_deep_one_and_holds_what_it_said_before_it_learned(
    register, events, steps
):
    register(LatestClicks)
    learner, twin = Learner(SCHEMA, SMALL), LatestClicks(SCHEMA)
    first = click_events(256, seed=9)  # the first events are learned in short steps
    learn_all(learner, first)
    twin.restore(learner.further[0].state())
    for seed in range(3):
        batch = click_events(events, seed=seed)
        hashed = learner.encoder.encode(batch)
        features = learner.memory.complete(hashed)
        said_B = learner.learn(hashed, Outcomes.of(batch)).experts_BE[:, SCALES]
        for place in np.array_split(np.arange(events), steps):
            part = Features(*(tensor[place] for tensor in features[:-1]))
            assert said_B[place].tolist() == twin.contribute(part).tolist()
            twin.learn(part, Outcomes.made(batch.labels_B[place]))
    assert len(np.unique(said_B)) > 10
    assert differing(twin.state(), learner.further[0].state()) == []


def test_what_it_says_enters_each_prediction_with_its_weight(register):
    register(LatestClicks)
    learner = Learner(SCHEMA, SMALL)
    learn_all(learner, click_events(2000))
    unseen = learner.encoder.encode(click_events(100, seed=1))
    said_B = learner.further[0].contribute(learner.memory.complete(unseen))
    weights = learner.mixture.weights
    without = weights.copy()
    without[1 + SCALES] = 0.0
    added_B = learner.predict(unseen) - learner.predict(unseen, without)
    expected_B = weights[1 + SCALES] * said_B.clip(-LOGIT_RANGE, LOGIT_RANGE)
    assert np.abs(expected_B).min() > 1e-4
    np.testing.assert_allclose(added_B, expected_B, atol=1e-5)


def test_where_it_alone_knows_something_it_gains_weight_and_predictions_gain_by_it(register):
    entropies = []
    for kinds in ((), (LatestClicks,)):
        register(*kinds)
        learner = Learner(SCHEMA, SMALL)
        at_first = learner.mixture.learned[1 + SCALES]
        learn_all(learner, in_bursts(0))
        entropies.append(learn_all(learner, in_bursts(1)).normalized_entropy)
    assert learner.mixture.learned[1 + SCALES] > 2 * at_first
    assert entropies[1] < entropies[0] - 0.015


def learn_and_serve(trainer: Trainer, replica: ServedReplica, events: EventBatch) -> None:
    for start in range(0, len(events), 64):
        if replica.due(trainer.step(events.slice(start, start + 64)).move):
            replica.refresh()


@pytest.mark.parametrize("middle", [1024, 2560])
def test_a_trainer_restored_from_a_snapshot_in_the_middle_continues_bit_for_bit(
    register, tmp_path, middle
):
    register(LatestClicks, LatestRate)
    events, config = click_events(4096), SnapshotConfig(directory=str(tmp_path))
    first, second = small_trainer(), small_trainer()
    served, also_served = first.add_replica(256), second.add_replica(256)
    learn_and_serve(first, served, events.slice(0, middle))
    save_snapshot(config, first, served, Place(topic="clicks", positions=Positions(), version=1))
    as_saved = {name: tensor.clone() for name, tensor in first.state()[1].items()}
    assert f"learner.expert.{LatestRate.name}.window.labels" in as_saved
    load_snapshot(config, second, also_served, "clicks")
    assert differing(second.state()[1], as_saved) == []
    for trainer, replica in ((first, served), (second, also_served)):
        learn_and_serve(trainer, replica, events.slice(middle, 4096))
    assert first.state()[0] == second.state()[0]
    assert differing(first.state()[1], second.state()[1]) == []
    assert differing(served.served.tensors(), also_served.served.tensors()) == []
    for name, array in served.state().items():
        assert np.array_equal(array, also_served.state()[name], equal_nan=True), name


@pytest.mark.parametrize(
    ("at_first", "later"),
    [((LatestClicks,), ()), ((), (LatestClicks,)), ((LatestClicks,), (LatestRate,))],
)
def test_a_snapshot_of_other_experts_stops_the_trainer_before_anything_is_restored(
    register, tmp_path, at_first, later
):
    register(*at_first)
    config, trainer = SnapshotConfig(directory=str(tmp_path)), small_trainer()
    trainer.step(click_events(64))
    save_snapshot(
        config,
        trainer,
        trainer.add_replica(256),
        Place(topic="clicks", positions=Positions(), version=1),
    )
    register(*later)
    other = small_trainer()
    before = {name: tensor.clone() for name, tensor in other.state()[1].items()}
    with pytest.raises(ConfigError, match=r"EXPERTS: \[.*\] in the snapshot, \[.*\] in") as refusal:
        load_snapshot(config, other, other.add_replica(256), "clicks")
    assert (refusal.value.field, "\n" in str(refusal.value)) == ("EXPERTS", False)
    assert differing(other.state()[1], before) == []


def test_scorers_of_a_full_checkpoint_and_deltas_predict_what_the_trainer_does(
    register, store, scorer_of
):
    register(LatestClicks)
    publisher, eager = Publisher(), scorer_of(store, follow=False)
    learner, said = publisher.learner, set()
    hashed = learner.encoder.encode(publisher.events)
    for version, base in ((1, 0), (2, 1), (3, 1), (4, 1)):
        assert store.publish(*publisher.checkpoint(version, base=base)) and eager.refresh()
        late = scorer_of(store, follow=False)
        assert late.refresh()
        said_B = learner.further[0].contribute(learner.memory.complete(hashed)).tolist()
        said.add(tuple(said_B))
        predicted_B = torch.from_numpy(learner.predict(hashed)).sigmoid().numpy()
        for scorer in (eager, late):
            assert scorer.version == version
            assert scorer.model.experts(hashed)[:, SCALES].tolist() == said_B
            probabilities_B = scorer.score_batch(publisher.events)
            assert probabilities_B.tolist() == publisher.answers[version]
            np.testing.assert_allclose(probabilities_B, predicted_B, atol=1e-6)
    assert len(said) == 4


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_what_is_published_predicts_to_the_bit_as_the_trainers_replica_through_every_phase(
    register, precision
):
    register(LatestClicks, LatestRate)
    trainer, versions, bases = small_trainer(), DoubleBuffer(), []
    replica, scored = trainer.add_replica(256, table_precision=precision), click_events(50, seed=9)
    learner, events = trainer.learner, click_events(4096)
    hashed = learner.encoder.encode(scored)
    for start in range(0, len(events), 64):
        if not replica.due(trainer.step(events.slice(start, start + 64)).move):
            continue
        version = len(bases) + 1
        base = 0 if replica.full_due else bases[-1] or version - 1
        about = {"version": version, "parent": version - 1, "base": base}
        path = [unpack(pack(*replica.checkpoint(trainer.status(), **about)))]
        replica.refresh()
        bases.append(path[0][0].base)
        model = versions.make(path)
        versions.adopt(model, path)
        assert model.predict(scored).tolist() == replica.served.predict(scored).tolist()
        features = learner.memory.complete(hashed)
        for column, expert in enumerate(learner.further, SCALES):
            said_B = model.experts(hashed)[:, column]
            assert said_B.tolist() == expert.contribute(features).tolist()
    assert 0 in bases[1:] and any(bases) and model.header.phase == "sparse"


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_an_export_that_would_leave_it_out_is_refused_by_option_rule_and_value(register, format):
    register(LatestClicks, LatestRate)
    model = PublishedModel.from_checkpoint(*unpack(Publisher().checkpoint(1)[1]))
    with pytest.raises(RuleError) as refusal:
        export(model, format)
    error = refusal.value
    assert (error.field, error.value) == ("--format", repr(format))
    assert error.rule == (
        "must be safetensors for a model with further experts (latest_clicks, latest_rate)"
    )


def test_an_export_to_safetensors_holds_all_that_it_has_learned(register):
    register(LatestClicks)
    publisher = Publisher()
    model = PublishedModel.from_checkpoint(*unpack(publisher.checkpoint(1)[1]))
    tensors = load(export(model, "safetensors"))
    state = publisher.learner.further[0].state()
    found = {name: tensors[f"expert.latest_clicks.{name}"] for name in state}
    assert differing(state, {name: torch.from_numpy(array) for name, array in found.items()}) == []
    assert tensors["mixture"].shape == (1 + SCALES + 2,)


@pytest.mark.parametrize(
    ("known", "published", "reason"),
    [
        ((), (LatestClicks,), "must be none for this program, got latest_clicks"),
        ((LatestClicks,), (), "must be latest_clicks for this program, got none"),
        ((LatestClicks,), (LatestRate,), "must be latest_clicks for this program, got latest_rate"),
    ],
)
@pytest.mark.parametrize("base", [0, 1])
def test_a_checkpoint_of_unknown_experts_is_refused_by_name_and_the_old_one_serves_on(
    register, store, scorer_of, caplog, known, published, reason, base
):
    caplog.set_level(logging.WARNING, "niwaki")
    register(*known)
    publisher, scorer = Publisher(), scorer_of(store, follow=False)
    store.publish(*publisher.checkpoint(1))
    assert scorer.refresh()
    register(*published)
    later = Publisher()
    later.checkpoint(1)
    store.publish(*later.checkpoint(2, base=base))
    register(*known)
    assert not scorer.refresh() and not scorer.refresh()
    assert (scorer.version, scorer.refused, scorer.swaps) == (1, 1, 1)
    assert scorer.score_batch(publisher.events).tolist() == publisher.answers[1]
    assert caplog.messages == [f"refused version 2, version 1 serves on: further experts: {reason}"]
    store.publish(*publisher.checkpoint(3))
    assert scorer.refresh()
    assert scorer.score_batch(publisher.events).tolist() == publisher.answers[3]


@pytest.mark.parametrize(
    ("name", "wrong", "found"),
    [("window.labels", torch.zeros(3), r"\[3\]"), ("window.first", None, "'nothing'")],
)
def test_a_checkpoint_with_half_of_an_expert_is_refused_by_the_name_of_the_tensor(
    register, name, wrong, found
):
    register(LatestClicks)
    header, tensors = unpack(Publisher().checkpoint(1)[1])
    full_name = f"expert.latest_clicks.{name}"
    tensors.pop(full_name)
    tensors |= {} if wrong is None else {full_name: wrong}
    rule = rf"tensor {full_name}: must be \[{WINDOW_EVENTS}\], got {found}"
    with pytest.raises(CheckpointError, match=rule):
        PublishedModel.from_checkpoint(header, tensors)
