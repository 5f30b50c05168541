"""The quality benchmark: rows are measured once, claims say what the rows say, and the naive rows
what they should."""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.frame import Rows
from benchmarks.quality.__main__ import ROW_FIELDS, claims, measure, seeds_of, summarise, won_back
from benchmarks.quality.runs import (
    ANEW,
    FORGETTING,
    HALF,
    QUARTER,
    UNIFORM,
    Batches,
    Forgetting,
    Stream,
    naive,
    run,
    streams,
    trainer_for,
)
from benchmarks.quality.tables import tables
from niwaki.model.features.outcomes import Outcomes
from niwaki.pruning.policy import Move
from niwaki.stream.synthetic.columns import SCHEMA


def line(policy: str, served: float, gap: float, after: float, back: float = 1000.0) -> dict:
    measures = {"gap_percent": gap, "gap_after_drift_percent": after, "won_back_events": back}
    measures |= {"cost": 0.4, "sparsity": 0.902, "served_by_seed": {0: served, 1: served}}
    return {"stream": "abrupt", "policy": policy, "budget": 0.1, "served_1000": served} | measures


def test_claims_hold_and_fail_as_the_lines_say():
    lines = [
        line("adaptive", 0.7, 0.1, 0.5),
        line("static", 0.71, 1.5, 1.2, 1500.0),
        line("small", 0.69, -1.0, -1.0),
    ]
    found = {claim["claim"]: (claim["value"], claim["holds"]) for claim in claims(lines)}
    assert [holds for _, holds in found.values()] == [True, True, True, False, False, False]
    assert found["90% sparse: furthest from it on 1 streams"][0] == pytest.approx(0.002)
    assert found["abrupt: static loses this many times as much then"][0] == pytest.approx(2.4)


def test_a_row_is_measured_once_and_kept_with_its_commit(tmp_path: Path):
    options = argparse.Namespace(
        rows=tmp_path / "rows.jsonl",
        recordings=None,
        events=1_500,
        seeds=seeds_of("0"),
        budgets=[0.1],
        streams=["abrupt"],
        only=["small"],
        plots=None,
        print=False,
    )
    first = measure(False, options)
    kept = options.rows.read_bytes()
    assert kept.count(b"\n") == 1 and b'"commit"' in kept
    second = measure(False, options)
    assert options.rows.read_bytes() == kept
    assert first.rows[0]["served_1000"] == second.rows[0]["served_1000"]
    options.only, options.print = ["small", "dense"], True
    assert [line["policy"] for line in measure(False, options).rows if line["sparsity"] > 0] == [
        "small"
    ]
    assert options.rows.read_bytes() == kept
    row = Rows(options.rows, ROW_FIELDS).get("abrupt", 1_500, "small", 0.1, 0)
    entropy = np.average(row["course"], weights=[1024, 476]) / row["served_1000"]
    assert 0.2 < entropy < 0.5  # of a click rate of about a tenth, in nats


def test_what_is_won_back_is_measured_by_the_loss_of_dense():
    calm, hit = [0.2] * 20, [0.3] * 5 + [0.22] * 5 + [0.2] * 40
    assert won_back([20_000], calm + hit, calm + hit) == 13_000
    assert won_back([20_000], calm + [0.2] * 50, calm + hit) == 5_000
    assert won_back([20_000], calm + [0.25] * 50, calm + hit) == 50_000
    assert math.isnan(won_back([], calm, calm))


def test_the_controls_are_what_they_say():
    stream = next(streams(None, 2_000, ["abrupt"]))
    forgetting = trainer_for(stream, FORGETTING, 0.1, 0).policy
    assert isinstance(forgetting, Forgetting) and forgetting.adapts
    assert {forgetting.decide(at, True) for at in range(0, 200_000, 10_000)} == {Move.STAY}
    assert trainer_for(stream, UNIFORM, 0.1, 0).learner.config.auxiliary.uniform
    for policy, table_budget in ((HALF, 0.5), (QUARTER, 0.25)):
        pruning = trainer_for(stream, policy, 0.1, 0).policy.config
        assert (pruning.policy, pruning.budget, pruning.table_budget) == (
            "adaptive",
            0.1,
            table_budget,
        )


