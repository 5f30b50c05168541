"""The learner: it learns, it prunes and regrows without losing anything, and bad input leaves it as
it was."""

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.config import LearnerConfig
from niwaki.model.deep.embeddings import Embedded
from niwaki.model.errors import LearnError
from niwaki.model.evaluation import Evaluation, binary_entropy
from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.numerics import KNOTS, Numerics, prepare
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.learner import Learner
from niwaki.model.step import bounds_of_steps
from niwaki.stream.offline.backtest import rebatch
from tests.support.streams import SCHEMA, SMALL, click_events, differing
from tests.support.trainers import learn_all, run, small_trainer


def test_it_learns_and_the_second_half_is_better_than_the_first():
    learner = Learner(SCHEMA, SMALL)
    events = click_events(8000)
    first, second = (
        learn_all(learner, events.slice(0, 4000)),
        learn_all(learner, events.slice(4000, 8000)),
    )
    assert second.normalized_entropy < 0.93
    assert second.normalized_entropy < first.normalized_entropy


@pytest.mark.parametrize("left_out", ["numeric", "categorical"])
def test_it_learns_from_fields_alone_and_from_numerics_alone(left_out):
    rng = np.random.default_rng(0)
    schema = Schema(**({"categorical": ("user",), "numeric": ("age",)} | {left_out: ()}))
    users, ages = rng.integers(0, 4, 6000), rng.normal(size=6000)
    rows = [
        {"label": int(rng.random() < (0.9 if (u < 2 if left_out == "numeric" else a > 0) else 0.1))}
        | ({"user": int(u)} if schema.categorical else {})
        | ({"age": float(a)} if schema.numeric else {})
        for u, a in zip(users, ages, strict=True)
    ]
    learner = Learner(schema, SMALL)
    assert learn_all(learner, rows_to_batch(rows, schema)).normalized_entropy < 0.75


def test_the_same_seed_and_events_give_the_same_model_bit_for_bit():
    states = []
    for _ in range(2):
        trainer = small_trainer()
        run(trainer, click_events(3000))
        states.append(trainer.state()[1])
    assert differing(*states) == []


def test_a_cut_changes_neither_the_predictions_nor_the_optimizer_state_of_survivors():
    learner = Learner(SCHEMA, SMALL)
    learn_all(learner, click_events(2000))
    learner.branches.prune()
    learn_all(learner, click_events(1000, seed=1), target_ratio=0.3)
    features = learner.encoder.encode(click_events(100, seed=2))
    before = learner.predict(features)
    moments = learner.branches.dense.tensors().second_moments["top.1.weight"].clone()
    learner.branches.cut()
    np.testing.assert_allclose(learner.predict(features), before, atol=1e-6)
    expected = moments[learner.branches.kept["top.1"]][:, learner.branches.kept["top.0"]]
    assert torch.equal(learner.branches.sparse.tensors().second_moments["top.1.weight"], expected)
    assert learner.multiply_adds <= 0.3 * learner.branches.dense_cost


def test_regrown_units_come_from_the_dormant_store_without_moments_and_the_served_model_stays():
    learner = Learner(SCHEMA, SMALL)
    learn_all(learner, click_events(2000))
    learner.branches.prune()
    learn_all(learner, click_events(1000, seed=1), target_ratio=0.3)
    learner.branches.cut()
    as_cut = learner.branches.dense.parameters["top.1.weight"].clone()
    learn_all(learner, click_events(1000, seed=2))
    features = learner.encoder.encode(click_events(100, seed=3))
    before = learner.predict(features)
    learner.branches.regrow()
    np.testing.assert_array_equal(learner.predict(features), before)
    kept = torch.zeros(learner.branches.dense.network.shapes["top.1.weight"], dtype=torch.bool)
    kept[
        torch.meshgrid(
            learner.branches.kept["top.1"], learner.branches.kept["top.0"], indexing="ij"
        )
    ] = True
    weights, moments = (
        learner.branches.dense.parameters["top.1.weight"],
        learner.branches.dense.tensors().first_moments["top.1.weight"],
    )
    assert torch.equal(weights[~kept], as_cut[~kept]) and weights.all() and not moments[~kept].any()
    assert torch.equal(weights[kept], learner.branches.sparse.parameters["top.1.weight"].flatten())
    assert torch.equal(
        moments[kept], learner.branches.sparse.tensors().first_moments["top.1.weight"].flatten()
    )


