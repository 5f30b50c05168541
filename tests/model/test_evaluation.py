"""Measures of predictions, against their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.evaluation import Evaluation, WindowedEvaluation, binary_entropy, log_losses
from niwaki.model.features.outcomes import Outcomes


def events(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, count).astype(np.float32)
    return logits, (rng.random(count) < 1 / (1 + np.exp(-logits))).astype(np.float32)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_auc_is_the_chance_that_a_click_is_ranked_above_another_event(seed):
    logits, labels = events(600, seed)
    evaluation = Evaluation()
    evaluation.update(logits, labels)
    clicks, others = logits[labels == 1], logits[labels == 0]
    exact = (clicks[:, None] > others).mean() + (clicks[:, None] == others).mean() / 2
    assert evaluation.auc == pytest.approx(exact, abs=2e-3)


def test_a_constant_prediction_at_the_base_rate_has_normalized_entropy_and_calibration_one():
    labels = (np.arange(1000) % 4 == 0).astype(np.float32)
    evaluation = Evaluation()
    evaluation.update(np.full(1000, np.log(0.25 / 0.75)), labels)
    assert evaluation.normalized_entropy == pytest.approx(1, abs=1e-6)
    assert evaluation.calibration == pytest.approx(1, abs=1e-6)
    assert evaluation.auc == 0.5
    assert evaluation.log_loss == pytest.approx(binary_entropy(0.25))


def test_log_loss_is_exact_where_probabilities_would_round_to_one():
    assert log_losses(np.array([80.0, -80.0, 80.0]), np.array([0.0, 0.0, 1.0])) == pytest.approx(
        [80, 0, 0], abs=1e-12
    )


def test_however_a_stretch_is_cut_its_measures_are_the_same():
    logits, labels = events(5000, 1)
    whole, cut = Evaluation(), WindowedEvaluation(700)
    whole.update(logits, labels)
    for start in range(0, 5000, 64):
        cut.update(logits[start : start + 64], Outcomes.made(labels[start : start + 64]))
    for name, value in whole.summary().items():
        assert cut.total.summary()[name] == pytest.approx(value, rel=1e-9)
    assert cut.completed == 7 and cut.last["events"] == 704


def test_deciles_hold_a_tenth_each_and_are_calibrated_when_the_predictions_are():
    logits, labels = events(200_000, 2)
    evaluation = Evaluation()
    evaluation.update(logits, labels)
    deciles = evaluation.calibration_by_decile()
    assert len(deciles) == 10 and sum(count for *_, count in deciles) == 200_000
    assert all(abs(count - 20_000) < 1500 for *_, count in deciles)
    assert all(abs(predicted - clicked) < 0.015 for predicted, clicked, _ in deciles)


def test_a_windowed_evaluation_continues_exactly_from_its_state():
    logits, labels = events(3000, 3)
    first, second = WindowedEvaluation(500), WindowedEvaluation(500)
    outcomes = Outcomes.made(labels.astype(np.float32))
    first.update(logits[:800], outcomes.part(0, 800))
    second.restore(first.state())
    for evaluation in (first, second):
        evaluation.update(logits[800:], outcomes.part(800, 3000))
    assert first.total.summary() == second.total.summary() and first.last == second.last


def test_an_event_of_weight_three_counts_as_three_events():
    logits, labels = events(2000, 4)
    weights = np.random.default_rng(4).integers(0, 4, 2000).astype(np.float32)
    weighted, repeated = Evaluation(), Evaluation()
    weighted.update(logits, labels, weights)
    copies = weights.astype(int)
    repeated.update(np.repeat(logits, copies), np.repeat(labels, copies))
    for name, value in repeated.summary().items():
        if name != "events":
            assert weighted.summary()[name] == pytest.approx(value, rel=1e-6)


def test_both_figures_are_kept_where_events_have_weights():
    logits, labels = events(2000, 5)
    labels_B = labels.astype(np.float32)
    plain, weighted = WindowedEvaluation(500), WindowedEvaluation(500)
    plain.update(logits, Outcomes.made(labels_B))
    weights_B = np.where(labels > 0, 5, 1).astype(np.float32)
    weighted.update(logits, Outcomes.made(labels_B, weights_B))
    assert weighted.unweighted.summary() == plain.total.summary()
    assert weighted.total.base_rate > plain.total.base_rate and not plain.unweighted.events


def test_figures_of_a_sampled_stream_are_those_of_the_stream_before():
    logits, labels = events(400_000, 6)
    rng = np.random.default_rng(6)
    ratios = rng.choice([0.1, 0.5], 400_000).astype(np.float32)
    kept = (labels > 0) | (rng.random(400_000) < ratios)
    whole, sampled = Evaluation(), WindowedEvaluation(10**6)
    whole.update(logits, labels)
    labels_B = labels[kept].astype(np.float32)
    sampled.update(logits[kept], Outcomes.made(labels_B, sampling_B=ratios[kept]))
    for name in ("log_loss", "normalized_entropy", "auc", "calibration", "base_rate"):
        assert sampled.total.summary()[name] == pytest.approx(whole.summary()[name], rel=0.01)
