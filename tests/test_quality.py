"""The quality benchmark: rows are measured once, claims say what the rows say, and the naive rows what they should."""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.frame import Rows
from benchmarks.quality import ROW_FIELDS, Stream, claims, measure, naive, streams
from stream.synthetic import SCHEMA


def line(policy: str, served: float, gap: float, after: float, back: float = 1000.0) -> dict:
    measures = {"gap_percent": gap, "gap_after_drift_percent": after, "won_back_events": back}
    return {"stream": "abrupt", "policy": policy, "budget": 0.1, "served_1000": served} | measures


def test_claims_hold_and_fail_as_the_rows_say():
    rows = [line("adaptive", 0.7, 0.1, 0.5), line("static", 0.71, 1.5, 1.2, 1500.0), line("small", 0.69, -1.0, -1.0)]
    found = {claim["claim"]: (claim["value"], claim["holds"]) for claim in claims(rows)}
    verdicts = [holds for _, holds in found.values()]
    assert verdicts == [True, True, False, False, False]
    assert found["abrupt, 90% sparse: static loses this many times as much then"][0] == pytest.approx(2.4)


def test_a_row_is_measured_once_and_kept_with_its_commit(tmp_path: Path):
    options = argparse.Namespace(
        rows=tmp_path / "rows.jsonl",
        recordings=None,
        events=1_500,
        seeds=1,
        budgets=[0.1],
        streams=["abrupt"],
        only=["small"],
    )
    first = measure(False, options)
    kept = options.rows.read_bytes()
    assert kept.count(b"\n") == 1 and b'"commit"' in kept
    second = measure(False, options)
    assert options.rows.read_bytes() == kept
    assert first.rows[0]["served_1000"] == second.rows[0]["served_1000"]
    assert Rows(options.rows, ROW_FIELDS).get("abrupt", 1_500, "small", 0.1, 0)


def test_a_recent_rate_follows_a_jump_that_a_constant_one_does_not():
    labels = np.random.default_rng(0).random(100_000) < np.repeat([0.1, 0.5], 50_000)
    events = next(streams(None, 100, ["stationary"])).events
    measures = naive(Stream("jump", SCHEMA, replace(events, labels_B=labels.astype(np.float32)), []))
    assert measures["CTR of the last 5,000"] < measures["constant CTR"]
    assert all(math.isfinite(entropy) for entropy in measures.values())