def test_what_layers_keep_is_compared_seed_by_seed():
    ours, other = line("adaptive", 0.7, 0.1, 0.5), line(UNIFORM, 0.7, 0.1, 0.5)
    other["served_by_seed"] = {0: 0.71, 1: 0.69}
    found = {claim["claim"]: claim["value"] for claim in claims([ours, other])}
    assert found["abrupt: share of 2 seeds that beat uniform layers"] == 0.5


@pytest.mark.parametrize("policy", ["adaptive, fresh units", "adaptive, units of zeros"])
def test_a_learner_whose_units_come_back_otherwise_predicts_as_before_and_learns_on(policy):
    """The served predictions must not depend on the dense branch beside them."""
    stream = next(streams(None, 4_000, ["abrupt"]))
    batches, trainer = Batches(stream), trainer_for(stream, policy, 0.1, 0)
    batches.attach(trainer)
    learner = trainer.learner
    for batch in batches.batches[:20]:
        trainer.step(batch)
    learner.branches.prune()
    features = trainer.learner.encoder.encode(batches.batches[20])
    outcomes = Outcomes.of(batches.batches[20])
    learner.learn(features, outcomes, 0.1)
    learner.branches.cut()
    before = learner.predict(features)
    learner.branches.regrow()
    np.testing.assert_array_equal(learner.predict(features), before)
    assert (
        np.isfinite(learner.learn(features, outcomes).logits_B).all()
        and learner.branches.dense_live
    )


def test_who_begins_anew_at_the_drift_knows_nothing_after_it_and_everything_before():
    stream = next(streams(None, 12_000, ["abrupt"]))
    batches = Batches(stream)
    dense, anew = (run(stream, batches, policy, 0.1, 1)["course"] for policy in ("dense", ANEW))
    assert dense[:6] == anew[:6]
    labels_B = np.concatenate([batch.labels_B for batch in batches.batches])
    rate, after = labels_B[:6_000].mean(), labels_B[6_000:7_000].mean()
    expected = -after * math.log(rate) - (1 - after) * math.log(1 - rate)
    assert anew[6] == pytest.approx(expected, rel=0.05)  # until the first publication


def test_a_recent_rate_follows_a_jump_that_a_constant_one_does_not():
    labels = np.random.default_rng(0).random(100_000) < np.repeat([0.1, 0.5], 50_000)
    events = next(streams(None, 100, ["stationary"])).events
    measures = naive(
        Stream("jump", SCHEMA, replace(events, labels_B=labels.astype(np.float32)), [])
    )
    assert measures["CTR of the last 5,000"] < measures["constant CTR"]
    assert all(math.isfinite(entropy) for entropy in measures.values())


@pytest.mark.parametrize(("text", "seeds"), [("0-4", [0, 1, 2, 3, 4]), ("3", [3])])
def test_seeds_are_read(text, seeds):
    assert list(seeds_of(text)) == seeds


@pytest.mark.parametrize("text", ["", "a", "4-1"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="seeds"):
        seeds_of(text)


def test_a_table_shows_the_median_gap_its_range_and_nothing_that_was_not_measured():
    stream = next(streams(None, 2_000, ["abrupt"]))
    row = {
        "ne": 0.7,
        "served_1000": 0.8,
        "after_drift": 0.9,
        "course": [0.2] * 2,
        "sparsity": 0.0,
        "cost": 1.0,
    }
    row |= {"by_layer": {"top.0": 0.5}, "drifts_found": [], "forced": 0}
    pruned = [
        row | {"seed": seed, "served_1000": 0.8 * ratio, "sparsity": 0.9}
        for seed, ratio in enumerate((1.02, 0.99))
    ]
    found = {("dense", 0.1): [row | {"seed": 0}, row | {"seed": 1}], ("adaptive", 0.1): pruned}
    lines = tables(summarise(stream, found)).splitlines()
    del lines[1]  # the rule below the head
    cells = [[cell.strip() for cell in line.split("|")] for line in lines[:4]]
    gap, served = (
        cells[0].index("gap to dense, %"),
        cells[0].index("served every 128 / 1,000 / 5,000"),
    )
    assert cells[2][gap] == "+0.50 (-1.00 to +2.00)" and cells[2][served] == "- / 0.8040 / -"
    assert cells[1][gap] == "+0.00 (+0.00 to +0.00)" and cells[3][gap] == ""
