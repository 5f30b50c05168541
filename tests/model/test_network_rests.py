"""The network rests while it does not earn its cost, and learns again."""

import msgspec
import numpy as np
import pytest

from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.learner import Learner
from niwaki.model.mixture import merit
from tests.support.streams import SCHEMA, SMALL, click_events, differing
from tests.support.trainers import learn_all, served_by

AUTO = msgspec.structs.replace(SMALL, network_rate="auto", network_worth=0.02)
ALONE = Schema(categorical=("user",), timestamp=None)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, events in (("_FIRST_EVENTS", 1_000), ("_REST_EVENTS", 2_000)):
        monkeypatch.setattr(merit, name, events)


def plain_events(count: int, seed: int = 0) -> EventBatch:
    """Events whose clicks follow one column: there is nothing for a network to find."""
    batch = click_events(count, seed=seed)
    rng = np.random.default_rng(seed)
    users = [int(name[1:]) for name in batch.categorical[0].to_pylist()]
    labels_B = rng.random(count) < np.random.default_rng(7).uniform(0.1, 0.9, 40)[users]
    nothing = np.empty((count, 0), np.float32)
    return EventBatch(labels_B.astype(np.float32), batch.times_s_B, batch.categorical[:1], nothing)


def rested() -> Learner:
    learner = Learner(ALONE, AUTO)
    for seed in range(100):
        learn_all(learner, plain_events(256, seed))
        if learner.branches.resting:
            return learner
    raise AssertionError("it never rests")


def test_a_network_that_finds_nothing_rests_and_neither_learns_nor_corrects():
    learner = rested()
    steps, cost = learner.branches.dense.steps, learner.learned_multiply_adds
    batch = plain_events(512, 500)
    part = batch.slice(0, 64)
    experts_BE = learner.learn(learner.encoder.encode(part), Outcomes.of(part)).experts_BE
    assert (experts_BE[:, -1] == experts_BE[:, 0]).all()
    assert (learner.branches.dense.steps, learner.learned_multiply_adds) == (steps, cost)
    hashed = learner.encoder.encode(batch)
    served = served_by(learner, learner.export(learner.mixture.weights))
    expected_B = learner.predict(hashed)
    np.testing.assert_allclose(served.logits(served.experts(hashed)), expected_B, atol=1e-6)


def test_a_network_that_finds_something_does_not_rest():
    learner = Learner(SCHEMA, msgspec.structs.replace(AUTO, pair_rows=0, network_worth=0.001))
    learn_all(learner, click_events(20_000))
    assert not learner.branches.resting and learner.branches.merit.gain_ratio > 0.001


@pytest.mark.parametrize("why", ["its rest is over", "a drift", "a pruning"])
def test_it_learns_again_and_changes_no_prediction_at_that_moment(why):
    learner = rested()
    batch = plain_events(256, 900)
    if why == "its rest is over":
        for seed in range(1_000, 1_100):
            learn_all(learner, plain_events(64, seed))
            if not learner.branches.resting:
                break
    hashed = learner.encoder.encode(batch)
    before_B = learner.predict(hashed)
    if why == "a drift":
        learner.check_evidence(1_000, 0.5, 0.5)
    elif why == "a pruning":
        learner.branches.prune()
    assert not learner.branches.resting
    np.testing.assert_allclose(learner.predict(hashed), before_B, atol=1e-6)
    steps = learner.branches.dense.steps
    learn_all(learner, batch)
    assert learner.branches.dense.steps == steps + 4


def test_rests_become_longer():
    learner, lengths, before = rested(), [0], True
    for seed in range(2_000, 3_000):
        learn_all(learner, plain_events(64, seed))
        resting = learner.branches.resting
        if resting and not before:
            lengths.append(0)
        lengths[-1] += 64 * resting
        before = resting
        if len(lengths) == 3:
            break
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=600)  # the first began within 256


def test_a_restored_learner_goes_on_bit_for_bit_through_rest_and_learning():
    first = rested()
    second = Learner(ALONE, AUTO)
    second.restore(*first.state())
    for learner in (first, second):
        for seed in range(100):
            learn_all(learner, plain_events(64, seed))
    assert differing(first.state()[1], second.state()[1]) == []
    assert first.branches.dense.steps == second.branches.dense.steps