def test_quickened_tables_take_larger_steps_and_forget_no_row():
    learner = Learner(SCHEMA, SMALL)
    learn_all(learner, click_events(6000))
    before, touched = learner.tables.weight_RD.clone(), learner.tables.touched()
    steps = []
    for ratio in (1.0, 1e-40):
        learner.tables.weight_RD.copy_(before)
        learner.tables.decay_accumulators(ratio)
        assert torch.equal(learner.tables.touched(), touched)
        features = learner.encoder.encode(click_events(2000).slice(0, 64))
        rows_BF = features.rows_BF.numpy()
        learner.tables.update(
            (Embedded(rows_BF), np.full((*rows_BF.shape, SMALL.embedding_dim), 0.01, np.float32))
        )
        steps.append(float((learner.tables.weight_RD - before).abs().sum()))
    assert steps[1] > 2 * steps[0]


@pytest.mark.parametrize("change", ["flipped", "fewer clicks", "none"])
def test_after_a_drift_evidence_is_given_up_where_it_misleads_not_where_only_the_rate_moves(
    change,
):
    learner = Learner(SCHEMA, SMALL)
    changes = learner.track_dirty_rows()
    learn_all(learner, click_events(4000))
    learner.check_evidence(2000, 0.25, 0.1)
    forgotten = []
    discount = learner.linear.discount_evidence
    learner.linear.discount_evidence = lambda ratio: (
        forgotten.append(learner.events) or discount(ratio)
    )
    changes.clear(learner.events)
    after = click_events(3000, seed=1, flipped=change == "flipped")
    if change == "fewer clicks":
        after.labels_B[:] *= np.random.default_rng(0).random(len(after)) < 0.3
    learn_all(learner, after)
    assert len(forgotten) == (change == "flipped") and all(4400 <= at <= 6000 for at in forgotten)
    if forgotten:
        assert len(changes.rows()["linear"]) == len(learner.linear.touched())


def test_forgetting_leaves_means_nearer_to_the_prior():
    learner = Learner(SCHEMA, SMALL)
    learn_all(learner, click_events(2000))
    rows, prior = learner.linear.touched(), learner.linear.prior_SK().amin()
    before = learner.linear.evidence_R2K[rows].clone()
    assert torch.equal(learner.linear.discount_evidence(0.25), rows)
    after = learner.linear.evidence_R2K[rows]
    torch.testing.assert_close(after, before * 0.25)
    means = [
        (b / (prior + q)).abs() for b, q in (evidence.unbind(1) for evidence in (before, after))
    ]
    assert (means[1] <= means[0]).all()


def test_rewiring_keeps_the_widths_and_changes_no_prediction_but_by_what_was_dropped():
    learner = Learner(SCHEMA, SMALL, narrow_ratio=0.3)
    batch = click_events(2000)
    learn_all(learner, batch)
    before, kept = learner.branches.sparse.network.shape, learner.branches.kept
    features = learner.encoder.encode(batch.slice(0, 64))
    predicted = learner.predict(features)
    outcomes = Outcomes.of(batch.slice(0, 64))
    learner.rewire(features, outcomes, 0.0)
    np.testing.assert_allclose(learner.predict(features), predicted, atol=1e-6)
    learner.rewire(features, outcomes, 0.3)
    assert learner.branches.sparse.network.shape == before and not learner.branches.dense_live
    assert any(not torch.equal(kept[name], learner.branches.kept[name]) for name in kept)


def test_a_loss_that_is_not_finite_stops_the_learner_before_anything_changes():
    learner = Learner(SCHEMA, SMALL)
    batch = click_events(64)
    before = learner.state()[1]
    labels = batch.labels_B.copy()
    labels[3] = np.nan
    with pytest.raises(LearnError, match="not finite"):
        learner.learn(learner.encoder.encode(batch), Outcomes.made(labels))
    assert differing(before, learner.state()[1]) == []


def test_missing_and_unseen_values_give_finite_predictions():
    learner = Learner(SCHEMA, SMALL)
    learn_all(learner, click_events(1000))
    features = learner.encoder.encode(click_events(10, seed=5))
    nothing = torch.full_like(features.raw_numerics_BN, float("nan"))
    unseen = features._replace(rows_BF=features.rows_BF * 0, raw_numerics_BN=nothing)
    assert np.isfinite(learner.predict(unseen)).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("table_rows", 1), ("embedding_rate", 0.0), ("top", ()), ("interaction", "x")],
)
def test_a_model_setting_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}"):
        LearnerConfig(**{field: value})


