"""Weights of events, and the correction for events that a producer left out."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest

from niwaki.model.evaluation import Evaluation
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.learner import Learner
from niwaki.model.mixture.mixture import Mixture, mix
from tests.support.streams import SCHEMA, SMALL, click_events, differing
from tests.support.trainers import learn_all

FOREVER = msgspec.structs.replace(
    SMALL, network_rate=0.0, half_lives_events=(math.inf,), pair_rows=0
)


def test_the_linear_expert_learns_an_event_of_weight_two_as_it_learns_two_events():
    batch = click_events(8)  # one step, twice as many, too
    once, twice = Learner(SCHEMA, FOREVER), Learner(SCHEMA, FOREVER)
    order_B = np.repeat(np.arange(8), 2)
    weights_B = np.full(8, 2, np.float32)
    once.learn(
        once.encoder.encode(batch), Outcomes.of(dataclasses.replace(batch, weights_B=weights_B))
    )
    pairs = batch.take(order_B)
    twice.learn(twice.encoder.encode(pairs), Outcomes.of(pairs))
    np.testing.assert_allclose(
        once.linear.evidence_R2K, twice.linear.evidence_R2K, rtol=1e-5, atol=1e-7
    )


def test_an_event_of_weight_zero_teaches_nothing():
    batch, blank = click_events(640), click_events(640, flipped=True)
    first, second = Learner(SCHEMA, SMALL), Learner(SCHEMA, SMALL)
    for learner, part in ((first, batch), (second, blank)):
        outcomes = Outcomes.made(part.labels_B, np.zeros(640, np.float32))
        for start in range(0, 640, 64):
            hashed = learner.encoder.encode(batch.slice(start, start + 64))
            learner.learn(hashed, outcomes.part(start, start + 64))
    assert differing(first.state()[1], second.state()[1]) == []


def test_events_that_all_weigh_one_are_learned_bit_for_bit_as_events_without_weights():
    batch = click_events(1_000)
    ones_B = np.ones(1_000, np.float32)
    given = dataclasses.replace(batch, weights_B=ones_B, sampling_B=ones_B)
    first, second = Learner(SCHEMA, SMALL), Learner(SCHEMA, SMALL)
    learn_all(first, batch)
    learn_all(second, given)
    assert differing(first.state()[1], second.state()[1]) == []


def sampled(batch, ratio: float, seed: int):
    """The events with a click, and a share of the others."""
    rng = np.random.default_rng(seed)
    kept_B = (batch.labels_B > 0) | (rng.random(len(batch)) < ratio)
    part = batch.take(np.flatnonzero(kept_B))
    return dataclasses.replace(part, sampling_B=np.full(len(part), ratio, np.float32))


def rare_clicks(count: int, seed: int):
    """Events of which one in ten or so is a click."""
    batch = click_events(count, seed=seed)
    rng = np.random.default_rng(seed + 1)
    batch.labels_B[:] *= rng.random(count) < 0.2
    return batch


@pytest.mark.parametrize("network_rate", [0.0, 0.01])
def test_predictions_are_for_the_stream_before_sampling(network_rate):
    config = msgspec.structs.replace(SMALL, network_rate=network_rate)
    batch = sampled(rare_clicks(60_000, 0), 0.1, 5)
    learner, later = Learner(SCHEMA, config), Evaluation()
    for start in range(0, len(batch), 64):
        part = batch.slice(start, start + 64)
        outcomes = Outcomes.of(part)
        learned = learner.learn(learner.encoder.encode(part), outcomes)
        if start > len(batch) / 4:
            later.update(learned.logits_B, part.labels_B, outcomes.importance_B)
    assert later.calibration == pytest.approx(1, abs=0.03)
    assert later.base_rate < 0.15 and later.normalized_entropy < 1


def test_the_mixture_is_calibrated_for_the_stream_before_sampling():
    rng = np.random.default_rng(0)
    truth = rng.normal(-3, 1, 200_000)
    labels = rng.random(200_000) < 1 / (1 + np.exp(-truth))
    kept = labels | (rng.random(200_000) < 0.1)
    experts = np.stack([truth, rng.normal(size=200_000)], 1).astype(np.float32)
    mixture = Mixture.initial(1, half_life_events=50_000, debt_rate=0.002)
    ratios_B = np.full(kept.sum(), 0.1, np.float32)
    part = Outcomes.made(labels[kept].astype(np.float32), sampling_B=ratios_B)
    for start in range(0, int(kept.sum()), 500):
        stop = min(start + 500, int(kept.sum()))
        mixture.update(experts[kept][start:stop], part.part(start, stop))
    mean = (1 / (1 + np.exp(-mix(mixture.weights, experts)))).mean()
    assert mean == pytest.approx(labels.mean(), rel=0.03)
