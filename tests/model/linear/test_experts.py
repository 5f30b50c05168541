"""The parts of the learner: each can be left out, evidence fades, the mixture is calibrated and
finds the best."""

import math

import msgspec
import numpy as np
import pytest
import torch

from niwaki.model.config import LearnerConfig
from niwaki.model.evaluation import Evaluation
from niwaki.model.features.lists import no_lists
from niwaki.model.features.numerics import Numerics, prepare
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.learner import Learner
from niwaki.model.linear.expert import BayesianLinear, contributions
from niwaki.model.mixture.mixture import Mixture, mix
from niwaki.pruning.config import PruningConfig
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig
from tests.support.streams import SCHEMA, SMALL, click_events
from tests.support.trainers import served_by

plain = Outcomes.made

WITHOUT = {
    "embeddings": {"embedding_dim": 0},
    "products of vectors": {"interaction": "none"},
    "the bottom MLP": {"bottom": ()},
    "the deep expert": {"network_rate": 0.0},
    "pairs": {"pair_rows": 0},
    "faster time scales": {"half_lives_events": (100_000.0,)},
    "codes of numerics": {"numeric_codes": False},
    "learned shrinkage": {"shrinkage_rate": 0.0},
    "the mixture": {"mixture_half_life_events": 0.0},
    "the debt": {"debt_rate": 0.0},
}


@pytest.mark.parametrize("part", WITHOUT)
def test_without_any_one_part_it_learns_and_serves_what_it_has_learned(part):
    config = msgspec.structs.replace(SMALL, **WITHOUT[part])
    trainer = Trainer(
        TrainerConfig(
            schema=SCHEMA,
            model=config,
            pruning=PruningConfig(policy="dense"),
            drift=DriftConfig(detectors=()),
            training=TrainingConfig(batch_events=64, window_events=2048),
        )
    )
    replica, events = trainer.add_replica(640), click_events(6400)
    for start in range(0, len(events), 64):
        step = trainer.step(events.slice(start, start + 64))
        if replica.due(step.move):
            replica.refresh()
    assert trainer.prequential.last["normalized_entropy"] < 0.97
    unseen = click_events(200, seed=3)
    model = served_by(trainer.learner, trainer.learner.export(replica.mixture.weights))
    expected = trainer.learner.predict(
        trainer.learner.encoder.encode(unseen), replica.mixture.weights
    )
    np.testing.assert_allclose(model.predict(unseen), 1 / (1 + np.exp(-expected)), atol=1e-5)


def scales(config: LearnerConfig) -> int:
    return len(config.half_lives_events)


def test_without_the_deep_expert_its_logit_is_that_of_the_first_linear_one():
    learner = Learner(
        SCHEMA,
        msgspec.structs.replace(SMALL, network_rate=0.0, mixture_half_life_events=0, debt_rate=0),
    )
    batch = click_events(512)
    learner.learn(learner.encoder.encode(batch), Outcomes.of(batch))
    assert not learner.tables.touched().numel()
    inputs = learner._assemble(learner.memory.complete(learner.encoder.encode(batch)))
    predicted = learner.predict(learner.encoder.encode(batch))
    np.testing.assert_allclose(predicted, inputs.linear_BK[:, 0].numpy(), atol=1e-5)


def learn_rows(linear: BayesianLinear, rows_BS: np.ndarray, labels_B: np.ndarray) -> None:
    ones_BS = np.ones(rows_BS.shape, np.float32)
    linear.learn(rows_BS, ones_BS, no_lists(len(rows_BS)), plain(labels_B))


def weights_of(linear: BayesianLinear, rows: int) -> torch.Tensor:
    slots = torch.arange(rows)[:, None]
    prior = linear.prior_SK()[:1]
    lists = no_lists(rows)
    return contributions(linear.evidence_R2K, prior, slots, torch.ones(rows, 1), lists)[:, 0]