def test_standardised_numerics_have_unit_scale_whatever_the_batches_and_never_look_ahead():
    values = (
        torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        * torch.tensor([3.0, 1000.0])
        + 50
    )
    values[::7, 1] = float("nan")
    whole, cut = Numerics(2, 1e9), Numerics(2, 1e9)
    before = prepare(values, whole.scale())
    assert not before.scores_BM[:, :2].any() and not before.code_BN.any()
    whole.update(values)
    for part in values.split(33):
        cut.update(part)
    torch.testing.assert_close(
        whole.scale().moments_2N, cut.scale().moments_2N, rtol=1e-4, atol=1e-4
    )
    prepared = prepare(values, whole.scale())
    assert (prepared.scores_BM[::7, 3] == 1).all() and (prepared.scores_BM[::7, 1] == 0).all()
    assert np.sinh(prepared.scores_BM[:, 0]).std() == pytest.approx(1, abs=0.01)
    constant = Numerics(1, 1e9)
    constant.update(torch.full((300, 1), 7.0))
    assert prepare(torch.tensor([[7.0], [8.0]]), constant.scale()).scores_BM[:, 0].tolist() == [
        0.0,
        0.0,
    ]


def test_a_piecewise_linear_code_says_where_a_value_lies_between_quantiles_of_the_past():
    numerics = Numerics(1, 1e9)
    numerics.update(torch.arange(0, 1601.0)[:, None])
    low, high, missing = (
        torch.tensor([[-5.0]]),
        torch.tensor([[1e9]]),
        torch.tensor([[float("nan")]]),
    )
    prepared = prepare(torch.cat([torch.tensor([[150.0]]), low, high, missing]), numerics.scale())
    assert prepared.code_BN.squeeze(1).tolist() == [2, 1, KNOTS - 1, 0]
    assert prepared.above_BN.squeeze(1).tolist() == pytest.approx([0.5, 0, 1, 0])
    constant = Numerics(1, 1e9)
    constant.update(torch.full((300, 1), 7.0))
    assert prepare(torch.tensor([[7.0], [9.0]]), constant.scale()).above_BN.tolist() == [
        [0.0],
        [0.0],
    ]


def test_values_never_seen_before_are_predicted_no_worse_than_by_not_knowing_them():
    learner = Learner(SCHEMA, SMALL)
    learn_all(learner, click_events(6000))
    new = click_events(4000, seed=1)
    unknown = pa.array([f"new{i}" for i in range(4000)], pa.string())
    surprising = EventBatch(
        new.labels_B, new.times_s_B, (new.categorical[0], unknown, unknown), new.numerics_BN
    )
    without = pa.nulls(4000, pa.string())
    missing = EventBatch(
        new.labels_B, new.times_s_B, (new.categorical[0], without, without), new.numerics_BN
    )
    losses = []
    for batch in (surprising, missing):
        evaluation = Evaluation()
        evaluation.update(learner.predict(learner.encoder.encode(batch)), batch.labels_B)
        losses.append(evaluation.normalized_entropy)
    assert losses[0] <= losses[1] * 1.01


def test_a_long_batch_is_learned_in_steps_as_short_batches_would_be():
    events = click_events(1200)
    long, short = small_trainer(), small_trainer()
    for trainer in (long, short):
        run(trainer, click_events(256, seed=1))  # the first events are learned in short steps
    for batch in rebatch([events], 600):
        step = long.step(batch)
    for batch in rebatch([events], 200):
        short.step(batch)
    assert len(step.losses_B) == 600
    assert long.events == short.events and torch.equal(
        long.learner.linear.log_s_GK, short.learner.linear.log_s_GK
    )
    for name, tensor in short.learner.branches.dense.parameters.items():
        assert torch.equal(long.learner.branches.dense.parameters[name], tensor), name


@given(st.integers(0, 2_000), st.integers(1, 2_000))
def test_steps_cover_a_batch_and_no_first_step_is_longer_than_all_events_before_it(before, events):
    bounds = bounds_of_steps(before, events)
    lengths = np.diff(bounds)
    assert bounds[0] == 0 and bounds[-1] == events and lengths.min() >= 1
    assert all(
        length <= min(256, max(16, before + start))
        for start, length in zip(bounds, lengths, strict=False)
    )


def test_where_clicks_are_rare_the_first_events_cost_little_and_less_with_a_known_rate():
    rng = np.random.default_rng(0)
    batch = click_events(4_000)
    rare = batch.take(np.flatnonzero((batch.labels_B == 0) | (rng.random(4_000) < 0.03)))
    rate = float(rare.labels_B[:1_024].mean())
    losses = []
    for prior in (0.0, rate):
        config = msgspec.structs.replace(SMALL, prior_rate=prior)
        losses.append(learn_all(Learner(SCHEMA, config), rare.slice(0, 1_024)).log_loss)
    constant = binary_entropy(rate)
    assert losses[0] < 1.25 * constant and losses[1] < 1.05 * constant


def test_a_learner_that_has_learned_nothing_predicts_the_rate_that_is_expected():
    learner = Learner(SCHEMA, msgspec.structs.replace(SMALL, prior_rate=0.02))
    logits_B = learner.predict(learner.encoder.encode(click_events(64)))
    np.testing.assert_allclose(1 / (1 + np.exp(-logits_B)), 0.02, rtol=1e-3)