def test_evidence_of_a_row_that_is_in_every_batch_fades_as_fast_as_it_should():
    linear = BayesianLinear(2, [0], [1.0], [1_000.0, math.inf], shrinkage_rate=0.0)
    rng = np.random.default_rng(0)

    def learn(rate: float, events: int) -> None:
        for _ in range(events // 50):
            labels = (rng.random(50) < rate).astype(np.float32)
            learn_rows(linear, np.zeros((50, 1), np.int64), labels)

    learn(0.8, 20_000)
    learn(0.2, 3_000)
    fast, slow = weights_of(linear, 1)[0].sigmoid().tolist()
    assert fast < 0.32 and slow > 0.6
    # In the long run precision is that of 1,000 / ln 2 events.
    precision = linear.evidence_R2K[0, 1, 0].item()
    assert precision == pytest.approx(1_000 / math.log(2) * fast * (1 - fast), rel=0.3)


def test_a_row_never_learned_says_nothing_and_one_seen_once_little():
    linear = BayesianLinear(3, [0], [0.03], [1_000.0], shrinkage_rate=0.2)
    learn_rows(linear, np.array([[1]]), np.ones(1, np.float32))
    never, once = weights_of(linear, 2)[:, 0].tolist()
    assert never == 0 and 0 < once < 0.03


def test_the_mixture_finds_the_expert_that_knows():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=8_000)
    labels = (rng.random(8_000) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    experts = np.stack([rng.normal(size=8_000), truth], 1)
    mixture = Mixture(np.array([0.0, 0.5, 0.5]), half_life_events=50_000, debt_rate=0.0)
    for start in range(0, 8_000, 1_000):
        mixture.update(experts[start : start + 1_000], plain(labels[start : start + 1_000]))
    bias, noise, knows = mixture.weights
    assert abs(bias) < 0.1 and abs(noise) < 0.15 and knows > 0.75


@pytest.mark.parametrize(("debt_rate", "holds"), [(0.002, True), (0.0, False)])
def test_the_debt_holds_the_mean_prediction_to_a_rate_that_experts_miss(debt_rate, holds):
    rng = np.random.default_rng(0)
    mixture = Mixture(np.array([0.0, 1.0]), half_life_events=50_000, debt_rate=debt_rate)
    experts, served = np.full((1_000, 1), -1.5), Evaluation()
    for block in range(40):
        labels = (rng.random(1_000) < (0.3 if block < 20 else 0.2)).astype(np.float32)
        served.update(mix(mixture.weights, experts), labels)
        mixture.update(experts, plain(labels))
    assert (abs(served.calibration - 1) < 0.05) is holds


def test_the_debt_is_bounded_and_nearly_off_where_publications_are_rare():
    labels, experts = np.ones(5_000, np.float32), np.full((5_000, 1), -3.0)
    often, rare = (
        Mixture(np.array([0.0, 1.0]), half_life_events=math.inf, debt_rate=0.002) for _ in range(2)
    )
    for start in range(0, 5_000, 500):
        often.update(experts[start : start + 500], plain(labels[start : start + 500]))
    rare.update(experts, plain(labels))
    assert 1 < often.integral <= 2 and 0 < rare.integral < 0.1


def test_however_far_a_number_is_beyond_all_before_it_its_score_is_bounded():
    numerics = Numerics(1, 1_000.0)
    numerics.update(
        torch.from_numpy(np.random.default_rng(0).normal(size=(1_000, 1)).astype(np.float32))
    )
    scores = (
        prepare(torch.tensor([[100.0], [1e6], [1e30], [-1e30]]), numerics.scale())
        .scores_BM[:, 0]
        .tolist()
    )
    assert 5 < scores[0] < 6 and scores[1:] == [8, 8, -8]


def test_where_no_expert_knows_anything_the_click_rate_is_predicted():
    rng, served = np.random.default_rng(0), Evaluation()
    mixture = Mixture.initial(1, half_life_events=50_000, debt_rate=0.002)
    for block in range(40):
        experts = rng.normal(-5, 0.7, size=(1_000, 2))
        labels = (rng.random(1_000) < 0.007).astype(np.float32)
        if block >= 20:
            served.update(mix(mixture.weights, experts), labels)
        mixture.update(experts, plain(labels))
    assert served.normalized_entropy < 1.005


def test_one_burst_that_the_experts_missed_hardly_moves_their_weights():
    rng = np.random.default_rng(0)
    truth = rng.normal(-2, 1, size=40_000)
    labels = (rng.random(40_000) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    experts = np.stack([truth, rng.normal(-2, 1, size=40_000)], 1)
    mixture = Mixture.initial(1, half_life_events=50_000, debt_rate=0.0)
    for start in range(0, 40_000, 5_000):
        mixture.update(experts[start : start + 5_000], plain(labels[start : start + 5_000]))
    mixture.update(experts[:5_000], plain((rng.random(5_000) < 0.6).astype(np.float32)))
    bias, knows, _ = mixture.weights
    assert abs(bias) < 0.05 and knows > 0.85


def test_a_restored_mixture_goes_on_as_the_first_would_have():
    rng = np.random.default_rng(1)
    first, second = (
        Mixture(np.array([0.0, 0.5, 0.5]), half_life_events=1_000, debt_rate=0.002)
        for _ in range(2)
    )
    experts, labels = rng.normal(size=(600, 2)), rng.integers(0, 2, 600).astype(np.float32)
    first.update(experts[:300], plain(labels[:300]))
    second.restore(first.state())
    for mixture in (first, second):
        mixture.update(experts[300:], plain(labels[300:]))
    assert np.array_equal(first.weights, second.weights)


@pytest.mark.parametrize(
    "field", ["network_rate", "embedding_dim", "shrinkage_rate", "debt_rate", "pair_rows"]
)
def test_a_negative_setting_is_refused_by_name(field):
    with pytest.raises(ValueError, match=f"{field}"):
        LearnerConfig(**{field: -1})
